//! Plans: how many tokens each denoising step reveals, and the two pruning operators on them.
//!
//! A plan is a strictly decreasing list of mask counts n = l_1 > ... > l_T > 0; step s reveals c_s = l_s - l_{s+1}
//! tokens. It is the one source of truth: the rollout follows it and the likelihood is computed for it.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::marks::{OUTSIDE, PRIOR};

/// How the masks that are left are spread over the steps that are left. Only [`Quota::CeilRemaining`] corrects itself
/// when priors or thresholds change the count on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quota {
    /// ceil(left / steps left), per row, from the live count.
    #[default]
    CeilRemaining,
    /// LLaDA: n div S, and one more on the first n mod S steps.
    Llada,
    /// dllm: left / steps left, rounded half to even.
    Dllm,
    /// Dream: floor(left (1 - s/t)) on linspace(1, 1e-3, S + 1); the last step takes all.
    Dream,
    /// 1, 2, 4, 8, ...: the last step takes all.
    PowersOfTwo,
    /// Every mask is revealed with probability 1 / steps left (ancestral sampling of masked diffusion, with the random
    /// confidence). A rollout draws the count; as a fixed plan it is the ceil-remaining one.
    Bernoulli,
}

impl Quota {
    /// Every name that [`Quota::from_str`] accepts.
    pub const NAMES: [&'static str; 6] =
        ["ceil_remaining", "llada", "dllm", "dream", "powers_of_two", "bernoulli"];

    /// Tokens to reveal at schedule step `step` of `steps`, with `left` of `n` masks left; may be 0 for the published
    /// rules. The last step takes all that is left, so no rule leaves a mask behind.
    #[must_use]
    pub fn next(self, n: usize, left: usize, step: usize, steps: usize) -> usize {
        if step + 1 >= steps {
            return left;
        }
        let remaining = steps - step;
        let quota = match self {
            Self::CeilRemaining | Self::Bernoulli => left.div_ceil(remaining),
            Self::Llada => n / steps + usize::from(step < n % steps),
            Self::Dllm => (left as f64 / remaining as f64).round_ties_even() as usize,
            Self::Dream => {
                let level = |i: usize| 1.0 - (1.0 - 1e-3) * i as f64 / steps as f64;
                (left as f64 * (1.0 - level(step + 1) / level(step))) as usize
            }
            Self::PowersOfTwo => 1usize.checked_shl(step as u32).unwrap_or(left),
        };
        quota.min(left)
    }

    /// The next non-zero quota: schedule steps that would reveal nothing are dropped, since they cost a forward.
    /// Returns (tokens, schedule step after it).
    #[must_use]
    pub fn next_nonzero(self, n: usize, left: usize, step: usize, steps: usize) -> (usize, usize) {
        let quota = self.next(n, left, step, steps);
        if quota > 0 {
            return (quota, step + 1);
        }
        // with the same masks left, no rule reveals nothing again once it has revealed something: bisect, since the
        // published rules may be asked for a million steps that reveal nothing
        let (mut low, mut high) = (step, steps.saturating_sub(1).max(step));
        while left > 0 && low < high {
            let middle = low + (high - low) / 2;
            if self.next(n, left, middle, steps) == 0 {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (self.next(n, left, low, steps), low + 1)
    }
}

impl FromStr for Quota {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ceil_remaining" => Ok(Self::CeilRemaining),
            "llada" => Ok(Self::Llada),
            "dllm" => Ok(Self::Dllm),
            "dream" => Ok(Self::Dream),
            "powers_of_two" => Ok(Self::PowersOfTwo),
            "bernoulli" => Ok(Self::Bernoulli),
            _ => Err(Error::value("quota", name, format!("one of {}", Self::NAMES.join(", ")))),
        }
    }
}

/// A strictly decreasing list of mask counts, stored as such (`unmask_counts`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    counts: Vec<u32>,
}

impl Plan {
    /// The plan that reveals `reveals[s]` tokens at step s; zeros are dropped.
    #[must_use]
    pub fn from_reveals(reveals: &[usize]) -> Self {
        let mut left: usize = reveals.iter().sum();
        let mut counts = Vec::with_capacity(reveals.len());
        for &c in reveals.iter().filter(|&&c| c > 0) {
            counts.push(left as u32);
            left -= c;
        }
        Self { counts }
    }

    /// Most tokens and most steps of a plan: what a loop over them takes a moment for.
    pub const LONGEST: usize = 1 << 20;

    /// The even plan of `n` tokens in at most `steps` steps.
    #[must_use]
    pub fn even(n: usize, steps: usize, quota: Quota) -> Self {
        let (mut left, mut step, mut reveals) = (n, 0, Vec::new());
        while left > 0 {
            let (c, next) = quota.next_nonzero(n, left, step, steps);
            reveals.push(c);
            left -= c;
            step = next;
        }
        Self::from_reveals(&reveals)
    }

    /// The realised plan of a row, from the step at which each position was revealed (negative: not by the unmasking).
    /// Steps that revealed nothing are no part of it, so its size is that of the row, however large its steps are.
    #[must_use]
    pub fn from_unmask_step(unmask_step: &[i32]) -> Self {
        let mut steps: Vec<i32> = unmask_step.iter().copied().filter(|&s| s >= 0).collect();
        steps.sort_unstable();
        let mut left = steps.len() as u32;
        let mut counts = Vec::new();
        for same in steps.chunk_by(|a, b| a == b) {
            counts.push(left);
            left -= same.len() as u32;
        }
        Self { counts }
    }

    /// l_1 > ... > l_T.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// T: the number of forward passes.
    #[must_use]
    pub fn nfe(&self) -> usize {
        self.counts.len()
    }

    /// n: tokens to reveal.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.counts.first().map_or(0, |&l| l as usize)
    }

    /// c_s: tokens revealed at each step.
    #[must_use]
    pub fn reveals(&self) -> Vec<u32> {
        let next = self.counts.iter().skip(1).copied().chain([0]);
        self.counts.iter().zip(next).map(|(a, b)| a - b).collect()
    }

    /// Temporal pruning: every step after the first `steps` is merged into step `steps` (at least one step stays).
    pub fn keep_steps(&mut self, steps: usize) {
        self.counts.truncate(steps.max(1));
    }

    /// Temporal pruning at a mask count: the first state with at most `l_star` masks is the last step.
    pub fn merge_at(&mut self, l_star: usize) {
        if let Some(i) = self.counts.iter().position(|&l| l as usize <= l_star) {
            self.counts.truncate(i + 1);
        }
    }

    /// The plan that a row's likelihood is computed for. Without `score_prior`: the realised plan of the drawn positions.
    /// With it: drawn and prior positions at the tokens per step of the nominal `steps` for L, with the row's own temporal merge carried over by its share
    /// of tokens in the last step (prior tokens have no unmask step). A last step no larger than that of the free
    /// positions' own plan merged nothing, so nothing is carried over.
    #[must_use]
    pub fn scored(unmask_step: &[i32], score_prior: bool, steps: usize, quota: Quota) -> Self {
        let realised = Self::from_unmask_step(unmask_step);
        if !score_prior {
            return realised;
        }
        let whole = unmask_step.iter().filter(|&&s| s != OUTSIDE).count();
        let length = unmask_step.iter().filter(|&&s| s >= PRIOR).count();
        let mut plan = Self::even(length, pruned_steps(length, whole, steps), quota);
        let free = realised.tokens();
        let unmerged = Self::even(free, pruned_steps(free, whole, steps), quota);
        if let (Some(&last), Some(&ordinary)) = (realised.counts.last(), unmerged.counts.last())
            && last > ordinary
        {
            plan.merge_at((length * last as usize).div_ceil(free));
        }
        plan
    }
}

/// Steps for `n` of `length` tokens at the tokens per step of `steps` for `length`: spatial pruning removes steps, not
/// parallelism.
#[must_use]
pub fn pruned_steps(n: usize, length: usize, steps: usize) -> usize {
    if length == 0 { 0 } else { (n * steps).div_ceil(length) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;

    fn reveals(n: usize, steps: usize, quota: &str) -> Vec<u32> {
        Plan::even(n, steps, quota.parse().unwrap()).reveals()
    }

    #[test]
    fn quotas_match_the_published_tables() {
        assert_eq!(reveals(10, 4, "llada"), [3, 3, 2, 2]);
        assert_eq!(reveals(10, 4, "dllm"), [2, 3, 2, 3]);
        assert_eq!(reveals(10, 4, "dream"), [2, 2, 2, 4]);
        assert_eq!(reveals(10, 4, "ceil_remaining"), [3, 3, 2, 2]);
        assert_eq!(reveals(10, 8, "powers_of_two"), [1, 2, 4, 3]);
        for quota in ["llada", "dllm", "ceil_remaining"] {
            assert_eq!(reveals(5, 8, quota), [1; 5], "{quota}");
        }
        assert_eq!(reveals(5, 8, "dream"), [1, 1, 1, 2]);
        let raw: Vec<usize> =
            (0..8).map(|s| Quota::Dream.next(5, [5, 5, 5, 5, 5, 4, 3, 2][s], s, 8)).collect();
        assert_eq!(raw, [0, 0, 0, 0, 1, 1, 1, 2]);
    }

    #[test]
    fn layouts_of_plans() {
        let plans: Vec<String> = [(20, 10), (16, 8), (14, 7), (1, 4)]
            .iter()
            .map(|&(n, s)| {
                let mut pruned = Plan::even(n, s, Quota::default());
                let full = pruned.counts().to_vec();
                pruned.merge_at(n / 2);
                format!("n={n} S={s}: {full:?} merged at n/2: {:?}", pruned.counts())
            })
            .collect();
        insta::assert_snapshot!(plans.join("\n"), @r"
        n=20 S=10: [20, 18, 16, 14, 12, 10, 8, 6, 4, 2] merged at n/2: [20, 18, 16, 14, 12, 10]
        n=16 S=8: [16, 14, 12, 10, 8, 6, 4, 2] merged at n/2: [16, 14, 12, 10, 8]
        n=14 S=7: [14, 12, 10, 8, 6, 4, 2] merged at n/2: [14, 12, 10, 8, 6]
        n=1 S=4: [1] merged at n/2: [1]
        ");
    }

    #[test]
    fn a_prior_alone_is_no_temporal_merge() {
        let scored = |own: &[i32]| {
            let row: Vec<i32> = std::iter::repeat_n(-1, 10).chain(own.iter().copied()).collect();
            Plan::scored(&row, true, 10, Quota::default()).counts().to_vec()
        };
        let full = Plan::even(20, 10, Quota::default());
        assert_eq!(scored(&[0, 0, 1, 1, 2, 2, 3, 3, 4, 4]), full.counts());
        assert_eq!(scored(&[0, 0, 1, 1, 2, 2, 2, 2, 2, 2]), [20, 18, 16, 14, 12]);
    }

    proptest! {
        #[test]
        fn plans_decrease_and_reveal_everything(n in 0usize..300, steps in 1usize..300, q in 0usize..5) {
            let quota: Quota = Quota::NAMES[q].parse().unwrap();
            let plan = Plan::even(n, steps, quota);
            prop_assert_eq!(plan.reveals().iter().sum::<u32>() as usize, n);
            prop_assert!(plan.counts().windows(2).all(|w| w[0] > w[1]));
            prop_assert!(plan.nfe() <= steps.min(n.max(1)));
            prop_assert_eq!(plan.tokens(), n);
        }

        #[test]
        fn the_next_quota_is_that_of_a_scan(
            n in 1usize..300, cut in 0usize..300, step in 0usize..400, steps in 1usize..400, q in 0usize..6,
        ) {
            let quota: Quota = Quota::NAMES[q].parse().unwrap();
            let left = n.saturating_sub(cut);
            let mut scan = (step..=step.max(steps)).map(|s| (quota.next(n, left, s, steps), s + 1));
            let scan = scan.find(|&(c, _)| c > 0 || left == 0);
            prop_assert_eq!(Some(quota.next_nonzero(n, left, step, steps)), scan);
        }

        #[test]
        fn spatial_pruning_never_adds_a_step(length in 1usize..200, cut in 0usize..200, steps in 1usize..200) {
            let n = length.saturating_sub(cut);
            let before = Plan::even(length, steps, Quota::default());
            let after = Plan::even(n, pruned_steps(n, length, steps), Quota::default());
            prop_assert!(after.nfe() <= before.nfe());
        }

        #[test]
        fn temporal_pruning_only_merges_the_tail(n in 1usize..200, steps in 1usize..200, l in 0usize..200, keep in 0usize..200) {
            let full = Plan::even(n, steps, Quota::default());
            let (mut at, mut kept) = (full.clone(), full.clone());
            at.merge_at(l);
            kept.keep_steps(keep);
            for pruned in [&at, &kept] {
                prop_assert_eq!(pruned.counts(), &full.counts()[..pruned.nfe()]);
                prop_assert_eq!(pruned.reveals().iter().sum::<u32>() as usize, n);
                let tail: u32 = full.reveals()[pruned.nfe() - 1..].iter().sum();
                prop_assert_eq!(*pruned.reveals().last().unwrap(), tail);
            }
            if l == 0 {
                prop_assert_eq!(&at, &full);
            }
        }

        #[test]
        fn a_realised_plan_is_the_plan_that_was_followed(n in 1usize..100, steps in 1usize..100) {
            let plan = Plan::even(n, steps, Quota::default());
            let mut unmask_step = vec![-1, -2];
            for (s, &c) in plan.reveals().iter().enumerate() {
                unmask_step.extend(std::iter::repeat_n(s as i32, c as usize));
            }
            prop_assert_eq!(&Plan::from_unmask_step(&unmask_step), &plan);
            prop_assert_eq!(Plan::scored(&unmask_step, true, steps, Quota::default()).tokens(), n + 1);
        }
    }
}
