//! Laws of the rollout scheduler, with a model that is a hash of the canvas.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test may panic")]

mod common;

use common::{Case, EOS, MASK, PAD, case, cases, drive, plain};
use proptest::prelude::*;
use stp_core::layout::Layout;
use stp_core::marks::{PRIOR, Stop, UNDRAWN};
use stp_core::prior::Anchor;
use stp_core::rollout::{Request, Scheduler};

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
                    None if row.stop == Stop::Eos as u8 && row.steps[p] == UNDRAWN => prop_assert_eq!((row.tokens[p], row.logprob[p]), (EOS, 0.0)),
                    None => prop_assert!(row.tokens[p] != MASK && (0..row.nfe).contains(&row.steps[p])),
                }
            }
            let free = case.length - anchors.len();
            prop_assert!(row.nfe as usize <= free, "every forward reveals a token");
            for s in 0..row.nfe {
                prop_assert!(row.steps.contains(&s), "no step is wasted");
            }
            prop_assert_eq!(row.stop == Stop::Prior as u8, free == 0);
            if case.unmasking.max_nfe > 0 { prop_assert!(row.nfe as usize <= case.unmasking.max_nfe); }
            let layout = Layout::new(case.prompt.len(), case.length, case.unmasking.block_length);
            let positions: Vec<u32> = (0..case.length as u32).filter(|p| !anchors.contains_key(&(*p as usize))).collect();
            if let Some(plan) = case.unmasking.plan(&positions, &layout) {
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
    let unmasking = plain(2, "none");
    assert!(s.commit(&[]).unwrap_err().to_string().contains("next_step first"));
    let prior = [Anchor { position: 4, id: 5, source: 0 }];
    let request = |prompt, prior| Request { uid: 0, prompt, completion_length: 4, prior, unmasking };
    assert!(
        s.submit(&[request(&[5], &[]), request(&[5], &prior)]).unwrap_err().to_string().contains("below 4")
    );
    assert!(s.submit(&[request(&[MASK], &[])]).is_err() && s.is_empty());
    let long = Request { completion_length: 1 << 15, ..request(&[5], &[]) };
    assert!(s.submit(&[long]).unwrap_err().to_string().contains("at most 32767"));
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
