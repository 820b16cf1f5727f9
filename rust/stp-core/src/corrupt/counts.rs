//! Designs with independent uniform masks, which differ in how the counts are drawn.

use super::Job;
use super::chance::{Chance, Scope};
use super::cover::stratum;
use super::row::Real;

/// `uniform_count`: each pass draws its count with probability `c_s / n`, then a uniform mask; weight n / (K l).
pub(super) fn uniform_count<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let n = job.row.n();
    for k in 0..job.num_mc() {
        job.chance.turn(Scope::Pass(k));
        let count = job.row.count_at(job.chance.below(n as u32) as usize + 1);
        uniform_mask(job, count, n as f64 / (job.num_mc() * count) as f64);
    }
}

/// `systematic`: K equal strata of the plan's mass with one shared offset; weight n / (K l).
pub(super) fn systematic<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let n = job.row.n();
    job.chance.turn(Scope::Row);
    let cell = job.chance.below(n as u32);
    for k in 0..job.num_mc() {
        let count = job.row.count_at(stratum(n, k, job.num_mc(), cell));
        job.chance.turn(Scope::Pass(k));
        uniform_mask(job, count, n as f64 / (job.num_mc() * count) as f64);
    }
}

/// `quadrature` (GDPO): the counts at Gauss-Legendre nodes `t_k` of the plan's mass, weight `n w_k / l_k`.
///
/// Only the masks are random. The bias is that of the rule: `sum_k n w_k a(l_k)` instead of `sum_s c_s a(l_s)`.
pub(super) fn quadrature<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let n = job.row.n();
    for (k, &(node, weight)) in job.design.nodes.iter().enumerate() {
        let x = ((n as f64 * node + 0.5) as usize).clamp(1, n);
        let count = job.row.count_at(x);
        job.chance.turn(Scope::Pass(k));
        uniform_mask(job, count, n as f64 * weight / count as f64);
    }
}

/// `unigrpo`: mask ratios spread over the m inner iterations, from a random first time to fully masked.
///
/// With T the steps of the plan, `t_1 ~ U{1..T}` and `t_i = t_1 + floor((i-1)/(m-1) (T - t_1))`; the count is
/// `ceil(n t_i / T)` and the weight 1 / (K l): a mean per token, biased as published.
pub(super) fn unigrpo<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let (n, steps) = (job.row.n(), job.row.plan.len());
    let last = job.design.options.num_iterations - 1;
    for k in 0..job.num_mc() {
        job.chance.turn(Scope::AllIterations(k));
        let first = job.chance.below(steps as u32) as usize + 1;
        let time = first + (job.iteration as usize * (steps - first)).checked_div(last).unwrap_or(0);
        let count = (n * time).div_ceil(steps);
        job.chance.turn(Scope::Pass(k));
        uniform_mask(job, count, 1.0 / (job.num_mc() * count) as f64);
    }
}

/// `stp_paper`: counts `l ~ U{1..n}` and weight 1 / (K n) without the 1/l of an ELBO, as published.
pub(super) fn stp_paper<C: Chance, W: Real>(job: &mut Job<'_, C, W>) {
    let n = job.row.n();
    for k in 0..job.num_mc() {
        job.chance.turn(Scope::Pass(k));
        let count = job.chance.below(n as u32) as usize + 1;
        uniform_mask(job, count, 1.0 / (job.num_mc() * n) as f64);
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

/// Nodes and weights of the K-point Gauss-Legendre rule on (0, 1), ascending; the weights sum to 1.
pub(super) fn gauss_legendre(points: usize) -> Vec<(f64, f64)> {
    let k = points as f64;
    let mut rule: Vec<(f64, f64)> = (0..points)
        .map(|i| {
            // Newton from Tricomi's estimate of the i-th root of the Legendre polynomial
            let mut x = (std::f64::consts::PI * (i as f64 + 0.75) / (k + 0.5)).cos();
            let mut slope = 0.0;
            for _ in 0..100 {
                let (value, before) = legendre(points, x);
                slope = k * (before - x * value) / (1.0 - x * x);
                let step = value / slope;
                x -= step;
                if step.abs() < 1e-15 {
                    break;
                }
            }
            (f64::midpoint(1.0, -x), 1.0 / ((1.0 - x * x) * slope * slope))
        })
        .collect();
    // the roots are symmetric; the average of both halves removes what rounding has left
    for i in 0..points / 2 {
        let (low, high) = (rule[i], rule[points - 1 - i]);
        let node = f64::midpoint(low.0, 1.0 - high.0);
        rule[i] = (node, low.1);
        rule[points - 1 - i] = (1.0 - node, low.1);
    }
    rule
}

/// The Legendre polynomials of degree `degree` and `degree - 1` at x, by the three-term recurrence.
fn legendre(degree: usize, x: f64) -> (f64, f64) {
    let (mut value, mut before) = (1.0, 0.0);
    for j in 0..degree {
        let next = ((2 * j + 1) as f64 * x * value - j as f64 * before) / (j + 1) as f64;
        (before, value) = (value, next);
    }
    (value, before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gauss_legendre_integrates_polynomials_exactly() {
        for points in 1..=20 {
            let rule = gauss_legendre(points);
            assert!(rule.windows(2).all(|pair| pair[0].0 < pair[1].0));
            for degree in 0..2 * points {
                let sum: f64 = rule.iter().map(|&(t, w)| w * t.powi(degree as i32)).sum();
                assert!((sum - 1.0 / (degree + 1) as f64).abs() < 1e-13, "{points} {degree}: {sum}");
            }
        }
    }

    #[test]
    fn gauss_legendre_has_the_nodes_of_the_tables() {
        let two = gauss_legendre(2);
        assert!((two[0].0 - (1.0 - 1.0 / 3f64.sqrt()) / 2.0).abs() < 1e-15);
        let three = gauss_legendre(3);
        assert!((three[0].0 - (1.0 - 0.6f64.sqrt()) / 2.0).abs() < 1e-15);
        assert!((three[1].0 - 0.5).abs() < 1e-15 && (three[1].1 - 4.0 / 9.0).abs() < 1e-14);
    }
}
