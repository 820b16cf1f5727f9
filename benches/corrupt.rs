//! Mask generation for B = 64 rows of L = 256 with K = 4 passes, one thread: under 1 ms for every design.
//!
//! `trajectory` is measured with K = 4 of 64 steps; `autoregressive` and `ordered` write one pass per state, so they
//! are given as many elements and compared per pass.
#![allow(missing_docs, reason = "criterion's macros write public items")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use stp_core::corrupt::{Batch, Design, Keys, Options, Out, Scratch, designs, prompt_mask};

const ROWS: usize = 64;
const LENGTH: usize = 256;
const STEPS: usize = 64;

/// Arrays of a batch whose rows follow one plan, revealed in an order that mixes positions.
struct Rows {
    eligible: Vec<u8>,
    unmask_counts: Vec<i32>,
    unmask_step: Vec<i32>,
    uids: Vec<u64>,
}

impl Rows {
    /// Four tokens per step; with `merged`, the last quarter of the tokens in one step.
    fn new(merged: bool) -> Self {
        let per_step = LENGTH / STEPS;
        let last = if merged { STEPS * 3 / 4 } else { STEPS - 1 };
        let plan: Vec<i32> =
            (0..STEPS).map(|s| if s <= last { (LENGTH - s * per_step) as i32 } else { 0 }).collect();
        let steps: Vec<i32> = (0..LENGTH).map(|i| (i * 37 % LENGTH / per_step).min(last) as i32).collect();
        Self {
            eligible: vec![1; ROWS * LENGTH],
            unmask_counts: plan.repeat(ROWS),
            unmask_step: steps.repeat(ROWS),
            uids: (0..ROWS as u64).collect(),
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            rows: ROWS,
            length: LENGTH,
            eligible: &self.eligible,
            max_steps: STEPS,
            unmask_counts: &self.unmask_counts,
            unmask_step: &self.unmask_step,
            mass: &[],
        }
    }
}

fn draw(c: &mut Criterion, name: &str, rows: &Rows, design: &Design) {
    let mut scratch = Scratch::default();
    let mut passes = vec![0; ROWS];
    let Ok(()) = design.passes(&rows.batch(), &mut scratch, &mut passes) else { return };
    let total = passes.iter().sum::<i32>() as usize;
    let (mut mask, mut weight) = (vec![0; total * LENGTH], vec![0.0; total * LENGTH]);
    let mut row = vec![0; total];
    let mut iteration = 0;
    let mut group = c.benchmark_group("corrupt");
    group.throughput(Throughput::Elements(total as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            iteration = (iteration + 1) % 4;
            let keys = Keys { seed: 1, uids: &rows.uids, iteration };
            let mut out = Out { mask: &mut mask, weight: &mut weight, row: &mut row };
            design.draw(&rows.batch(), &keys, &mut out, &mut scratch)
        });
    });
    group.finish();
}

fn every_design(c: &mut Criterion) {
    let options = Options { num_mc: 4, num_iterations: 4, block_length: 32, ..Options::default() };
    let (pruned, unpruned) = (Rows::new(true), Rows::new(false));
    for info in designs() {
        if let Ok(design) = Design::new(info.name, options) {
            draw(c, info.name, &pruned, &design);
        }
    }
    let truncated = Options { truncate: Some((0.2, 0.8)), ..options };
    if let Ok(design) = Design::new("coupled", truncated) {
        draw(c, "coupled/truncated", &pruned, &design);
    }
    if let Ok(design) = Design::new("cover", options) {
        draw(c, "cover/unpruned", &unpruned, &design);
    }
}

fn prompts(c: &mut Criterion) {
    let rows = Rows::new(true);
    let prompt = vec![1u8; ROWS * 200];
    let row: Vec<i32> = (0..ROWS as i32).collect();
    let mut mask = vec![0u8; ROWS * 200];
    let keys = Keys { seed: 1, uids: &rows.uids, iteration: 0 };
    c.bench_function("corrupt/prompt_mask", |b| {
        b.iter(|| prompt_mask(&prompt, 200, 0.15, &keys, &row, &mut mask));
    });
}

criterion_group!(benches, every_design, prompts);
criterion_main!(benches);
