//! Invariants of keyed draws, for every design.

use proptest::prelude::*;

use super::*;

/// A random batch whose rows differ in eligible positions and plans.
fn case() -> impl Strategy<Value = Case> {
    (1usize..5, 1usize..24).prop_flat_map(|(rows, length)| {
        (
            proptest::collection::vec(0u8..2, rows * length),
            proptest::collection::vec(any::<bool>(), rows * length),
        )
            .prop_map(move |(eligible, keep)| {
                let mut case = Case { rows, length, eligible, max_steps: length, ..Case::default() };
                for r in 0..rows {
                    let flags = &case.eligible[r * length..(r + 1) * length];
                    let n: usize = flags.iter().map(|&e| usize::from(e)).sum();
                    let mut plan: Vec<i32> =
                        (1..=n).rev().filter(|&l| l == n || keep[r * length + l]).map(|l| l as i32).collect();
                    let mut revealed = 0;
                    for &flag in flags {
                        let left = (n - revealed) as i32;
                        let step = plan.iter().rposition(|&l| l >= left).unwrap_or(0) as i32;
                        case.unmask_step.push(if flag == 1 { step } else { -1 });
                        revealed += usize::from(flag);
                    }
                    plan.resize(length, 0);
                    case.unmask_counts.extend(plan);
                }
                case
            })
    })
}

/// Designs with options that fit any row, and what their weights of a row sum to: n, 1, or nothing fixed.
fn any_design(which: usize, num_mc: usize) -> (Design, Option<bool>) {
    let even = 2 * num_mc.div_ceil(2);
    let options = Options { num_mc, num_iterations: 4, block_length: 5, ..Options::default() };
    let with = |name: &str, num_mc: usize| Design::new(name, Options { num_mc, ..options }).unwrap();
    let truncated = |name: &str, num_mc: usize, truncate: (f64, f64)| {
        Design::new(name, Options { num_mc, truncate: Some(truncate), ..options }).unwrap()
    };
    match which {
        0 => (with("uniform_count", num_mc), Some(true)),
        1 => (with("systematic", num_mc), Some(true)),
        2 => (with("quadrature", num_mc), Some(true)),
        3 => (with("cover", num_mc), Some(true)),
        4 => (with("pairs", even), Some(true)),
        5 => (with("sink", num_mc), Some(true)),
        6 => (with("ordered", num_mc), Some(true)),
        7 => (with("mean_field", num_mc), Some(true)),
        8 => (with("autoregressive", num_mc), Some(true)),
        9 => (with("trajectory", 0), Some(true)),
        10 => (with("trajectory", num_mc), None),
        11 => (with("unigrpo", num_mc), Some(false)),
        12 => (with("block_random", num_mc), Some(false)),
        13 => (with("stp_paper", num_mc), None),
        14 => (with("bernoulli", num_mc), None),
        15 => (with("coupled", even), None),
        16 => (with("spread", num_mc), Some(true)),
        17 => (truncated("coupled", num_mc + 1, (0.2, 0.8)), None),
        18 => (with("state", 0), Some(false)),
        19 => (truncated("state", 1, (0.5, 1.0)), None),
        20 => (with("state", num_mc), None),
        21 => (with("canvas", 1), Some(false)),
        22 => (truncated("canvas", num_mc, (0.25, 1.0)), None),
        23 => (with("decision", num_mc), None),
        24 => (with("step_merge", num_mc), Some(true)),
        25 => (with("top_states", num_mc), None),
        _ => (truncated("bernoulli", num_mc, (1e-3, 1.0)), None),
    }
}

/// How many designs `any_design` knows.
const ANY: usize = 27;

proptest! {
    #[test]
    fn masks_stay_inside_the_eligible_positions_and_weights_inside_the_mask(
        case in case(), which in 0..ANY, num_mc in 1usize..6, seed: u64, iteration in 0u32..4
    ) {
        let (design, total) = any_design(which, num_mc);
        let uids: Vec<u64> = (0..case.rows as u64).collect();
        let drawn = case.draw(&design, seed, &uids, iteration).unwrap();
        let length = case.length;
        for r in 0..case.rows {
            let eligible = &case.eligible[r * length..(r + 1) * length];
            let n = eligible.iter().map(|&e| usize::from(e)).sum::<usize>();
            let mut sum = 0.0;
            let mut passes = 0;
            for (p, _) in drawn.row.iter().enumerate().filter(|&(_, &row)| row as usize == r) {
                let mask = &drawn.mask[p * length..(p + 1) * length];
                let weight = &drawn.weight[p * length..(p + 1) * length];
                passes += 1;
                for i in 0..length {
                    prop_assert!(mask[i] <= eligible[i]);
                    prop_assert!(weight[i] >= 0.0 && weight[i].is_finite());
                    prop_assert!(weight[i] == 0.0 || mask[i] == 1);
                    sum += f64::from(weight[i]);
                }
            }
            prop_assert_eq!(passes == 0, n == 0);
            if let Some(sequence) = total && n > 0 {
                let want = if sequence { n as f64 } else { 1.0 };
                prop_assert!((sum - want).abs() < 1e-3, "{} {} {}", design.info().name, sum, want);
            }
        }
    }

    #[test]
    fn counts_come_from_the_plan(case in case(), which in 0..ANY, num_mc in 1usize..6, seed: u64) {
        let (design, _) = any_design(which, num_mc);
        prop_assume!(design.info().target == Target::PlanElbo);
        let uids: Vec<u64> = (0..case.rows as u64).collect();
        let drawn = case.draw(&design, seed, &uids, 0).unwrap();
        for (mask, &r) in drawn.mask.chunks(case.length).zip(&drawn.row) {
            let count: i32 = mask.iter().map(|&m| i32::from(m)).sum();
            let plan = &case.unmask_counts[r as usize * case.length..(r as usize + 1) * case.length];
            prop_assert!(plan.contains(&count));
        }
    }

    #[test]
    fn a_row_draws_the_same_alone_and_in_any_batch(
        case in case(), which in 0..ANY, num_mc in 1usize..6, seed: u64, iteration in 0u32..4
    ) {
        let (design, _) = any_design(which, num_mc);
        let uids: Vec<u64> = (0..case.rows as u64).map(|r| r * 7 + 3).collect();
        let together = case.draw(&design, seed, &uids, iteration).unwrap();
        prop_assert_eq!(&together, &case.draw(&design, seed, &uids, iteration).unwrap());
        let length = case.length;
        for r in 0..case.rows {
            let at = r * length..(r + 1) * length;
            let alone = Case {
                rows: 1,
                length,
                eligible: case.eligible[at.clone()].to_vec(),
                max_steps: length,
                unmask_counts: case.unmask_counts[at.clone()].to_vec(),
                unmask_step: case.unmask_step[at].to_vec(),
                mass: Vec::new(),
            };
            let drawn = alone.draw(&design, seed, &uids[r..=r], iteration).unwrap();
            let from = together.row.iter().position(|&row| row as usize == r).unwrap_or(0) * length;
            prop_assert_eq!(&drawn.mask, &together.mask[from..from + drawn.mask.len()]);
            prop_assert_eq!(&drawn.weight, &together.weight[from..from + drawn.weight.len()]);
        }
    }
}

#[test]
fn seed_uid_and_iteration_change_the_masks() {
    let case = Case::row(20, &[20, 18, 16, 15, 13, 12, 10, 8, 5]);
    for which in 0..ANY {
        let (design, _) = any_design(which, 3);
        let name = design.info().name;
        let fixed = ["mean_field", "autoregressive", "step_merge", "top_states"].contains(&name)
            || [9, 18, 21].contains(&which);
        let draws = |seed, uid, iteration| case.draw(&design, seed, &[uid], iteration).unwrap();
        let mut differ = [false; 3];
        for base in 0..8 {
            let first = draws(base, 2, 0);
            differ[0] |= first != draws(base + 100, 2, 0);
            differ[1] |= first != draws(base, 9, 0);
            differ[2] |= first != draws(base, 2, 1);
        }
        assert_eq!(differ, [!fixed; 3], "{name}");
    }
}
