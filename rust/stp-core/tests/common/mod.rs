//! A model that is a hash of the canvas, a driver of the scheduler, and random unmaskings and rows.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "test support"
)]

use proptest::prelude::*;
use stp_core::marks::OUTSIDE;
use stp_core::prior::Anchor;
use stp_core::rng::philox4x32;
use stp_core::rollout::{Request, Results, Scheduler, Stats, Step};
use stp_core::select::Score;
use stp_core::unmasking::{Eos, Unmasking};

pub const MASK: i64 = 1;
pub const PAD: i64 = 0;
pub const EOS: i64 = 7;

#[derive(Debug, Clone, PartialEq)]
pub struct Trajectory {
    pub tokens: Vec<i64>,
    pub steps: Vec<i32>,
    pub logprob: Vec<f32>,
    pub nfe: i32,
    pub stop: u8,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub uid: u64,
    pub prompt: Vec<i64>,
    pub length: usize,
    pub prior: Vec<Anchor>,
    pub unmasking: Unmasking,
}

/// Numbers that depend on the row's own canvas, the position and its uniform, and on nothing else.
pub fn model(canvas: &[i64], at: usize, uniform: f32) -> [f32; Score::COLUMNS] {
    let mut state = [17u32, 4];
    for &id in canvas {
        let block = philox4x32(state, [id as u32, 0, 0, 0]);
        state = [block[0], block[1]];
    }
    let bits = philox4x32(state, [at as u32, uniform.to_bits(), 0, 1]);
    let shared = philox4x32(state, [at as u32, 0, 0, 2]);
    let unit = |b: u32| (b >> 8) as f32 / 16_777_216.0;
    let token = 2.0 + (bits[0] % 30) as f32;
    let top1 = (0.2 + 0.8 * unit(shared[0])).ln();
    [
        token,
        -unit(bits[1]),
        top1,
        top1 - 3.0 * unit(shared[1]),
        unit(shared[2]),
        -unit(bits[1]),
        (shared[3] % 3) as f32,
    ]
}

pub fn drive(cases: &[Case], slots: usize, share: bool) -> (Vec<Trajectory>, Stats) {
    drive_with(cases, Scheduler::new(MASK, PAD, slots, 9, share).unwrap().with_eos(&[EOS]), |_, _| ())
}

/// Runs the rows through a scheduler; `watch` sees every step and the widths of its rows.
pub fn drive_with(
    cases: &[Case],
    mut s: Scheduler,
    mut watch: impl FnMut(Step, &[i32]),
) -> (Vec<Trajectory>, Stats) {
    for c in cases {
        let (prompt, prior) = (&c.prompt[..], &c.prior[..]);
        let request =
            Request { uid: c.uid, prompt, completion_length: c.length, prior, unmasking: c.unmasking };
        s.submit(&[request]).unwrap();
    }
    let (tokens, positions) = s.capacity();
    let mut ids = vec![99; tokens];
    let (mut lengths, mut candidates, mut uniforms) =
        (vec![0; cases.len()], vec![0; positions], vec![0.0; positions]);
    let (mut places, longest) = (vec![0; positions], cases.iter().map(|c| c.length).max().unwrap_or(0));
    loop {
        let step = s.next_step(&mut ids, &mut lengths, &mut candidates, &mut uniforms).unwrap();
        if step.rows == 0 {
            break;
        }
        watch(step, &lengths[..step.rows]);
        s.places(longest, &mut places).unwrap();
        let mut packed = Vec::new();
        for ((&flat, &u), &place) in candidates[..step.candidates].iter().zip(&uniforms).zip(&places) {
            let (row, at) = (flat as usize / step.width, flat as usize % step.width);
            let canvas = &ids[row * step.width..][..lengths[row] as usize];
            assert_eq!(canvas[at], MASK, "only masked positions are candidates");
            let (case, position) = (&cases[place as usize / longest], place as usize % longest);
            assert_eq!(case.prompt.len() + position, at, "a place is the candidate's completion position");
            assert_eq!(canvas[..case.prompt.len()], case.prompt, "of the row that owns it");
            let mut numbers = model(canvas, at, u);
            // what no row of the call reads may hold anything
            for (column, read) in [(3, step.reads.top2), (4, step.reads.entropy), (6, step.reads.argmax)] {
                if !read {
                    numbers[column] = (flat * 7 % 5) as f32 - 2.0;
                }
            }
            packed.extend(numbers);
        }
        s.commit(&packed).unwrap();
    }
    let (rows, length) = (cases.len(), cases.iter().map(|c| c.length).max().unwrap_or(0));
    let (mut t, mut u, mut l) = (vec![0; rows * length], vec![0; rows * length], vec![0.0; rows * length]);
    let (mut nfe, mut stop) = (vec![0; rows], vec![0; rows]);
    let mut out =
        Results { token_ids: &mut t, unmask_step: &mut u, logprob: &mut l, nfe: &mut nfe, stop: &mut stop };
    s.results(length, &mut out).unwrap();
    let take = |i: usize| Trajectory {
        tokens: t[i * length..][..cases[i].length].to_vec(),
        steps: u[i * length..][..cases[i].length].to_vec(),
        logprob: l[i * length..][..cases[i].length].to_vec(),
        nfe: nfe[i],
        stop: stop[i],
    };
    for (i, case) in cases.iter().enumerate() {
        assert!(u[i * length..(i + 1) * length][case.length..].iter().all(|&s| s == OUTSIDE));
    }
    ((0..rows).map(take).collect(), s.stats())
}

pub fn unmasking() -> impl Strategy<Value = Unmasking> {
    let selections = ["top_k", "threshold:0.8", "threshold:0.5:2", "factor:0.6"];
    let temporals = [
        "none",
        "fill_ratio:0.7",
        "steps:0.5",
        "confidence:0.4",
        "margin:1.5:0.2",
        "entropy:1.5",
        "stable:1",
    ];
    let quotas = ["ceil_remaining", "llada", "dllm", "dream", "powers_of_two", "bernoulli"];
    let kinds = ["prob", "sampled_prob", "drawn_prob", "margin", "entropy", "random", "leftmost", "gumbel"];
    let max_nfe = prop_oneof![Just(0usize), 1usize..6];
    let eos = prop_oneof![3 => Just("none"), 2 => Just("truncate"), 1 => Just("last")];
    (1usize..20, 0usize..9, 0usize..4, 0usize..7, 0usize..6, 0usize..8, max_nfe, eos).prop_map(
        move |(diffusion_steps, block_length, sel, t, q, kind, max_nfe, eos)| Unmasking {
            diffusion_steps,
            block_length,
            quota: quotas[q].parse().unwrap(),
            selection: selections[sel].parse().unwrap(),
            confidence: if sel == 0 { kinds[kind] } else { kinds[kind % 3] }.parse().unwrap(),
            temporal: temporals[t].parse().unwrap(),
            max_nfe,
            eos: eos.parse().unwrap(),
        },
    )
}

pub fn case() -> impl Strategy<Value = Case> {
    let anchors = proptest::collection::btree_map(0u32..17, 2i64..30, 0..8);
    (any::<u64>(), proptest::collection::vec(2i64..30, 0..6), 0usize..17, anchors, unmasking()).prop_map(
        |(uid, prompt, length, anchors, unmasking)| {
            let prior = anchors.into_iter().filter(|(p, _)| (*p as usize) < length);
            let prior = prior.map(|(position, id)| Anchor { position, id, source: 0 }).collect();
            Case { uid, prompt, length, prior, unmasking }
        },
    )
}

pub fn plain(steps: usize, temporal: &str) -> Unmasking {
    Unmasking {
        diffusion_steps: steps,
        block_length: 0,
        quota: "ceil_remaining".parse().unwrap(),
        selection: "top_k".parse().unwrap(),
        confidence: "prob".parse().unwrap(),
        temporal: temporal.parse().unwrap(),
        max_nfe: 0,
        eos: Eos::None,
    }
}

pub fn cases(n: u64, unmasking: Unmasking) -> Vec<Case> {
    (0..n).map(|uid| Case { uid, prompt: vec![5, 6], length: 16, prior: Vec::new(), unmasking }).collect()
}
