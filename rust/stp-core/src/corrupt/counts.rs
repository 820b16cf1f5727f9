//! Designs with independent uniform masks, which differ in how the counts are drawn.

use super::Job;
use super::chance::{Chance, Scope};
use super::cover::stratum;
use super::row::Real;

/// `uniform_count`: each pass draws its count with probability `c_s / n`, then a uniform mask; weight n / (K l).
pub(super) fn uniform_count<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let n = job.row.n();
    for k in 0..job.num_mc {
        job.chance.turn(Scope::Pass(k));
        let count = job.row.count_at(job.chance.below(n as u32) as usize + 1);
        uniform_mask(job, count, n as f64 / (job.num_mc * count) as f64);
    }
}

/// `systematic`: `num_mc` equal strata of the plan's mass with one shared offset; weight n / (K l).
pub(super) fn systematic<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let n = job.row.n();
    job.chance.turn(Scope::Row);
    let cell = job.chance.below(n as u32);
    for k in 0..job.num_mc {
        let count = job.row.count_at(stratum(n, k, job.num_mc, cell));
        job.chance.turn(Scope::Pass(k));
        uniform_mask(job, count, n as f64 / (job.num_mc * count) as f64);
    }
}

/// Writes one pass: a uniformly random mask of `count` positions with one weight.
fn uniform_mask<C: Chance, W: Real>(job: &mut Job<'_, C, W>, count: usize, weight: f64) {
    let items = &mut job.work.items;
    items.clear();
    items.extend_from_slice(job.row.free);
    job.chance.choose(items, count);
    job.out.pass().score(&items[..count], weight);
}
