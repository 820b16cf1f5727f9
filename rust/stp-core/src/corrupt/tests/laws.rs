//! Exact laws: every random path of the sampler is enumerated, so these are sums, not averages.

use std::collections::BTreeMap;

use super::*;

fn full_plan(n: usize) -> Vec<i32> {
    (1..=n as i32).rev().collect()
}

/// The log-likelihood of the left-to-right trajectory that `Case::row` realises, and of the plan with `c_s = 1`.
fn left_to_right(table: u64, n: usize, plan: &[i32]) -> f64 {
    let next = plan.iter().skip(1).copied().chain([0]);
    plan.iter()
        .zip(next)
        .map(|(&l, after)| {
            let mask: Vec<u8> = (0..n).map(|i| u8::from(i >= n - l as usize)).collect();
            (n - l as usize..n - after as usize).map(|i| f(table, i, &mask)).sum::<f64>()
        })
        .sum()
}

/// (name, passes, largest n to enumerate) of the designs whose expectation must be their target.
const UNBIASED: [(&str, &[usize], usize); 19] = [
    ("bernoulli", &[1], 5),
    ("uniform_count", &[1, 2], 3),
    ("systematic", &[1, 2, 3], 3),
    ("coupled", &[2], 5),
    ("trajectory", &[0, 1, 2, 3, 9], 6),
    ("decision", &[0, 1, 2, 3, 9], 6),
    ("autoregressive", &[2], 6),
    ("cover", &[1, 2], 6),
    ("cover", &[3], 5),
    ("cover", &[5, 8], 4),
    ("spread", &[1, 2], 6),
    ("spread", &[3], 5),
    ("spread", &[4, 5], 4),
    ("pairs", &[2], 5),
    ("pairs", &[4], 3),
    ("sink", &[1, 2, 3], 5),
    ("sink", &[5], 4),
    ("balanced", &[1, 2, 3, 4, 9], 5),
    ("ordered", &[2], 5),
];

#[test]
fn unbiased_designs_have_their_target_as_expectation() {
    for (name, passes, largest) in UNBIASED {
        for &num_mc in passes {
            let design = design(name, num_mc);
            assert!(design.unbiased());
            for n in 1..=largest {
                for plan in plans(n) {
                    // masses are read by `decision` only, whose target must not depend on them
                    let mass = (0..n).map(|i| 0.1 + (i * i % 7) as f32).collect();
                    let case = Case { mass, ..Case::row(n, &plan) };
                    if design.passes(&case.batch(), &mut Scratch::default(), &mut [0]).is_err() {
                        assert_eq!(name, "balanced");
                        continue;
                    }
                    let table = n as u64 * 1000 + num_mc as u64;
                    let want = match design.info().target {
                        Target::FullElbo => plan_elbo(table, n, &full_plan(n)),
                        Target::Trajectory => left_to_right(table, n, &plan),
                        Target::Autoregressive => left_to_right(table, n, &full_plan(n)),
                        _ => plan_elbo(table, n, &plan),
                    };
                    let got = expectation(&design, &case, table);
                    assert!((got - want).abs() < 1e-9, "{name} K={num_mc} {plan:?}: {got} {want}");
                }
            }
        }
    }
    let tested: Vec<&str> = UNBIASED.iter().map(|u| u.0).collect();
    assert!(designs().iter().all(|info| info.unbiased == tested.contains(&info.name)));
}

#[test]
fn a_sampled_trajectory_takes_large_steps_for_certain() {
    // 6 tokens at once, then 1, 1, 1: with K = 2 the large step has probability 1, the others 1/3 each
    let case = Case::row(9, &[9, 3, 2, 1]);
    let law = design("trajectory", 2).law(&case.batch(), 0, 1000).unwrap();
    assert_eq!(law.len(), 3);
    for o in law {
        assert!((o.probability - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(o.weight[..9], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
        assert!((o.weight[9..].iter().sum::<f64>() - 3.0).abs() < 1e-12);
    }
}

#[test]
fn designs_of_plan_groups_score_every_token_once_with_weight_one() {
    for name in ["balanced", "ordered", "autoregressive", "trajectory", "mean_field"] {
        let num_mc = if name == "trajectory" { 0 } else { 3 };
        for n in 1..=5 {
            for plan in plans(n) {
                let case = Case::row(n, &plan);
                let Ok(law) = design(name, num_mc).law(&case.batch(), 0, 1_000_000) else { continue };
                for o in law {
                    for i in 0..n {
                        let total: f64 = o.weight.iter().skip(i).step_by(n).sum();
                        assert!((total - 1.0).abs() < 1e-12, "{name} {plan:?}");
                        assert_eq!(o.weight.iter().skip(i).step_by(n).filter(|&&w| w != 0.0).count(), 1);
                    }
                }
            }
        }
    }
}

#[test]
fn sink_fits_token_totals_where_the_masks_allow_it() {
    // all counts are above n/2: totals of 1 exist with positive weights, and the fit is quick. At n/2 they exist
    // only with zeros, which the fit nears like 1 / sweeps.
    for (n, plan, close) in [(6, vec![6, 5, 4], 1e-11), (5, vec![5, 3], 1e-11), (6, vec![6, 3], 0.01)] {
        for o in design("sink", 2).law(&Case::row(n, &plan).batch(), 0, 1_000_000).unwrap() {
            for i in 0..n {
                assert!((o.weight[i] + o.weight[n + i] - 1.0).abs() < close, "{plan:?} {:?}", o.weight);
            }
        }
    }
    for (n, plan) in [(5, vec![5, 4, 3, 2, 1]), (4, vec![4, 1])] {
        for o in design("sink", 3).law(&Case::row(n, &plan).batch(), 0, 1_000_000).unwrap() {
            for pass in o.weight.chunks(n) {
                let total: f64 = pass.iter().sum();
                assert!((total - n as f64 / 3.0).abs() < 1e-12, "pass totals are exact whatever the fit");
            }
        }
    }
}

#[test]
fn cover_with_one_pass_is_uniform_count() {
    for plan in plans(4) {
        let case = Case::row(4, &plan);
        let law = |name| {
            let outcomes = design(name, 1).law(&case.batch(), 0, 10_000).unwrap();
            outcomes.into_iter().map(|o| (o.mask, o.probability)).collect::<BTreeMap<_, _>>()
        };
        let (cover, uniform) = (law("cover"), law("uniform_count"));
        assert_eq!(cover.len(), uniform.len());
        for (mask, probability) in cover {
            assert!((probability - uniform[&mask]).abs() < 1e-12);
        }
    }
}

#[test]
fn every_mask_of_cover_is_uniform_given_its_count() {
    for (n, plan) in [(4, vec![4, 3, 2, 1]), (5, vec![5, 3, 1]), (5, vec![5, 2])] {
        for (name, num_mc) in [("cover", 2), ("cover", 3), ("cover", 4), ("spread", 3), ("spread", 4)] {
            let law = design(name, num_mc).law(&Case::row(n, &plan).batch(), 0, 4_000_000).unwrap();
            for k in 0..num_mc {
                let mut share: BTreeMap<usize, BTreeMap<Vec<u8>, f64>> = BTreeMap::new();
                for o in &law {
                    let mask = o.mask[k * n..(k + 1) * n].to_vec();
                    let count: usize = mask.iter().map(|&m| usize::from(m)).sum();
                    *share.entry(count).or_default().entry(mask).or_default() += o.probability;
                }
                for (count, masks) in share {
                    let all = (0u32..1 << n).filter(|b| b.count_ones() as usize == count).count();
                    assert_eq!(masks.len(), all, "{name} n {n} K {num_mc} pass {k} count {count}");
                    let (low, high) = masks.values().fold((1f64, 0f64), |(a, b), &p| (a.min(p), b.max(p)));
                    assert!(high - low < 1e-12);
                }
            }
        }
    }
}

#[test]
fn a_pair_of_cover_is_disjoint_or_covers_everything() {
    for n in 1..=6 {
        for plan in plans(n) {
            for o in design("cover", 2).law(&Case::row(n, &plan).batch(), 0, 100_000).unwrap() {
                let (first, second) = o.mask.split_at(n);
                let both = (0..n).filter(|&i| first[i] + second[i] == 2).count();
                let none = (0..n).filter(|&i| first[i] + second[i] == 0).count();
                assert!(both == 0 || none == 0, "{plan:?} {:?}", o.mask);
            }
        }
    }
}
