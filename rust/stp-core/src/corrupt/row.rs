//! One row as a design sees it, and the place where its passes are written.

use crate::error::{Error, Result};

/// One row: positions, plan and realised trajectory, checked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Row of the batch, for messages.
    pub(super) index: usize,
    /// The design's name, for messages.
    pub(super) design: &'static str,
    /// Eligible completion positions, ascending.
    pub(super) free: &'a [u32],
    /// `l_1 = n > ... > l_T > 0`. Empty for designs that do not read the plan.
    pub(super) plan: &'a [i32],
    /// Step that revealed each completion position, or one of [`crate::marks::MARKS`].
    pub(super) unmask_step: &'a [i32],
    /// What each completion position adds to the mass of the state that revealed it; empty counts tokens.
    pub(super) mass: &'a [f32],
}

impl Row<'_> {
    /// n, the number of eligible positions.
    pub(super) fn n(&self) -> usize {
        self.free.len()
    }

    /// The plan's count at mass coordinate `x` in `1..=n`: the smallest `l_s >= x`.
    ///
    /// A uniform `x` meets `l_s` with probability `c_s / n`.
    pub(super) fn count_at(&self, x: usize) -> usize {
        let reached = self.plan.partition_point(|&l| l as usize >= x);
        self.plan.get(reached.wrapping_sub(1)).map_or(x, |&l| l as usize)
    }

    /// A [`Error::Design`] about this row.
    pub(super) fn refuse(&self, got: impl std::fmt::Display, need: impl std::fmt::Display) -> Error {
        Error::Design { name: self.design, got: format!("row {}: {got}", self.index), need: need.to_string() }
    }
}

/// The part of `counts` that holds the plan (rows are zero-padded on the right), checked against n.
pub(super) fn checked_plan<'a>(
    design: &'static str,
    index: usize,
    counts: &'a [i32],
    n: usize,
) -> Result<&'a [i32]> {
    let steps = counts.iter().position(|&l| l == 0).unwrap_or(counts.len());
    let (plan, pad) = counts.split_at(steps);
    let decreasing = plan.windows(2).all(|pair| pair[0] > pair[1]);
    let starts_at_n = plan.first().map_or(n == 0, |&l| l as usize == n && l > 0);
    let ends_above_zero = plan.last().is_none_or(|&l| l > 0);
    if decreasing && starts_at_n && ends_above_zero && pad.iter().all(|&l| l == 0) {
        return Ok(plan);
    }
    let shown: Vec<i32> = counts.iter().copied().take(8).collect();
    let more = if counts.len() > 8 { ", ..." } else { "" };
    Err(Error::Design {
        name: design,
        got: format!("row {index}: {n} eligible positions and unmask_counts {shown:?}{more}"),
        need: format!(
            "strictly decreasing counts that start at {n}, then zeros; pass the plan of the positions \
             that are scored"
        ),
    })
}

/// A weight type: f32 at the boundary, f64 where expectations are checked.
pub(super) trait Real: Copy {
    const ZERO: Self;
    fn of(value: f64) -> Self;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    fn of(value: f64) -> Self {
        value
    }
}

/// The passes of one row, filled from the first on.
#[derive(Debug)]
pub(super) struct Writer<'a, W> {
    length: usize,
    mask: &'a mut [u8],
    weight: &'a mut [W],
    next: usize,
}

/// One pass: a corruption mask and its weights, both zero at first.
#[derive(Debug)]
pub(super) struct Pass<'a, W> {
    mask: &'a mut [u8],
    weight: &'a mut [W],
}

impl<'a, W: Real> Writer<'a, W> {
    /// A writer into rows of `length`; both slices hold the same number of passes.
    pub(super) fn new(length: usize, mask: &'a mut [u8], weight: &'a mut [W]) -> Self {
        Self { length, mask, weight, next: 0 }
    }

    /// The next pass, cleared.
    pub(super) fn pass(&mut self) -> Pass<'_, W> {
        let at = self.next * self.length..(self.next + 1) * self.length;
        self.next += 1;
        let (mask, weight) = (&mut self.mask[at.clone()], &mut self.weight[at]);
        mask.fill(0);
        weight.fill(W::ZERO);
        Pass { mask, weight }
    }

    /// Mask and weights of pass k, which is already written.
    pub(super) fn written(&mut self, k: usize) -> (&[u8], &mut [W]) {
        let at = k * self.length..(k + 1) * self.length;
        (&self.mask[at.clone()], &mut self.weight[at])
    }
}

impl<W: Real> Pass<'_, W> {
    /// Masks positions without scoring them.
    pub(super) fn mask(&mut self, positions: &[u32]) {
        for &i in positions {
            self.mask[i as usize] = 1;
        }
    }

    /// Masks positions and scores them with one weight.
    pub(super) fn score(&mut self, positions: &[u32], weight: f64) {
        let weight = W::of(weight);
        for &i in positions {
            self.mask[i as usize] = 1;
            self.weight[i as usize] = weight;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use super::*;

    fn row<'a>(free: &'a [u32], plan: &'a [i32]) -> Row<'a> {
        Row { index: 0, design: "cover", free, plan, unmask_step: &[], mass: &[] }
    }

    #[test]
    fn count_at_has_mass_c_s_at_l_s() {
        let free: Vec<u32> = (0..7).collect();
        let row = row(&free, &[7, 5, 2]);
        let counts: Vec<usize> = (1..=7).map(|x| row.count_at(x)).collect();
        assert_eq!(counts, [2, 2, 5, 5, 5, 7, 7]);
    }

    #[test]
    fn a_plan_must_start_at_n_and_fall_to_zero_padding() {
        assert_eq!(checked_plan("cover", 0, &[3, 2, 0, 0], 3).unwrap(), &[3, 2]);
        assert_eq!(checked_plan("cover", 0, &[3, 2, 1], 3).unwrap(), &[3, 2, 1]);
        assert_eq!(checked_plan("cover", 0, &[0, 0], 0).unwrap(), &[] as &[i32]);
        assert_eq!(checked_plan("cover", 0, &[], 0).unwrap(), &[] as &[i32]);
        for (counts, n) in [
            (&[4, 2][..], 3),
            (&[2, 1], 3),
            (&[3, 3], 3),
            (&[3, 1, 2], 3),
            (&[3, 0, 1], 3),
            (&[3, -1], 3),
            (&[-3], 3),
            (&[1], 0),
            (&[], 2),
        ] {
            let error = checked_plan("cover", 5, counts, n).unwrap_err().to_string();
            assert!(error.contains("row 5") && error.contains(&format!("start at {n}")), "{error}");
        }
    }
}
