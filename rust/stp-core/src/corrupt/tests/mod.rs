//! What all tests of the designs share: small cases, an adversarial policy, and its enumerated targets.
#![allow(clippy::unwrap_used, reason = "a failed check is a failed test")]

mod invariants;
mod laws;
mod refusals;

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
    mass: Vec<f32>,
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
            mass: Vec::new(),
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
            mass: &self.mass,
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

/// An adversarial tabular policy: `f_i(M)` is an independent number for every pair.
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
    let law = design.law(&case.batch(), 0, 2_000_000).unwrap();
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
