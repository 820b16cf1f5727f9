//! `cover`, `spread`, `pairs` and `sink`: masks that go where little weight has gone.

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
pub(super) struct ByWeight {
    order: Vec<u32>,
    spare: Vec<u32>,
    runs: Vec<Run>,
    spare_runs: Vec<Run>,
    ties: Ties,
    met: Met,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    len: usize,
    weight: f64,
}

/// How ties are broken.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Ties {
    /// At random.
    #[default]
    Random,
    /// Evenly over the sets of earlier passes that mask a position, inside a set at random.
    Even,
}

/// Which earlier passes mask each position, and how [`Ties::Even`] reads it.
#[derive(Debug, Default)]
struct Met {
    passes: u32,
    /// One bit per pass, by position.
    sets: Vec<u64>,
    /// Where the stretches of equal sets of the run that is cut start, and its end.
    starts: Vec<u32>,
    order: Vec<u32>,
    front: Vec<u32>,
    back: Vec<u32>,
}

impl Met {
    /// No pass yet, for the positions `free`.
    fn reset(&mut self, free: &[u32]) {
        self.passes = 0;
        self.sets.clear();
        self.sets.resize(free.last().map_or(0, |&i| i as usize + 1), 0);
    }

    /// Notes the positions of the next pass.
    fn note(&mut self, taken: &[u32]) {
        for &i in taken {
            self.sets[i as usize] |= 1 << self.passes;
        }
        self.passes += 1;
    }

    /// Moves `take` of `run` to its front: of every set its share, rounded by one systematic sample.
    ///
    /// Sets come in a random order; item j owns `j take .. (j + 1) take`, and the points `i len + offset` choose, so
    /// that an item is taken with probability `take / len` and a set gives its share to within one item.
    fn choose(&mut self, run: &mut [u32], take: usize, chance: &mut impl Chance) {
        let set = |i: u32| self.sets[i as usize];
        if take == 0 || run.windows(2).all(|pair| set(pair[0]) == set(pair[1])) {
            return chance.choose(run, take); // one set: up to two passes always, which therefore are `cover`'s
        }
        run.sort_unstable_by_key(|&i| (set(i), i));
        self.starts.clear();
        self.starts.push(0);
        self.starts
            .extend((1..run.len() as u32).filter(|&j| set(run[j as usize - 1]) != set(run[j as usize])));
        self.order.clear();
        self.order.extend(0..self.starts.len() as u32);
        self.starts.push(run.len() as u32);
        chance.shuffle(&mut self.order);
        let len = run.len();
        let offset = chance.below(len as u32) as usize;
        let points_before = |item: usize| (item * take).saturating_sub(offset).div_ceil(len);
        self.front.clear();
        self.back.clear();
        let mut before = 0;
        for &cell in &self.order {
            let (start, end) = (self.starts[cell as usize] as usize, self.starts[cell as usize + 1] as usize);
            let after = before + end - start;
            let share = points_before(after) - points_before(before);
            let items = &mut run[start..end];
            chance.choose(items, share);
            self.front.extend_from_slice(&items[..share]);
            self.back.extend_from_slice(&items[share..]);
            before = after;
        }
        run[..take].copy_from_slice(&self.front);
        run[take..].copy_from_slice(&self.back);
    }
}

impl ByWeight {
    /// All positions with weight 0.
    fn reset(&mut self, free: &[u32], ties: Ties) {
        self.order.clear();
        self.order.extend_from_slice(free);
        self.runs.clear();
        self.runs.push(Run { len: free.len(), weight: 0.0 });
        self.ties = ties;
        if ties == Ties::Even {
            self.met.reset(free);
        }
    }

    /// Takes the `count` lightest positions, ties as they were asked for, and adds `weight` to each.
    ///
    /// They are `self.order[..count]` until the next call only as a set: the order is by weight again afterwards.
    fn take(&mut self, count: usize, weight: f64, chance: &mut impl Chance, mut each: impl FnMut(&[u32])) {
        let count = count.min(self.order.len());
        let mut start = 0;
        for run in &self.runs {
            let end = start + run.len;
            if end > count {
                let (tied, take) = (&mut self.order[start..end], count - start);
                match self.ties {
                    Ties::Random => chance.choose(tied, take),
                    Ties::Even => self.met.choose(tied, take, chance),
                }
                break;
            }
            start = end;
        }
        each(&self.order[..count]);
        if self.ties == Ties::Even {
            self.met.note(&self.order[..count]);
        }
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
    lightest(job, job.num_mc(), 1.0, Ties::Random);
}

/// `spread`: `cover` with ties broken evenly over the sets of earlier passes that mask a position.
///
/// So tokens that were masked together are parted next, and a token meets more contexts in K passes. The law does not
/// change when positions are renamed, so given its count each mask is uniform, as `cover`'s is.
pub(super) fn spread<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    job.chance.turn(Scope::Row);
    lightest(job, job.num_mc(), 1.0, Ties::Even);
}

/// One draw of `cover` with `passes` passes, every weight scaled.
fn lightest<C: Chance, W: Real>(job: &mut Job<'_, C, W>, passes: usize, scale: f64, ties: Ties) {
    let n = job.row.n();
    let cell = job.chance.below(n as u32);
    job.work.lightest.reset(job.row.free, ties);
    for k in 0..passes {
        let count = job.row.count_at(stratum(n, k, passes, cell));
        let weight = n as f64 / (passes * count) as f64;
        let mut pass = job.out.pass();
        job.work.lightest.take(count, weight, job.chance, |taken| pass.score(taken, weight * scale));
    }
}

/// `pairs`: K/2 independent draws of `cover` with two passes each, averaged.
pub(super) fn pairs<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let pairs = job.num_mc() / 2;
    for pair in 0..pairs {
        job.chance.turn(Scope::Pass(pair));
        lightest(job, 2, 1.0 / pairs as f64, Ties::Random);
    }
}

/// Sweeps of proportional fitting at most.
const SWEEPS: usize = 64;
/// Token totals this close to 1 end the fitting.
const FITTED: f64 = 1e-12;

/// Memory of proportional fitting.
#[derive(Debug, Default)]
pub(super) struct Fit {
    /// The set of passes that mask each free position, one bit per pass.
    sets: Vec<u64>,
    /// Positions with the same set, and the cell of each free position.
    cells: Vec<Cell>,
    cell_of: Vec<u32>,
    pass_factor: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    set: u64,
    len: f64,
    factor: f64,
}

/// `sink`: the masks of `cover`, weights fitted to token totals 1 and pass totals n / K.
///
/// Proportional fitting keeps `w_{k,i} = a_k b_i` on the mask, and b depends only on the set of passes that mask i.
/// The last sweep is over passes, so pass k has total n/K exactly, and by symmetry the mean weight of a masked
/// position given `M_k` is `(n/K)/l_k`: unbiased, whether or not the token totals can be reached.
pub(super) fn sink<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    cover(job);
    let (passes, free) = (job.num_mc(), job.row.free);
    let fit = &mut job.work.fit;
    fit.sets.clear();
    fit.sets.resize(free.len(), 0);
    for k in 0..passes {
        let mask = job.out.written(k).0;
        for (set, &i) in fit.sets.iter_mut().zip(free) {
            *set |= u64::from(mask[i as usize]) << k;
        }
    }
    fit.find_cells();
    fit.solve(passes, free.len() as f64 / passes as f64);
    for k in 0..passes {
        let weight = job.out.written(k).1;
        for (&i, &cell) in free.iter().zip(&fit.cell_of) {
            let cell = fit.cells[cell as usize];
            // 0 outside the mask, where it was 0 before
            weight[i as usize] = W::of(cell.member(k) * fit.pass_factor[k] * cell.factor);
        }
    }
}

impl Cell {
    /// 1 if pass k masks the cell, else 0.
    fn member(&self, k: usize) -> f64 {
        (self.set >> k & 1) as f64
    }
}

impl Fit {
    /// Groups positions by their set. There are few sets: `cover` cuts one run per pass.
    fn find_cells(&mut self) {
        self.cells.clear();
        self.cell_of.clear();
        for &set in &self.sets {
            let at = self.cells.iter().position(|cell| cell.set == set).unwrap_or(self.cells.len());
            if at == self.cells.len() {
                self.cells.push(Cell { set, len: 0.0, factor: 1.0 });
            }
            self.cells[at].len += 1.0;
            self.cell_of.push(at as u32);
        }
    }

    /// Alternates token sweeps and pass sweeps, the last one over passes.
    fn solve(&mut self, passes: usize, pass_total: f64) {
        self.pass_factor.clear();
        self.pass_factor.resize(passes, 0.0);
        self.fit_passes(pass_total);
        for _ in 0..SWEEPS {
            let off = self.fit_tokens();
            self.fit_passes(pass_total);
            if off < FITTED {
                break;
            }
        }
    }

    /// Scales every masked position to a total of 1; returns how far the totals were from it.
    fn fit_tokens(&mut self) -> f64 {
        let mut off = 0f64;
        for cell in &mut self.cells {
            let total: f64 = self.pass_factor.iter().enumerate().map(|(k, a)| cell.member(k) * a).sum();
            if total > 0.0 {
                off = off.max((total * cell.factor - 1.0).abs());
                cell.factor = 1.0 / total;
            }
        }
        off
    }

    /// Scales every pass to its total.
    fn fit_passes(&mut self, pass_total: f64) {
        for (k, factor) in self.pass_factor.iter_mut().enumerate() {
            let sum: f64 = self.cells.iter().map(|cell| cell.member(k) * cell.len * cell.factor).sum();
            *factor = pass_total / sum;
        }
    }
}
