//! Designs whose masks are given states: the rollout's own, left to right, or block by block.

use super::Job;
use super::chance::{Chance, Scope};
use super::row::{Real, Row};
use crate::error::Result;

/// `trajectory`: the realised states, each scoring the tokens revealed there.
///
/// With K = 0, or K at least the number of steps, every state once with weight 1: the trajectory's log-likelihood.
/// Otherwise K states, systematic with probability proportional to the tokens a step reveals (steps with probability
/// 1 are taken for certain), and weight 1 / probability.
pub(super) fn trajectory<C: Chance, W: Real>(job: &mut Job<'_, C, W>) -> Result<()> {
    by_step(&job.row, &mut job.work.items)?;
    let steps = job.row.plan.len();
    if job.num_mc() == 0 || job.num_mc() >= steps {
        for s in 0..steps {
            state(job, s, 1.0);
        }
        return Ok(());
    }
    let (certain, total, left) = certainties(&job.row, job.num_mc());
    job.chance.turn(Scope::Row);
    let cell = job.chance.below(total as u32) as usize;
    let mut before = 0;
    for s in 0..steps {
        let size = revealed(&job.row, s);
        if size >= certain {
            state(job, s, 1.0);
            continue;
        }
        // points (i + u) total / left with u mid-cell; this step owns before..before + size
        let (low, high) = (left * before, left * (before + size));
        let reached = |end: usize| if end > cell { (end - cell).div_ceil(total) } else { 0 };
        if reached(high) > reached(low) {
            state(job, s, total as f64 / (left * size) as f64);
        }
        before += size;
    }
    Ok(())
}

/// `step_merge` (d2): the steps cut into K even stretches, each scored as one step from the state before it; weight 1.
///
/// K = 1 is the one-step product from the canvas, K at least the number of steps the trajectory.
pub(super) fn step_merge<C: Chance, W: Real>(job: &mut Job<'_, C, W>) -> Result<()> {
    by_step(&job.row, &mut job.work.items)?;
    let (steps, order) = (job.row.plan.len(), &job.work.items);
    let stretches = job.design.options.num_mc.min(steps);
    let start = |s: usize| order.len() - job.row.plan.get(s).map_or(0, |&l| l as usize);
    for k in 0..stretches {
        let (first, after) = (start(k * steps / stretches), start((k + 1) * steps / stretches));
        let mut pass = job.out.pass();
        pass.mask(&order[first..]);
        pass.score(&order[first..after], 1.0);
    }
    Ok(())
}

/// `c_s`, the tokens that step s reveals.
pub(super) fn revealed(row: &Row<'_>, s: usize) -> usize {
    (row.plan[s] - row.plan.get(s + 1).copied().unwrap_or(0)) as usize
}

/// (size from which a step is certain, tokens of the other steps, passes left for them).
fn certainties(row: &Row<'_>, num_mc: usize) -> (usize, usize, usize) {
    let mut certain = usize::MAX;
    loop {
        let (mut total, mut left) = (0, num_mc);
        for s in 0..row.plan.len() {
            let size = revealed(row, s);
            if size >= certain { left -= 1 } else { total += size }
        }
        let next = total.div_ceil(left.max(1));
        if next >= certain || !(0..row.plan.len()).any(|s| (next..certain).contains(&revealed(row, s))) {
            return (certain, total, left);
        }
        certain = next;
    }
}

/// Writes the state before step s: `items` is in the order of revealing.
fn state<C: Chance, W: Real>(job: &mut Job<'_, C, W>, s: usize, weight: f64) {
    let order = &job.work.items;
    let start = order.len() - job.row.plan[s] as usize;
    let mut pass = job.out.pass();
    pass.mask(&order[start..]);
    pass.score(&order[start..start + revealed(&job.row, s)], weight);
}

/// Puts the free positions into `items` in the order of revealing, and checks them against the plan.
pub(super) fn by_step(row: &Row<'_>, items: &mut Vec<u32>) -> Result<()> {
    let step = |&i: &u32| row.unmask_step[i as usize];
    let rolled = row.unmask_step.iter().filter(|&&s| s >= 0).count();
    if rolled != row.n() || row.free.iter().any(|i| step(i) < 0) {
        return Err(row.refuse(
            format!("{} eligible positions, {rolled} of the row revealed by the rollout", row.n()),
            "eligible exactly where unmask_step >= 0: a prior token has no step (score_prior needs another design)",
        ));
    }
    items.clear();
    items.extend_from_slice(row.free);
    if items.windows(2).any(|pair| step(&pair[0]) > step(&pair[1])) {
        items.sort_unstable_by_key(|i| (step(i), *i));
    }
    let mut steps = 0;
    let same = items.chunk_by(|i, j| step(i) == step(j)).all(|group| {
        steps += 1;
        steps <= row.plan.len() && revealed(row, steps - 1) == group.len()
    });
    if same && steps == row.plan.len() {
        return Ok(());
    }
    Err(row.refuse(
        "unmask_step that reveals other numbers of tokens than unmask_counts",
        "the row's realised plan: one count per step that revealed something, n minus what was revealed before",
    ))
}

/// `autoregressive` (`JustGRPO`): n left-to-right states, each scoring its first masked token.
pub(super) fn autoregressive<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    for i in 0..job.row.n() {
        let mut pass = job.out.pass();
        pass.mask(&job.row.free[i..]);
        pass.score(&job.row.free[i..=i], 1.0);
    }
}

/// `block_random` (SPG): a random block partly masked, earlier blocks clean, later ones masked; weight 1 / (K |M|).
///
/// Blocks are drawn without replacement (and over again when K exceeds them), counts uniformly in 1..=|block|.
pub(super) fn block_random<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let length = job.design.options.block_length as u32;
    let work = &mut *job.work;
    // the index in `free` where each block with eligible positions starts
    work.starts.clear();
    for (at, &i) in job.row.free.iter().enumerate() {
        if at == 0 || i / length != job.row.free[at - 1] / length {
            work.starts.push(at as u32);
        }
    }
    job.chance.turn(Scope::Row);
    job.chance.shuffle(&mut work.starts);
    let passes = job.design.options.num_mc;
    for k in 0..passes {
        let start = work.starts[k % work.starts.len()] as usize;
        let block = job.row.free[start] / length;
        let len = job.row.free[start..].iter().take_while(|&&i| i / length == block).count();
        job.chance.turn(Scope::Pass(k));
        let count = job.chance.below(len as u32) as usize + 1;
        work.items.clear();
        work.items.extend_from_slice(&job.row.free[start..start + len]);
        job.chance.choose(&mut work.items, count);
        let later = &job.row.free[start + len..];
        let weight = 1.0 / (passes * (count + later.len())) as f64;
        let mut pass = job.out.pass();
        pass.score(&work.items[..count], weight);
        pass.score(later, weight);
    }
}
