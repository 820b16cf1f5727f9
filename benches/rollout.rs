//! The scheduler without a model: 64 rows of 256 tokens in blocks of 32.
#![allow(missing_docs, reason = "criterion makes public items")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use stp_core::rollout::{Request, Scheduler};
use stp_core::select::Score;
use stp_core::unmasking::Unmasking;

const ROWS: usize = 64;
const LENGTH: usize = 256;

fn unmasking(selection: &str) -> Unmasking {
    let parsed = |text: &str| text.parse().unwrap_or_default();
    Unmasking {
        diffusion_steps: 128,
        block_length: 32,
        quota: stp_core::schedule::Quota::default(),
        selection: parsed(selection),
        confidence: stp_core::select::Confidence::Prob,
        temporal: stp_core::temporal::Temporal::None,
        max_nfe: 0,
        eos: stp_core::unmasking::Eos::None,
    }
}

struct Arrays {
    ids: Vec<i64>,
    lengths: Vec<i32>,
    candidates: Vec<i32>,
    uniforms: Vec<f32>,
}

fn start(selection: &str) -> Option<(Scheduler, Arrays)> {
    let mut scheduler = Scheduler::new(1, 0, ROWS, 7, false).ok()?;
    let prompt = [5; 64];
    let request = |uid| Request {
        uid,
        prompt: &prompt,
        completion_length: LENGTH,
        prior: &[],
        unmasking: unmasking(selection),
    };
    let requests: Vec<Request<'_>> = (0..ROWS as u64).map(request).collect();
    scheduler.submit(&requests).ok()?;
    let (tokens, positions) = scheduler.capacity();
    let arrays = Arrays {
        ids: vec![0; tokens],
        lengths: vec![0; ROWS],
        candidates: vec![0; positions],
        uniforms: vec![0.0; positions],
    };
    Some((scheduler, arrays))
}

fn next(scheduler: &mut Scheduler, a: &mut Arrays) -> usize {
    scheduler
        .next_step(&mut a.ids, &mut a.lengths, &mut a.candidates, &mut a.uniforms)
        .map_or(0, |step| step.candidates)
}

/// Numbers that look like a model's: a token and falling log-probs per candidate.
fn numbers(candidates: usize) -> Vec<f32> {
    (0..candidates)
        .flat_map(|i| {
            let top1 = -((i * 37 % 101) as f32) / 80.0;
            let row: [f32; Score::COLUMNS] = [9.0, top1, top1, top1 - 2.0, 0.5, top1, 9.0];
            row
        })
        .collect()
}

fn benches(c: &mut Criterion) {
    for selection in ["top_k", "threshold:0.7"] {
        c.bench_function(&format!("commit {selection} B=64 block=32"), |b| {
            b.iter_batched(
                || {
                    let mut state = start(selection);
                    let count = state.as_mut().map_or(0, |(s, a)| next(s, a));
                    (state, numbers(count))
                },
                |(mut state, packed)| {
                    if let Some((scheduler, _)) = &mut state {
                        black_box(scheduler.commit(&packed).is_ok());
                    }
                    (state, packed) // dropped outside the measured time
                },
                BatchSize::SmallInput,
            );
        });
    }
    c.bench_function("next_step B=64 L=256 block=32", |b| {
        b.iter_batched(
            || start("top_k"),
            |mut state| {
                if let Some((scheduler, arrays)) = &mut state {
                    black_box(next(scheduler, arrays));
                }
                state
            },
            BatchSize::SmallInput,
        );
    });
    c.bench_function("whole rollout B=64 L=256 128 steps, no model", |b| {
        b.iter(|| {
            let Some((mut scheduler, mut arrays)) = start("top_k") else { return };
            let packed = numbers(ROWS * LENGTH);
            loop {
                let count = next(&mut scheduler, &mut arrays);
                if count == 0 || scheduler.commit(&packed[..count * Score::COLUMNS]).is_err() {
                    break;
                }
            }
            black_box(scheduler.stats());
        });
    });
}

criterion_group!(rollout, benches);
criterion_main!(rollout);
