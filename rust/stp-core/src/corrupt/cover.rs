//! `cover`, `pairs` and `sink`: masks that go where little weight has gone.

use super::Job;
use super::chance::{Chance, Scope};
use super::row::Real;

/// Two total weights closer than this (relatively) are a tie: they are sums of the same fractions in another order.
const TIE: f64 = 1e-9;

/// Positions in ascending order of total weight, cut into runs of equal weight.
///
/// A pass takes the lightest positions, so it takes whole runs and a random part of one. That makes a pass O(n)
/// with random numbers for one run only, and ties are broken afresh each time.
#[derive(Debug, Default)]
pub(super) struct Runs {
    order: Vec<u32>,
    spare: Vec<u32>,
    runs: Vec<Run>,
    spare_runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    len: usize,
    weight: f64,
}

impl Runs {
    /// All positions with weight 0.
    fn reset(&mut self, free: &[u32]) {
        self.order.clear();
        self.order.extend_from_slice(free);
        self.runs.clear();
        self.runs.push(Run { len: free.len(), weight: 0.0 });
    }

    /// Takes the `count` lightest positions, ties at random, and adds `weight` to each.
    ///
    /// They are `self.order[..count]` until the next call only as a set: the order is by weight again afterwards.
    fn take(&mut self, count: usize, weight: f64, chance: &mut impl Chance, mut each: impl FnMut(&[u32])) {
        let count = count.min(self.order.len());
        let mut start = 0;
        for run in &self.runs {
            let end = start + run.len;
            if end > count {
                chance.choose(&mut self.order[start..end], count - start);
                break;
            }
            start = end;
        }
        each(&self.order[..count]);
        self.merge(count, weight);
    }

    /// Restores the order by weight: a merge of the taken runs (each heavier by `weight`) and the others.
    fn merge(&mut self, count: usize, weight: f64) {
        self.spare.clear();
        self.spare_runs.clear();
        let (mut taken, mut other) = (Cursor::new(0, count), Cursor::new(count, self.order.len()));
        taken.seek(&self.runs);
        other.seek(&self.runs);
        while taken.at < taken.end || other.at < other.end {
            let light = |cursor: &Cursor, extra: f64| {
                if cursor.at < cursor.end { self.runs[cursor.run].weight + extra } else { f64::INFINITY }
            };
            let (first, second) = (light(&taken, weight), light(&other, 0.0));
            let (cursor, total) = if first <= second { (&mut taken, first) } else { (&mut other, second) };
            let stop = (cursor.run_start + self.runs[cursor.run].len).min(cursor.end);
            self.spare.extend_from_slice(&self.order[cursor.at..stop]);
            let len = stop - cursor.at;
            match self.spare_runs.last_mut() {
                Some(last) if (total - last.weight) <= TIE * total => last.len += len,
                _ => self.spare_runs.push(Run { len, weight: total }),
            }
            cursor.at = stop;
            cursor.seek(&self.runs);
        }
        std::mem::swap(&mut self.order, &mut self.spare);
        std::mem::swap(&mut self.runs, &mut self.spare_runs);
    }
}

/// A walk over the runs inside `at..end`.
struct Cursor {
    at: usize,
    end: usize,
    run: usize,
    run_start: usize,
}

impl Cursor {
    fn new(at: usize, end: usize) -> Self {
        Self { at, end, run: 0, run_start: 0 }
    }

    /// Moves `run` to the one that holds `at`.
    fn seek(&mut self, runs: &[Run]) {
        while self.run < runs.len() && self.run_start + runs[self.run].len <= self.at {
            self.run_start += runs[self.run].len;
            self.run += 1;
        }
    }
}

/// The mass coordinate of stratum `k` of `of`, for offset cell `cell` of n: `ceil(n (k + u) / of)`, u mid-cell.
///
/// As a function of the offset u it is constant inside each of n equal cells, so n cells are the whole law.
pub(super) fn stratum(n: usize, k: usize, of: usize, cell: u32) -> usize {
    (2 * (n * k + cell as usize) + 1).div_ceil(2 * of)
}

/// `cover`: counts from `num_mc` equal strata with one offset, each mask on the lightest positions so far.
pub(super) fn cover<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    job.chance.turn(Scope::Row);
    spread(job, job.num_mc, 1.0);
}

/// One draw of `cover` with `passes` passes, every weight scaled.
fn spread<C: Chance, W: Real>(job: &mut Job<'_, C, W>, passes: usize, scale: f64) {
    let n = job.row.n();
    let cell = job.chance.below(n as u32);
    job.work.runs.reset(job.row.free);
    for k in 0..passes {
        let count = job.row.count_at(stratum(n, k, passes, cell));
        let weight = n as f64 / (passes * count) as f64;
        let mut pass = job.out.pass();
        job.work.runs.take(count, weight, job.chance, |taken| pass.score(taken, weight * scale));
    }
}
