//! Designs that draw a mask ratio or a complementary pair: `bernoulli`, `coupled`, and `mean_field`'s prompt mask.

use super::Job;
use super::chance::{Chance, Scope};
use super::row::Real;

/// `mean_field` (Diffu-GRPO): everything masked, every token scored from that one canvas.
pub(super) fn mean_field<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    job.out.pass().score(job.row.free, 1.0);
}

/// `bernoulli` (`LLaDA` pre-training): a ratio t per pass, each position masked with probability t, weight 1 / (K t).
pub(super) fn bernoulli<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    for k in 0..job.num_mc() {
        job.chance.turn(Scope::Pass(k));
        let ratio = mask_ratio(job);
        let count = toss(job, ratio);
        let weight = 1.0 / (job.num_mc() as f64 * ratio);
        job.out.pass().score(&job.work.items[..count], weight);
    }
}

/// `coupled`: masks in complementary pairs, so that a pair scores every position once.
///
/// Without `truncate` ESPO's: `l ~ U{0..n}`, weights (n+1)/(2 l) and (n+1)/(2 (n-l)), averaged over the pairs.
/// With it coupled-GRPO's: `t ~ U(low, high)`, each position in the first mask with probability t, weights 1/t and
/// 1/(1-t). An odd K puts the fully masked canvas first and averages it with the m pairs (1 / (m+1), as published);
/// an even K has pairs only (1 / (2m), so that the weights sum to n on average).
pub(super) fn coupled<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let n = job.row.n();
    let pairs = job.num_mc() / 2;
    let with_full = job.num_mc() % 2 == 1;
    let share = if with_full { 1.0 / (pairs + 1) as f64 } else { 0.5 / pairs as f64 };
    if with_full {
        job.out.pass().score(job.row.free, share);
    }
    for pair in 0..pairs {
        job.chance.turn(Scope::Pass(pair));
        let (count, first, second) = if job.design.options.truncate.is_some() {
            let ratio = mask_ratio(job);
            let count = toss(job, ratio);
            (count, share / ratio, share / (1.0 - ratio))
        } else {
            let items = &mut job.work.items;
            items.clear();
            items.extend_from_slice(job.row.free);
            let count = job.chance.below(n as u32 + 1) as usize;
            job.chance.choose(items, count);
            let whole = share * (n + 1) as f64;
            (count, whole / count as f64, whole / (n - count) as f64)
        };
        // the mask is the front of `items`, its complement the back; either may be empty, and then scores nothing
        let (front, back) = job.work.items.split_at(count);
        job.out.pass().score(front, first);
        job.out.pass().score(back, second);
    }
}

/// A uniform mask ratio inside the design's bounds.
fn mask_ratio<C: Chance, W>(job: &mut Job<'_, C, W>) -> f64 {
    let (low, high) = job.design.options.truncate.unwrap_or((0.0, 1.0));
    low + (high - low) * job.chance.unit()
}

/// Puts each free position to the front of `items` with probability `ratio`, else to the back; returns the cut.
fn toss<C: Chance, W>(job: &mut Job<'_, C, W>, ratio: f64) -> usize {
    let n = job.row.n();
    let (front, back) = (&mut job.work.items, &mut job.work.rest);
    front.resize(n, 0);
    back.resize(n, 0);
    let (mut hits, mut misses) = (0, 0);
    // both sides are written and one cursor moves: a branch on a coin would be mispredicted half of the time
    for &i in job.row.free {
        front[hits] = i;
        back[misses] = i;
        let hit = usize::from(job.chance.coin(ratio));
        hits += hit;
        misses += 1 - hit;
    }
    front[hits..].copy_from_slice(&back[..misses]);
    hits
}
