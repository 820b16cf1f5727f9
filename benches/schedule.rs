//! Plans and priors of a batch.
#![allow(missing_docs, reason = "criterion makes public items")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use stp_core::prior::{PriorSet, Selector, choose_anchors};
use stp_core::rng::RowRng;
use stp_core::schedule::{Plan, Quota};

fn benches(c: &mut Criterion) {
    for name in Quota::NAMES {
        let quota: Quota = name.parse().unwrap_or_default();
        c.bench_function(&format!("plan {name} n=32 S=16"), |b| {
            b.iter(|| Plan::even(black_box(32), black_box(16), quota));
        });
    }
    let unmask_step: Vec<i32> = (0..256).map(|i| i * 37 % 256 / 2).collect();
    c.bench_function("realised plan L=256", |b| b.iter(|| Plan::from_unmask_step(black_box(&unmask_step))));
    let dense: Vec<i64> = (0..64 * 256).map(|i| if i % 20 == 0 { i } else { -1 }).collect();
    let shifted: Vec<i64> = (0..64 * 256).map(|i| if i % 20 == 7 { i } else { -1 }).collect();
    let sets = (PriorSet::from_dense(&dense, 256, 1), PriorSet::from_dense(&shifted, 256, 2));
    if let (Ok(first), Ok(second)) = sets {
        c.bench_function("compose two priors B=64 L=256", |b| {
            b.iter(|| black_box(&first).compose(&second, false));
        });
    }
    let confidence: Vec<f32> = (0..256).map(|i| -((i * 37 % 101) as f32)).collect();
    let (eligible, mut keep) = (vec![1; 256], vec![0; 256]);
    c.bench_function("choose anchors L=256 keep=0.05", |b| {
        b.iter(|| {
            choose_anchors(
                Selector::TopConfidence,
                0.05,
                &confidence,
                &eligible,
                RowRng::new(0, 0),
                &mut keep,
            )
        });
    });
}

criterion_group!(schedule, benches);
criterion_main!(schedule);
