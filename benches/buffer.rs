//! The trajectory buffer at the size of one update: 64 rows, completions of 256, 128 denoising steps.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench stops at the first surprise; criterion's macros make items"
)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use stp_core::buffer::{Buffer, Minibatch, Rollouts};
use stp_core::rng::{Lane, RowRng};

const ROWS: usize = 64;
const LENGTH: usize = 256;
const PROMPT: usize = 128;
const STEPS: usize = 128;
const MASK: i64 = 126_336;

/// The arrays of a push: two tokens revealed by each step, in a random order.
struct Batch {
    prompt_ids: Vec<i64>,
    prompt_length: Vec<i32>,
    token_ids: Vec<i64>,
    unmask_step: Vec<i32>,
    logprob: Vec<f32>,
    stop_reason: Vec<u8>,
    uid: Vec<u64>,
    group: Vec<i64>,
    policy_version: Vec<i64>,
}

impl Batch {
    fn new() -> Self {
        let unmask_step = (0..ROWS as u64).flat_map(|uid| {
            let mut steps: Vec<i32> = (0..LENGTH as i32).map(|i| i / 2).collect();
            RowRng::new(0, uid).stream(Lane::Shuffle, 0).shuffle(&mut steps);
            steps
        });
        Self {
            prompt_ids: vec![17; ROWS * PROMPT],
            prompt_length: vec![PROMPT as i32; ROWS],
            token_ids: (0..(ROWS * LENGTH) as i64).collect(),
            unmask_step: unmask_step.collect(),
            logprob: vec![-0.5; ROWS * LENGTH],
            stop_reason: vec![0; ROWS],
            uid: (0..ROWS as u64).collect(),
            group: vec![0; ROWS],
            policy_version: vec![0; ROWS],
        }
    }

    fn view(&self) -> Rollouts<'_> {
        Rollouts {
            prompt_ids: &self.prompt_ids,
            prompt_width: PROMPT,
            prompt_length: &self.prompt_length,
            token_ids: &self.token_ids,
            unmask_step: &self.unmask_step,
            logprob: &self.logprob,
            stop_reason: &self.stop_reason,
            uid: &self.uid,
            group: &self.group,
            policy_version: &self.policy_version,
        }
    }

    /// What a buffer without a step map has to keep: every canvas of every row, `[row][step]`.
    fn canvases(&self) -> Vec<Vec<Vec<i64>>> {
        let state = |row: usize, step: i32| {
            let here = row * LENGTH..(row + 1) * LENGTH;
            let pairs = self.token_ids[here.clone()].iter().zip(&self.unmask_step[here]);
            pairs.map(|(&token, &revealed)| if revealed < step { token } else { MASK }).collect()
        };
        (0..ROWS).map(|row| (0..STEPS as i32).map(|step| state(row, step)).collect()).collect()
    }
}

fn write(c: &mut Criterion) {
    let batch = Batch::new();
    let mut group = c.benchmark_group("buffer");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("push/64x256", |b| {
        let mut buffer = Buffer::new(LENGTH, ROWS).unwrap();
        b.iter(|| {
            buffer.clear();
            buffer.push(black_box(&batch.view())).unwrap()
        });
    });
    group.bench_function("push/64x256/every canvas kept", |b| {
        b.iter_batched(|| (), |()| black_box(&batch).canvases(), BatchSize::LargeInput);
    });
    group.bench_function("evict/half of 64x256", |b| {
        let mut buffer = Buffer::new(LENGTH, ROWS).unwrap();
        let versions: Vec<i64> = (0..ROWS as i64).map(|row| row % 2).collect();
        let rows = Rollouts { policy_version: &versions, ..batch.view() };
        buffer.push(&rows).unwrap();
        b.iter_batched_ref(|| buffer.clone(), |buffer| buffer.evict(1), BatchSize::SmallInput);
    });
    group.finish();
}

fn read(c: &mut Criterion) {
    let batch = Batch::new();
    let mut buffer = Buffer::new(LENGTH, ROWS).unwrap();
    buffer.push(&batch.view()).unwrap();
    let mut rows: Vec<i32> = (0..ROWS as i32).collect();
    RowRng::new(1, 0).stream(Lane::Shuffle, 0).shuffle(&mut rows);
    let step: Vec<i32> = (0..ROWS).map(|row| (row * 37 % STEPS) as i32).collect();
    let mut out = vec![0; ROWS * LENGTH];
    let mut group = c.benchmark_group("buffer");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.bench_function("minibatch/64x256", |b| {
        let (mut prompts, mut steps, mut logprob) =
            (vec![0; ROWS * PROMPT], vec![0; ROWS * LENGTH], vec![0.0; ROWS * LENGTH]);
        b.iter(|| {
            let into = &mut Minibatch {
                prompt_ids: Some(&mut prompts),
                prompt_width: PROMPT,
                token_ids: Some(&mut out),
                unmask_step: Some(&mut steps),
                logprob: Some(&mut logprob),
                ..Minibatch::default()
            };
            buffer.minibatch(black_box(&rows), into).unwrap();
        });
    });
    group.bench_function("state/replay", |b| {
        b.iter(|| buffer.replay(black_box(&rows), black_box(&step), MASK, &mut out).unwrap());
    });
    let canvases = batch.canvases();
    group.bench_function("state/every canvas kept", |b| {
        b.iter(|| {
            for ((line, &row), &step) in out.chunks_exact_mut(LENGTH).zip(black_box(&rows)).zip(&step) {
                line.copy_from_slice(&canvases[row as usize][step as usize]);
            }
        });
    });
    group.finish();
    let kept = ROWS * STEPS * LENGTH * size_of::<i64>();
    println!("bytes: {} in the buffer, {kept} with every canvas kept", buffer.nbytes());
}

criterion_group!(benches, write, read);
criterion_main!(benches);
