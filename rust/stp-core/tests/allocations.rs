//! No step of a rollout allocates: counted by an allocator of this test's own process.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use stp_core::prior::Anchor;
use stp_core::rollout::{Request, Scheduler};
use stp_core::select::Score;
use stp_core::unmasking::Unmasking;

struct Counting;

thread_local! {
    /// Allocations of this thread: the test harness's own thread does not disturb the count.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator; the counter does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|c| c.set(c.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn unmasking(selection: &str, confidence: &str, temporal: &str, quota: &str) -> Unmasking {
    Unmasking {
        diffusion_steps: 16,
        block_length: 8,
        quota: quota.parse().unwrap(),
        selection: selection.parse().unwrap(),
        confidence: confidence.parse().unwrap(),
        temporal: temporal.parse().unwrap(),
        max_nfe: 0,
        eos: "truncate".parse().unwrap(),
    }
}

#[test]
fn no_step_allocates() {
    let before = COUNT.with(Cell::get);
    let probe = std::hint::black_box(vec![1u8; 8]);
    assert!(COUNT.with(Cell::get) > before, "the counter sees this thread's allocations");
    drop(probe);
    let unmaskings = [
        unmasking("top_k", "prob", "none", "ceil_remaining"),
        unmasking("threshold:0.7:4", "prob", "margin:2:0.1", "dream"),
        unmasking("factor:0.7", "sampled_prob", "stable:3", "dllm"),
        unmasking("entropy_bound:0.2", "entropy", "entropy:0.1", "llada"),
        unmasking("top_k", "random", "fill_ratio:0.9", "bernoulli"),
    ];
    // rows of many lengths through few slots: rows leave and enter while it is counted
    let prompts: Vec<Vec<i64>> = (0..40).map(|i| vec![5; 3 + i % 7]).collect();
    let prior = [Anchor { position: 2, id: 9, source: 0 }];
    let request = |i: usize| Request {
        uid: i as u64,
        prompt: &prompts[i],
        completion_length: 10 + (i * 7) % 23,
        prior: &prior,
        unmasking: unmaskings[i % unmaskings.len()],
    };
    let mut scheduler = Scheduler::new(1, 0, 8, 3, true).unwrap().with_eos(&[7]).with_admission(250, true);
    scheduler.submit(&(0..40).map(request).collect::<Vec<_>>()).unwrap();
    let (tokens, positions) = scheduler.capacity();
    let (mut ids, mut lengths) = (vec![0; tokens], vec![0; 8]);
    let (mut at, mut uniforms) = (vec![0; positions], vec![0.0; positions]);
    let (mut packed, mut places) = (vec![0.0; positions * Score::COLUMNS], vec![0; positions]);
    let (mut steps, mut inside) = (0, 0);
    loop {
        let start = COUNT.with(Cell::get);
        let step = scheduler.next_step(&mut ids, &mut lengths, &mut at, &mut uniforms).unwrap();
        if step.rows == 0 {
            break;
        }
        scheduler.places(64, &mut places).unwrap();
        for (i, row) in
            packed[..step.candidates * Score::COLUMNS].chunks_exact_mut(Score::COLUMNS).enumerate()
        {
            let top1 = -uniforms[i];
            let token = 2.0 + ((i * 13 + steps) % 60) as f32;
            row.copy_from_slice(&[
                token,
                top1,
                top1,
                top1 - 1.0,
                0.3 * uniforms[i],
                top1,
                (steps / 4) as f32,
            ]);
        }
        scheduler.commit(&packed[..step.candidates * Score::COLUMNS]).unwrap();
        inside += COUNT.with(Cell::get) - start;
        steps += 1;
    }
    assert!(steps > 30, "{steps}");
    assert_eq!(inside, 0, "allocations in {steps} steps, the first one included");
}
