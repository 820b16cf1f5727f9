//! Laws of every design: exact expectations by enumeration, and invariants of keyed draws.
#![allow(clippy::unwrap_used, reason = "a failed check is a failed test")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::rng::{Lane, RowRng};

/// An owned batch, to build cases quickly.
#[derive(Debug, Clone, Default)]
struct Case {
    rows: usize,
    length: usize,
    eligible: Vec<u8>,
    max_steps: usize,
    unmask_counts: Vec<i32>,
    unmask_step: Vec<i32>,
}

impl Case {
    /// One row of `n` eligible positions, with a plan.
    fn row(n: usize, plan: &[i32]) -> Self {
        let mut unmask_step = vec![0; n];
        for (s, &count) in plan.iter().enumerate() {
            unmask_step[n - count as usize..].fill(s as i32);
        }
        Self {
            rows: 1,
            length: n,
            eligible: vec![1; n],
            max_steps: plan.len(),
            unmask_counts: plan.to_vec(),
            unmask_step,
        }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            rows: self.rows,
            length: self.length,
            eligible: &self.eligible,
            max_steps: self.max_steps,
            unmask_counts: &self.unmask_counts,
            unmask_step: &self.unmask_step,
        }
    }

    fn draw(&self, design: &Design, seed: u64, uids: &[u64], iteration: u32) -> Result<Drawn> {
        let mut scratch = Scratch::default();
        let mut passes = vec![0; self.rows];
        design.passes(&self.batch(), &mut scratch, &mut passes)?;
        let total = passes.iter().sum::<i32>() as usize;
        let mut drawn = Drawn {
            mask: vec![7; total * self.length],
            weight: vec![7.0; total * self.length],
            row: vec![-7; total],
        };
        let mut out = Out { mask: &mut drawn.mask, weight: &mut drawn.weight, row: &mut drawn.row };
        design.draw(&self.batch(), &Keys { seed, uids, iteration }, &mut out, &mut scratch)?;
        Ok(drawn)
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Drawn {
    mask: Vec<u8>,
    weight: Vec<f32>,
    row: Vec<i32>,
}

fn design(name: &str, num_mc: usize) -> Design {
    Design::new(name, Options { num_mc, ..Options::default() }).unwrap()
}

/// An adversarial tabular policy: f_i(M) is an independent number for every pair.
fn f(table: u64, i: usize, mask: &[u8]) -> f64 {
    let bits = mask.iter().fold(1u32, |sum, &m| sum << 1 | u32::from(m));
    RowRng::new(table, u64::from(bits)).uniform(Lane::Task, 0, i as u32).ln().into()
}

/// a(l): the mean over all masks of size l of the mean of f over the mask.
fn a(table: u64, n: usize, l: usize) -> f64 {
    let masks: Vec<Vec<u8>> = (0u32..1 << n)
        .filter(|bits| bits.count_ones() as usize == l)
        .map(|bits| (0..n).map(|i| (bits >> i & 1) as u8).collect())
        .collect();
    let sum: f64 =
        masks.iter().map(|m| (0..n).filter(|&i| m[i] == 1).map(|i| f(table, i, m)).sum::<f64>()).sum();
    sum / (masks.len() * l) as f64
}

fn plan_elbo(table: u64, n: usize, plan: &[i32]) -> f64 {
    let next = plan.iter().skip(1).copied().chain([0]);
    plan.iter().zip(next).map(|(&l, after)| f64::from(l - after) * a(table, n, l as usize)).sum()
}

/// The value of one outcome: sum of weight times f.
fn value(table: u64, length: usize, mask: &[u8], weight: &[f64]) -> f64 {
    mask.chunks(length)
        .zip(weight.chunks(length))
        .map(|(m, w)| (0..length).filter(|&i| w[i] != 0.0).map(|i| w[i] * f(table, i, m)).sum::<f64>())
        .sum()
}

fn expectation(design: &Design, case: &Case, table: u64) -> f64 {
    let law = design.law(&case.batch(), 2_000_000).unwrap();
    let total: f64 = law.iter().map(|o| o.probability).sum();
    assert!((total - 1.0).abs() < 1e-9, "{total}");
    law.iter().map(|o| o.probability * value(table, case.length, &o.mask, &o.weight)).sum()
}

/// Every plan of n tokens: each subset of 1..n below n.
fn plans(n: usize) -> Vec<Vec<i32>> {
    (0u32..1 << (n - 1))
        .map(|bits| {
            let mut plan: Vec<i32> = (1..n as i32).rev().filter(|&l| bits >> (l - 1) & 1 == 1).collect();
            plan.insert(0, n as i32);
            plan
        })
        .collect()
}

#[test]
fn designs_on_a_plan_have_the_plan_elbo_as_expectation() {
    for name in ["uniform_count", "systematic", "cover"] {
        for num_mc in 1..=3 {
            let largest = if name == "cover" || num_mc == 1 { 5 } else { 4 };
            for n in 1..=largest {
                for plan in plans(n) {
                    let table = n as u64 * 1000 + num_mc as u64;
                    let got = expectation(&design(name, num_mc), &Case::row(n, &plan), table);
                    let want = plan_elbo(table, n, &plan);
                    assert!((got - want).abs() < 1e-9, "{name} K={num_mc} {plan:?}: {got} {want}");
                }
            }
        }
    }
}

#[test]
fn cover_with_one_pass_is_uniform_count() {
    for plan in plans(4) {
        let case = Case::row(4, &plan);
        let law = |name| {
            let outcomes = design(name, 1).law(&case.batch(), 10_000).unwrap();
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
        for num_mc in [2, 3, 4] {
            let law = design("cover", num_mc).law(&Case::row(n, &plan).batch(), 2_000_000).unwrap();
            for k in 0..num_mc {
                let mut share: BTreeMap<usize, BTreeMap<Vec<u8>, f64>> = BTreeMap::new();
                for o in &law {
                    let mask = o.mask[k * n..(k + 1) * n].to_vec();
                    let count = mask.iter().filter(|&&m| m == 1).count();
                    *share.entry(count).or_default().entry(mask).or_default() += o.probability;
                }
                for (count, masks) in share {
                    let all = (0u32..1 << n).filter(|b| b.count_ones() as usize == count).count();
                    assert_eq!(masks.len(), all, "n {n} K {num_mc} pass {k} count {count}");
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
            for o in design("cover", 2).law(&Case::row(n, &plan).batch(), 100_000).unwrap() {
                let (first, second) = o.mask.split_at(n);
                let both = (0..n).filter(|&i| first[i] + second[i] == 2).count();
                let none = (0..n).filter(|&i| first[i] + second[i] == 0).count();
                assert!(both == 0 || none == 0, "{plan:?} {:?}", o.mask);
            }
        }
    }
}

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
                    let n = flags.iter().filter(|&&e| e == 1).count();
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

proptest! {
    #[test]
    fn draws_are_masks_of_eligible_positions_with_counts_of_the_plan(
        case in case(), which in 0usize..3, num_mc in 1usize..6, seed: u64, iteration in 0u32..4
    ) {
        let name = ["uniform_count", "systematic", "cover"][which];
        let uids: Vec<u64> = (0..case.rows as u64).collect();
        let drawn = case.draw(&design(name, num_mc), seed, &uids, iteration).unwrap();
        let length = case.length;
        let mut total = vec![0f64; case.rows];
        for (pass, &r) in drawn.row.iter().enumerate() {
            let r = r as usize;
            let mask = &drawn.mask[pass * length..(pass + 1) * length];
            let weight = &drawn.weight[pass * length..(pass + 1) * length];
            let eligible = &case.eligible[r * length..(r + 1) * length];
            for i in 0..length {
                prop_assert!(mask[i] <= eligible[i]);
                prop_assert_eq!(weight[i] != 0.0, mask[i] == 1);
                total[r] += f64::from(weight[i]);
            }
            let count = mask.iter().filter(|&&m| m == 1).count() as i32;
            prop_assert!(case.unmask_counts[r * length..(r + 1) * length].contains(&count));
        }
        for (r, total) in total.iter().enumerate() {
            let n = case.eligible[r * length..(r + 1) * length].iter().filter(|&&e| e == 1).count();
            prop_assert!((total - n as f64).abs() < 1e-3);
            let rows = drawn.row.iter().filter(|&&row| row as usize == r).count();
            prop_assert_eq!(rows, if n == 0 { 0 } else { num_mc });
        }
    }

    #[test]
    fn a_row_draws_the_same_alone_and_in_any_batch(
        case in case(), which in 0usize..3, num_mc in 1usize..6, seed: u64, iteration in 0u32..4
    ) {
        let design = design(["uniform_count", "systematic", "cover"][which], num_mc);
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
            };
            let drawn = alone.draw(&design, seed, &uids[r..=r], iteration).unwrap();
            let passes: Vec<usize> =
                (0..together.row.len()).filter(|&p| together.row[p] as usize == r).collect();
            let cut: Vec<u8> = passes
                .iter()
                .flat_map(|&p| together.mask[p * length..(p + 1) * length].to_vec())
                .collect();
            prop_assert_eq!(&drawn.mask, &cut);
        }
    }
}

#[test]
fn seed_uid_and_iteration_change_the_masks() {
    let case = Case::row(20, &[20, 15, 10, 5]);
    for name in ["uniform_count", "systematic", "cover"] {
        let base = case.draw(&design(name, 3), 1, &[2], 0).unwrap();
        for (seed, uid, iteration) in [(9, 2, 0), (1, 9, 0), (1, 2, 1)] {
            assert_ne!(base, case.draw(&design(name, 3), seed, &[uid], iteration).unwrap(), "{name}");
        }
    }
}

#[test]
fn wrong_calls_say_what_they_need() {
    let text = |result: Result<Drawn>| result.unwrap_err().to_string();
    let cover = design("cover", 2);
    assert!(text(Case::row(3, &[3, 1]).draw(&cover, 0, &[1, 2], 0)).contains("uids"));
    assert!(text(Case::row(3, &[3, 1]).draw(&cover, 0, &[1], 70_000)).contains("iteration"));
    let mut case = Case::row(3, &[3, 1]);
    case.eligible[1] = 2;
    assert!(text(case.draw(&cover, 0, &[1], 0)).contains("0 or 1"));
    let mut case = Case::row(3, &[3, 1]);
    case.unmask_counts[0] = 4;
    assert!(text(case.draw(&cover, 0, &[1], 0)).contains("start at 3"));
    let error = Design::new("covr", Options::default()).unwrap_err().to_string();
    assert!(error.contains("covr") && error.contains("uniform_count"));
    assert!(Design::new("cover", Options { num_mc: 0, ..Options::default() }).is_err());
    assert!(Design::new("cover", Options { num_mc: 1 << 20, ..Options::default() }).is_err());
    let case = Case::row(3, &[3, 1]);
    let (mut mask, mut weight, mut row) = (vec![0; 9], vec![0.0; 9], vec![0; 3]);
    let mut out = Out { mask: &mut mask, weight: &mut weight, row: &mut row };
    let keys = Keys { seed: 0, uids: &[0], iteration: 0 };
    let error = cover.draw(&case.batch(), &keys, &mut out, &mut Scratch::default());
    assert!(error.unwrap_err().to_string().contains("row"));
}
