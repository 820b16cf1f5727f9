//! Designs that score states which the rollout visited: `state`, `canvas`, `decision` and `top_states`.
//!
//! A confidence decoder never visits a random context. Scoring all masked tokens of what it did visit may be biased
//! and is far less noisy than a likelihood over random masks (`docs/variance.md`). With `p_s` the law of the states, the first two estimate
//! `sum_s p_s mean_{i masked at s} f_i(state_s)`, a mean per token; the third is unbiased for the trajectory.

use super::Job;
use super::chance::{Chance, Scope};
use super::row::{Real, Row};
use super::states::{by_step, revealed};
use crate::error::{Error, Result};

/// A mass this close to a whole share of the draw is drawn for certain.
const CERTAIN: f64 = 1.0 - 1e-12;

/// Working memory: a number per state of the row, and the cells of the offset.
#[derive(Debug, Default)]
pub(super) struct Visits {
    /// What a state is drawn in proportion to.
    mass: Vec<f64>,
    /// Probability that it is among those drawn.
    inclusion: Vec<f64>,
    taken: Vec<bool>,
    /// `sum_{s <= r} p_s / l_s`: what a token that is revealed at step r weighs on average.
    expected: Vec<f64>,
    cuts: Vec<f64>,
    cells: Vec<f64>,
}

/// States with at least the configured share of the free tokens masked: a prefix of the plan, the canvas among them.
pub(super) fn upper(row: &Row<'_>, truncate: Option<(f64, f64)>) -> usize {
    let least = truncate.map_or(0.0, |(low, _)| low) * row.n() as f64 - 1e-9;
    row.plan.iter().take_while(|&&l| f64::from(l) >= least).count().max(1)
}

/// How many of `states` states a row with K = `num_mc` draws; 0 draws all.
pub(super) fn count(num_mc: usize, states: usize) -> usize {
    if num_mc == 0 { states } else { num_mc.min(states) }
}

/// `state`: K of the upper states, drawn in proportion to their mass, every masked token scored.
///
/// The weight of a token is `p_s / (pi_s l_s)`, `pi_s` the probability that the state is drawn; with divided weights it
/// is also divided by n times the token's expected weight, so that every token weighs 1 / n on average.
pub(super) fn state<C: Chance, W: Real>(job: &mut Job<'_, C, W>) -> Result<()> {
    by_step(&job.row, &mut job.work.items)?;
    let states = upper(&job.row, job.design.options.truncate);
    draw(job, 0, states, count(job.num_mc(), states))?;
    score_masked(job, 0, states, 1.0);
    Ok(())
}

/// `canvas`: all free tokens masked, one input for every completion of a group; with K > 1 also K - 1 later states as
/// `state` draws them, each pass with the same total weight.
pub(super) fn canvas<C: Chance, W: Real>(job: &mut Job<'_, C, W>) -> Result<()> {
    by_step(&job.row, &mut job.work.items)?;
    let states = upper(&job.row, job.design.options.truncate);
    let later = (job.num_mc() - 1).min(states - 1);
    draw(job, 1, states, later)?;
    score_masked(job, 1, states, later as f64 / (later + 1) as f64);
    Ok(())
}

/// `decision`: K states in proportion to their mass, scoring what was revealed there with weight `1 / pi_s`.
///
/// Unbiased for the trajectory's log-likelihood and its gradient, whatever the masses: with `1 - p` of the revealed
/// tokens as mass it goes where the policy had a choice. K = 0 takes every state.
pub(super) fn decision<C: Chance, W: Real>(job: &mut Job<'_, C, W>) -> Result<()> {
    by_step(&job.row, &mut job.work.items)?;
    let states = job.row.plan.len();
    draw(job, 0, states, count(job.num_mc(), states))?;
    for s in 0..states {
        let (order, visits) = (&job.work.items, &job.work.visits);
        if visits.taken[s] {
            let start = order.len() - job.row.plan[s] as usize;
            let mut pass = job.out.pass();
            pass.mask(&order[start..]);
            pass.score(&order[start..start + revealed(&job.row, s)], 1.0 / visits.inclusion[s]);
        }
    }
    Ok(())
}

/// `top_states` (EGSPO): the K states of the largest mass, of equals the earlier, scoring what was revealed there.
///
/// The weights make a mean over the states taken, per token that a step reveals on average: `T / (K n c_s)` for each
/// of the `c_s` tokens. K = 0 takes every state. Nothing is drawn.
pub(super) fn top_states<C: Chance, W: Real>(job: &mut Job<'_, C, W>) -> Result<()> {
    by_step(&job.row, &mut job.work.items)?;
    let states = job.row.plan.len();
    let take = count(job.num_mc(), states);
    let visits = &mut job.work.visits;
    visits.weigh(&job.row, 0, states, &job.work.items)?;
    for _ in 0..take {
        let left = (0..states).rev().filter(|&s| !visits.taken[s]);
        // of equals `max_by` returns the last, in reverse the earliest
        if let Some(best) = left.max_by(|&a, &b| visits.mass[a].total_cmp(&visits.mass[b])) {
            visits.taken[best] = true;
        }
    }
    let n = job.row.n();
    for s in 0..states {
        let (order, visits) = (&job.work.items, &job.work.visits);
        if visits.taken[s] {
            let (start, size) = (order.len() - job.row.plan[s] as usize, revealed(&job.row, s));
            let mut pass = job.out.pass();
            pass.mask(&order[start..]);
            pass.score(&order[start..start + size], states as f64 / (take * n * size) as f64);
        }
    }
    Ok(())
}

/// Draws `take` of the states `first..states` without replacement, in proportion to their mass.
///
/// Systematic: states whose mass is a whole share are taken for certain; of the others one offset places evenly spaced
/// points. The offset is cut where the choice changes, so the choice is one of finitely many.
fn draw<C: Chance, W>(job: &mut Job<'_, C, W>, first: usize, states: usize, take: usize) -> Result<()> {
    let visits = &mut job.work.visits;
    visits.weigh(&job.row, first, states, &job.work.items)?;
    let (total, left) = visits.certain(first, take);
    if left == 0 {
        return Ok(());
    }
    visits.cuts.clear();
    visits.cuts.extend([0.0, 1.0]);
    let mut end = 0.0;
    for s in first..states {
        if !visits.taken[s] {
            visits.inclusion[s] = visits.mass[s] * left as f64 / total;
            end += visits.inclusion[s];
            visits.cuts.push(end.fract());
        }
    }
    visits.cuts.sort_unstable_by(f64::total_cmp);
    visits.cells.clear();
    // a sum that should be whole ends beside it: such a sliver is rounding, and no interval
    visits.cells.extend(visits.cuts.windows(2).map(|c| if c[1] - c[0] > 1e-9 { c[1] - c[0] } else { 0.0 }));
    job.chance.turn(Scope::Row);
    let cell = job.chance.weighted(&visits.cells);
    let offset = f64::midpoint(visits.cuts[cell], visits.cuts[cell + 1]);
    let mut end = 0.0;
    for s in first..states {
        if !visits.taken[s] {
            let start = end;
            end += visits.inclusion[s];
            visits.taken[s] = (end - offset).floor() > (start - offset).floor();
        }
    }
    Ok(())
}

impl Visits {
    /// Sums the tokens' masses by the step that revealed them; nothing is taken yet.
    fn weigh(&mut self, row: &Row<'_>, first: usize, states: usize, order: &[u32]) -> Result<()> {
        self.mass.clear();
        self.mass.resize(states, 0.0);
        for s in first..states {
            let start = order.len() - row.plan[s] as usize;
            let tokens = &order[start..start + revealed(row, s)];
            self.mass[s] = if row.mass.is_empty() {
                tokens.len() as f64
            } else {
                tokens.iter().map(|&i| f64::from(row.mass[i as usize])).sum()
            };
            if !(self.mass[s].is_finite() && self.mass[s] > 0.0) {
                let got = format!("{} in row {} at step {s}", self.mass[s], row.index);
                return Err(Error::value("mass", got, "a positive number: every state must have a chance"));
            }
        }
        self.inclusion.clear();
        self.inclusion.resize(states, 0.0);
        self.taken.clear();
        self.taken.resize(states, false);
        Ok(())
    }

    /// Takes the states whose mass is a whole share of the draw; returns the others' mass and the passes left for them.
    fn certain(&mut self, first: usize, take: usize) -> (f64, usize) {
        let mut left = take;
        loop {
            let others = (first..self.mass.len()).filter(|&s| !self.taken[s]);
            let total: f64 = others.map(|s| self.mass[s]).sum();
            let share = total / left.max(1) as f64;
            let before = left;
            for s in first..self.mass.len() {
                if left > 0 && !self.taken[s] && self.mass[s] >= CERTAIN * share {
                    (self.taken[s], self.inclusion[s]) = (true, 1.0);
                    left -= 1;
                }
            }
            if left == 0 || left == before {
                return (total, left);
            }
        }
    }
}

/// Writes the drawn states `first..states` with every masked token scored; `scale` is their part of the whole weight,
/// and with `first` 1 the canvas comes before them with the rest.
fn score_masked<C: Chance, W: Real>(job: &mut Job<'_, C, W>, first: usize, states: usize, scale: f64) {
    let (row, visits, order) = (&job.row, &mut job.work.visits, &job.work.items);
    let n = order.len();
    let total: f64 = visits.mass.iter().skip(first).sum();
    let chance = |visits: &Visits, s: usize| {
        if s < first { 1.0 - scale } else { visits.mass[s] / total * scale }
    };
    visits.expected.clear();
    let mut sum = 0.0;
    for s in 0..row.plan.len() {
        let reached = s < states && (s < first || scale > 0.0);
        sum += if reached { chance(visits, s) / f64::from(row.plan[s]) } else { 0.0 };
        visits.expected.push(sum);
    }
    for s in 0..states {
        let drawn = if s < first {
            1.0 - scale
        } else if scale > 0.0 && visits.taken[s] {
            chance(visits, s) / visits.inclusion[s]
        } else {
            continue;
        };
        let weight = drawn / f64::from(row.plan[s]);
        let mut pass = job.out.pass();
        if !job.design.options.divide_weights {
            pass.score(&order[n - row.plan[s] as usize..], weight);
            continue;
        }
        for r in s..row.plan.len() {
            let start = n - row.plan[r] as usize;
            pass.score(&order[start..start + revealed(row, r)], weight / (n as f64 * visits.expected[r]));
        }
    }
}
