//! Laws of the rollout scheduler, with a model that is a hash of the canvas.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test may panic")]

use proptest::prelude::*;
use stp_core::layout::Layout;
use stp_core::prior::Anchor;
use stp_core::rng::philox4x32;
use stp_core::rollout::{OUTSIDE, PRIOR, Request, Results, Scheduler, Stats, Stop};
use stp_core::sampler::Sampler;
use stp_core::select::Score;

const MASK: i64 = 1;
const PAD: i64 = 0;

#[derive(Debug, Clone, PartialEq)]
struct Trajectory {
    tokens: Vec<i64>,
    steps: Vec<i32>,
    logprob: Vec<f32>,
    nfe: i32,
    stop: u8,
}

#[derive(Debug, Clone)]
struct Case {
    uid: u64,
    prompt: Vec<i64>,
    length: usize,
    prior: Vec<Anchor>,
    sampler: Sampler,
}

/// Numbers that depend on the row's own canvas, the position and its uniform, and on nothing else.
fn model(canvas: &[i64], at: usize, uniform: f32) -> [f32; Score::COLUMNS] {
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

fn drive(cases: &[Case], slots: usize, share: bool) -> (Vec<Trajectory>, Stats) {
    let mut s = Scheduler::new(MASK, PAD, slots, 9, share).unwrap();
    for c in cases {
        let (prompt, prior) = (&c.prompt[..], &c.prior[..]);
        let request = Request { uid: c.uid, prompt, completion_length: c.length, prior, sampler: c.sampler };
        s.submit(&[request]).unwrap();
    }
    let (tokens, positions) = s.capacity();
    let mut ids = vec![99; tokens];
    let (mut lengths, mut candidates, mut uniforms) =
        (vec![0; slots], vec![0; positions], vec![0.0; positions]);
    loop {
        let step = s.next_step(&mut ids, &mut lengths, &mut candidates, &mut uniforms).unwrap();
        if step.rows == 0 {
            break;
        }
        let mut packed = Vec::new();
        for (&flat, &u) in candidates[..step.candidates].iter().zip(&uniforms) {
            let (row, at) = (flat as usize / step.width, flat as usize % step.width);
            let canvas = &ids[row * step.width..][..lengths[row] as usize];
            assert_eq!(canvas[at], MASK, "only masked positions are candidates");
            packed.extend(model(canvas, at, u));
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

fn sampler() -> impl Strategy<Value = Sampler> {
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
    let quotas = ["ceil_remaining", "llada", "dllm", "dream", "powers_of_two"];
    let kinds = ["prob", "sampled_prob", "margin", "entropy", "random", "leftmost"];
    (1usize..20, 0usize..9, 0usize..4, 0usize..7, 0usize..5, 0usize..6, prop_oneof![Just(0usize), 1usize..6])
        .prop_map(move |(diffusion_steps, block_length, sel, t, q, kind, max_nfe)| Sampler {
            diffusion_steps,
            block_length,
            quota: quotas[q].parse().unwrap(),
            selection: selections[sel].parse().unwrap(),
            confidence: if sel == 0 { kinds[kind] } else { kinds[kind % 2] }.parse().unwrap(),
            temporal: temporals[t].parse().unwrap(),
            max_nfe,
        })
}

fn case() -> impl Strategy<Value = Case> {
    let anchors = proptest::collection::btree_map(0u32..17, 2i64..30, 0..8);
    (any::<u64>(), proptest::collection::vec(2i64..30, 0..6), 0usize..17, anchors, sampler()).prop_map(
        |(uid, prompt, length, anchors, sampler)| {
            let prior = anchors.into_iter().filter(|(p, _)| (*p as usize) < length);
            let prior = prior.map(|(position, id)| Anchor { position, id, source: 0 }).collect();
            Case { uid, prompt, length, prior, sampler }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_row_is_the_same_in_any_batch_slot_and_order(cases in proptest::collection::vec(case(), 1..9), slots in 1usize..6) {
        let (all, _) = drive(&cases, slots, false);
        let reversed: Vec<Case> = cases.iter().rev().cloned().collect();
        let (mut back, _) = drive(&reversed, cases.len(), true);
        back.reverse();
        prop_assert_eq!(&back, &all);
        for (case, row) in cases.iter().zip(&all) {
            let (alone, _) = drive(std::slice::from_ref(case), 1, false);
            prop_assert_eq!(&alone[0], row);
        }
    }

    #[test]
    fn trajectories_are_complete_and_priors_stay(cases in proptest::collection::vec(case(), 1..9)) {
        let (rows, stats) = drive(&cases, 4, false);
        for (case, row) in cases.iter().zip(&rows) {
            let anchors: std::collections::BTreeMap<usize, i64> = case.prior.iter().map(|a| (a.position as usize, a.id)).collect();
            for p in 0..case.length {
                match anchors.get(&p) {
                    Some(&id) => prop_assert_eq!((row.tokens[p], row.steps[p], row.logprob[p]), (id, PRIOR, 0.0)),
                    None => prop_assert!(row.tokens[p] != MASK && (0..row.nfe).contains(&row.steps[p])),
                }
            }
            let free = case.length - anchors.len();
            prop_assert!(row.nfe as usize <= free, "every forward reveals a token");
            for s in 0..row.nfe {
                prop_assert!(row.steps.contains(&s), "no step is wasted");
            }
            prop_assert_eq!(row.stop == Stop::Prior as u8, free == 0);
            if case.sampler.max_nfe > 0 { prop_assert!(row.nfe as usize <= case.sampler.max_nfe); }
            let layout = Layout::new(case.prompt.len(), case.length, case.sampler.block_length);
            let positions: Vec<u32> = (0..case.length as u32).filter(|p| !anchors.contains_key(&(*p as usize))).collect();
            if let Some(plan) = case.sampler.plan(&positions, &layout) {
                prop_assert_eq!(&stp_core::schedule::Plan::from_unmask_step(&row.steps), &plan, "the plan is what happened");
            }
            let first_block = |p: usize| layout.block_of(p);
            if row.stop == Stop::Plan as u8 {
                let mut order: Vec<(usize, i32)> = positions.iter().map(|&p| (first_block(p as usize), row.steps[p as usize])).collect();
                order.sort_unstable();
                prop_assert!(order.windows(2).all(|w| w[0].0 == w[1].0 || w[0].1 < w[1].1 ), "blocks go left to right");
            }
        }
        prop_assert_eq!(stats.forwards as i64, rows.iter().map(|r| i64::from(r.nfe)).sum::<i64>());
        prop_assert_eq!(stats.nfe, stats.forwards);
    }
}

fn plain(steps: usize, temporal: &str) -> Sampler {
    Sampler {
        diffusion_steps: steps,
        block_length: 0,
        quota: "ceil_remaining".parse().unwrap(),
        selection: "top_k".parse().unwrap(),
        confidence: "prob".parse().unwrap(),
        temporal: temporal.parse().unwrap(),
        max_nfe: 0,
    }
}

fn cases(n: u64, sampler: Sampler) -> Vec<Case> {
    (0..n).map(|uid| Case { uid, prompt: vec![5, 6], length: 16, prior: Vec::new(), sampler }).collect()
}

#[test]
fn a_group_shares_its_first_forward_and_nothing_else_changes() {
    let group = cases(8, plain(8, "none"));
    let (own, a) = drive(&group, 8, false);
    let (shared, b) = drive(&group, 8, true);
    assert_eq!(own, shared);
    assert_eq!((a.forwards, b.forwards), (64, 57));
    assert_eq!((a.nfe, b.nfe), (64, 64));
}

#[test]
fn pruning_costs_what_the_plan_says() {
    let (rows, stats) = drive(&cases(3, plain(8, "fill_ratio:0.75")), 2, false);
    assert!(rows.iter().all(|r| r.nfe == 6 && r.stop == Stop::Temporal as u8));
    assert_eq!(stats.forwards, 18);
    assert_eq!(rows[0].steps.iter().filter(|&&s| s == 5).count(), 6);
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    let mut s = Scheduler::new(MASK, PAD, 2, 0, false).unwrap();
    let sampler = plain(2, "none");
    assert!(s.commit(&[]).unwrap_err().to_string().contains("next_step first"));
    let prior = [Anchor { position: 4, id: 5, source: 0 }];
    let request = |prompt, prior| Request { uid: 0, prompt, completion_length: 4, prior, sampler };
    assert!(
        s.submit(&[request(&[5], &[]), request(&[5], &prior)]).unwrap_err().to_string().contains("below 4")
    );
    assert!(s.submit(&[request(&[MASK], &[])]).is_err() && s.is_empty());
    s.submit(&[request(&[5], &[])]).unwrap();
    let (mut ids, mut lengths, mut at, mut u) = ([0; 5], [0; 1], [0; 4], [0.0; 4]);
    assert!(
        s.next_step(&mut ids[..4], &mut lengths, &mut at, &mut u).unwrap_err().to_string().contains("ids")
    );
    let step = s.next_step(&mut ids, &mut lengths, &mut at, &mut u).unwrap();
    assert_eq!((step.rows, step.width, step.candidates), (1, 5, 4));
    assert!(s.next_step(&mut ids, &mut lengths, &mut at, &mut u).is_err());
    for bad in [MASK as f32, -1.0, 0.5, f32::NAN, 1e9] {
        let mut packed = [3.0; 28];
        packed[7] = bad;
        assert!(s.commit(&packed).is_err(), "{bad}");
    }
    let mut nan = [f32::NAN; 28];
    for row in nan.chunks_mut(7) {
        row[0] = 3.0;
    }
    s.commit(&nan).unwrap();
    assert_eq!(s.stats().nan, 4);
    assert_eq!(s.unfinished(), 1);
}
