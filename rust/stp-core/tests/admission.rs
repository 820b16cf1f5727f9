//! Admission, the batch-wide exit, end-of-text and random quotas.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test may panic")]

mod common;

use common::{Case, EOS, MASK, PAD, case, cases, drive, drive_with, plain};
use proptest::prelude::*;
use stp_core::marks::{PRIOR, Stop, UNDRAWN};
use stp_core::prior::Anchor;
use stp_core::rollout::Scheduler;
use stp_core::select::Confidence;
use stp_core::unmasking::{Eos, Unmasking};

fn scheduler(slots: usize, max_tokens: usize, sorted: bool) -> Scheduler {
    Scheduler::new(MASK, PAD, slots, 9, true).unwrap().with_eos(&[EOS]).with_admission(max_tokens, sorted)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn admission_bounds_the_call_and_changes_no_row(
        cases in proptest::collection::vec(case(), 1..9), slots in 1usize..6, max_tokens in 0usize..60, sorted: bool,
    ) {
        let (all, _) = drive(&cases, cases.len(), false);
        let (rows, _) = drive_with(&cases, scheduler(slots, max_tokens, sorted), |step, lengths| {
            assert!(step.rows <= slots);
            assert!(max_tokens == 0 || step.rows == 1 || step.rows * step.width <= max_tokens);
            assert_eq!(step.width, *lengths.iter().max().unwrap() as usize, "no wider than the longest row");
        });
        prop_assert_eq!(rows, all);
    }

    #[test]
    fn truncation_ends_a_row_at_its_first_end_of_text_and_draws_nothing_after(cases in proptest::collection::vec(case(), 1..9)) {
        let with = |eos| cases.iter().cloned().map(|mut c| { c.unmasking.eos = eos; c }).collect::<Vec<Case>>();
        let (cut, _) = drive(&with(Eos::Truncate), 4, false);
        let (whole, _) = drive(&with(Eos::None), 4, false);
        for ((short, long), case) in cut.iter().zip(&whole).zip(&cases) {
            prop_assert!(short.nfe <= long.nfe);
            if short.stop != Stop::Eos as u8 {
                prop_assert_eq!(short, long);
                continue;
            }
            let first = short.tokens.iter().position(|&t| t == EOS).unwrap();
            let anchors: Vec<usize> = case.prior.iter().map(|a| a.position as usize).collect();
            let mut dropped = 0;
            for p in (0..case.length).filter(|p| !anchors.contains(p)) {
                if long.steps[p] < short.nfe {
                    prop_assert_eq!((short.tokens[p], short.steps[p], short.logprob[p]), (long.tokens[p], long.steps[p], long.logprob[p]));
                } else {
                    dropped += 1;
                    prop_assert!(p > first, "everything up to the first end-of-text was revealed");
                    prop_assert_eq!((short.tokens[p], short.steps[p], short.logprob[p]), (EOS, UNDRAWN, 0.0));
                }
            }
            prop_assert!(dropped > 0 && long.nfe > short.nfe);
        }
    }
}

#[test]
fn groups_stay_neighbours_under_sorted_admission_and_share_their_first_forward() {
    let mut mixed = Vec::new();
    for group in 0..4u64 {
        for sample in 0..4 {
            let prompt = vec![5; 2 + (group as usize * 3) % 4];
            let unmasking = plain(8, "none");
            mixed.push(Case { uid: group * 4 + sample, prompt, length: 8, prior: Vec::new(), unmasking });
        }
    }
    let (fifo, loose) = drive_with(&mixed, scheduler(8, 0, false), |_, _| ());
    let (sorted, tight) = drive_with(&mixed, scheduler(8, 0, true), |_, _| ());
    assert_eq!(fifo, sorted);
    assert_eq!((loose.forwards, tight.forwards), (16 * 8 - 12, 16 * 8 - 12));
    assert!(tight.padding < loose.padding, "{} {}", tight.padding, loose.padding);
}

#[test]
fn the_published_exit_waits_for_the_whole_batch() {
    let mut batch = cases(4, plain(16, "fill_ratio_batch:0.75"));
    for (case, anchors) in batch.iter_mut().zip([0u32, 4, 8, 12]) {
        case.prior = (0..anchors).map(|position| Anchor { position, id: 9, source: 0 }).collect();
    }
    let (rows, _) = drive_with(&batch, scheduler(4, 0, false), |_, _| ());
    // the row without anchors needs 12 steps for 12 of 16; the row with 12 is done after its own 4
    let ends: Vec<(i32, u8)> = rows.iter().map(|r| (r.nfe, r.stop)).collect();
    let (plan, temporal) = (Stop::Plan as u8, Stop::Temporal as u8);
    assert_eq!(ends, [(12, temporal), (12, plan), (8, plan), (4, plan)]);
    for case in &mut batch {
        case.unmasking = plain(16, "fill_ratio:0.75");
    }
    let (own, _) = drive_with(&batch, scheduler(4, 0, false), |_, _| ());
    assert_eq!(own.iter().map(|r| r.nfe).collect::<Vec<_>>(), [12, 8, 4, 1]);
    // no row joins a batch on its way, so a queued row meets a batch of its own
    let (queued, _) =
        drive_with(&cases(5, plain(16, "fill_ratio_batch:0.75")), scheduler(4, 0, false), |_, _| ());
    assert!(queued.iter().all(|r| r.nfe == 12 && r.stop == temporal));
    let adaptive =
        Unmasking { selection: "threshold:0.5".parse().unwrap(), ..plain(4, "fill_ratio_batch:0.9") };
    assert!(adaptive.check().unwrap_err().to_string().contains("top_k"));
}

#[test]
fn end_of_text_needs_its_id_and_a_prior_may_hold_it() {
    let unmasking = Unmasking { eos: Eos::Truncate, ..plain(8, "none") };
    let mut row = cases(1, unmasking).remove(0);
    row.prior = vec![Anchor { position: 0, id: EOS, source: 0 }];
    let (rows, stats) = drive(&[row], 1, false);
    assert_eq!((rows[0].nfe, rows[0].stop, stats.forwards), (0, Stop::Eos as u8, 0));
    let steps = [vec![PRIOR], vec![UNDRAWN; 15]].concat();
    assert_eq!((rows[0].tokens.clone(), rows[0].steps.clone()), (vec![EOS; 16], steps));
    let mut bare = Scheduler::new(MASK, PAD, 1, 0, false).unwrap();
    let request =
        stp_core::rollout::Request { uid: 0, prompt: &[5], completion_length: 4, prior: &[], unmasking };
    assert!(bare.submit(&[request]).unwrap_err().to_string().contains("eos_token_ids"));
}

#[test]
fn held_back_end_of_text_is_revealed_last() {
    // with token 2 as end-of-text, positions that drew it wait, whatever the most likely token is
    let unmasking = Unmasking { eos: Eos::Last, confidence: Confidence::Leftmost, ..plain(16, "none") };
    let s = Scheduler::new(MASK, PAD, 4, 9, false).unwrap().with_eos(&[2]);
    let (rows, _) = drive_with(&cases(4, unmasking), s, |_, _| ());
    let (free, _) = drive(&cases(4, Unmasking { eos: Eos::None, ..unmasking }), 4, false);
    let leftmost: Vec<i32> = (0..16).collect();
    assert!(free.iter().all(|r| r.steps == leftmost));
    assert!(rows.iter().any(|r| r.steps != leftmost));
}

#[test]
fn a_bernoulli_quota_reveals_the_share_of_ancestral_sampling() {
    let unmasking =
        Unmasking { quota: "bernoulli".parse().unwrap(), confidence: Confidence::Random, ..plain(4, "none") };
    assert_eq!(unmasking.plan(&[0, 1], &stp_core::layout::Layout::new(0, 2, 0)), None);
    let (rows, _) = drive(&cases(400, unmasking), 64, false);
    // 16 masks over 4 steps: each step takes a quarter of them in expectation, and the whole distribution is binomial
    let first: Vec<usize> = rows.iter().map(|r| r.steps.iter().filter(|&&s| s == 0).count()).collect();
    let mean = first.iter().sum::<usize>() as f64 / 400.0;
    let spread = first.iter().map(|&c| (c as f64 - mean).powi(2)).sum::<f64>() / 400.0;
    assert!((mean - 4.06).abs() < 0.35, "{mean}"); // 4 / (1 - .75^16): steps that reveal nothing are dropped
    assert!((spread - 2.8).abs() < 0.7, "{spread}");
}

#[test]
fn gumbel_noise_draws_positions_in_proportion_to_their_probability() {
    let wins = |top1: [f32; 2]| {
        (0..4000u64)
            .filter(|&uid| {
                let rng = stp_core::rng::RowRng::new(1, uid);
                let score =
                    |p: usize| stp_core::select::Score::read(&[0.0, 0.0, top1[p], 0.0, 0.0, 0.0, 0.0]);
                let rank = |p: usize| {
                    let u = rng.uniform(stp_core::rng::Lane::Order, 0, p as u32);
                    Confidence::Gumbel.rank(&score(p), p as u32, u)
                };
                rank(0) > rank(1)
            })
            .count()
    };
    let share = wins([0.75f32.ln(), 0.25f32.ln()]) as f64 / 4000.0;
    assert!((share - 0.75).abs() < 0.03, "{share}");
}
