//! Temporal pruning: when the tokens that are still masked are committed together, from the same forward.
//!
//! Every rule reads one row's state (and the numbers of its masked positions), never the batch and never the sampled
//! tokens, so the pruned kernel is itself the policy and no bias arises.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::select::{Reads, Score, Spec};

/// When a row's remaining tokens are committed in one go.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Temporal {
    /// Never: the plan is followed to its end.
    #[default]
    None,
    /// Once anchors and revealed tokens fill at least this share of the completion (the paper: 0.95).
    FillRatio(f32),
    /// The same once every row in flight is that full, as published (STP, arXiv 2602.08905): rows wait for the slowest one,
    /// and none is admitted until all have left.
    FillRatioBatch(f32),
    /// After this share of the row's planned steps.
    Steps(f32),
    /// Once every masked position's most likely token has at least this probability.
    Confidence(f32),
    /// Once the mean top-1 to top-2 logit margin of the masked positions reaches a threshold that falls linearly from
    /// `high` to `low` over the planned steps (`SchED`, arXiv 2512.02892).
    Margin {
        /// Threshold at the first step.
        high: f32,
        /// Threshold at the last planned step.
        low: f32,
    },
    /// Once the summed entropy of the masked positions is at most this many nats.
    Entropy(f32),
    /// Once the most likely token of every masked position has stayed the same for this many forwards in a row.
    Stable(u32),
}

/// What a rule reads of one row at one step.
#[derive(Debug, Clone, Copy)]
pub struct RowState {
    /// L.
    pub length: usize,
    /// Anchors and revealed tokens once this step's own tokens are committed.
    pub filled_after: usize,
    /// Forwards of this row before this one.
    pub step: usize,
    /// Forwards that the row's plan has without temporal pruning.
    pub planned: usize,
    /// Forwards in a row, this one included, for which every masked position kept its most likely token.
    pub stable: u32,
}

impl RowState {
    /// Whether at least this share of the completion is filled.
    #[must_use]
    pub fn is_filled(&self, share: f32) -> bool {
        self.filled_after as f32 >= share * self.length as f32 - 1e-4
    }
}

impl Temporal {
    /// Whether the rule reads the numbers of all masked positions, not only those of the current block.
    #[must_use]
    pub fn reads_scores(self) -> bool {
        matches!(self, Self::Confidence(_) | Self::Margin { .. } | Self::Entropy(_) | Self::Stable(_))
    }

    /// What [`Temporal::fires`] and the count of `stable` forwards read.
    #[must_use]
    pub fn reads(self) -> Reads {
        Reads {
            top2: matches!(self, Self::Margin { .. }),
            entropy: matches!(self, Self::Entropy(_)),
            argmax: self.tracks_argmax(),
        }
    }

    /// The share of the completion that every row in flight has to reach, for the rule that reads the batch.
    #[must_use]
    pub fn batch_share(self) -> Option<f32> {
        if let Self::FillRatioBatch(share) = self { Some(share) } else { None }
    }

    /// Whether the rule compares most likely tokens across forwards.
    #[must_use]
    pub fn tracks_argmax(self) -> bool {
        matches!(self, Self::Stable(_))
    }

    /// Whether the rule commits everything at this state. `scores` are those of all masked positions; rules for which
    /// [`Temporal::reads_scores`] is false ignore them; the batch-wide rule is decided outside the row.
    pub fn fires(self, state: &RowState, scores: impl Iterator<Item = Score>) -> bool {
        match self {
            Self::None | Self::FillRatioBatch(_) => false,
            Self::FillRatio(share) => state.is_filled(share),
            Self::Steps(share) => (state.step + 1) as f32 >= share * state.planned as f32 - 1e-4,
            Self::Confidence(min_prob) => {
                let floor = min_prob.ln();
                scores.map(|s| s.top1).all(|top1| top1 >= floor)
            }
            Self::Margin { high, low } => {
                // an infinite margin counts as a large one; NaN stays NaN (`f32::min` would drop it)
                let cap = |margin: f32| if margin > 1e6 { 1e6 } else { margin };
                let (sum, count) =
                    scores.fold((0.0f32, 0u32), |(sum, n), s| (sum + cap(s.top1 - s.top2), n + 1));
                let progress = state.step as f32 / state.planned.max(1) as f32;
                sum >= count as f32 * (high + (low - high) * progress.min(1.0))
            }
            Self::Entropy(budget) => scores.map(|s| s.entropy).sum::<f32>() <= budget,
            Self::Stable(steps) => state.stable >= steps,
        }
    }
}

impl FromStr for Temporal {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        const NEED: &str = "none, fill_ratio:SHARE, fill_ratio_batch:SHARE, steps:SHARE, confidence:MIN_PROB, margin:HIGH:LOW, entropy:NATS or stable:FORWARDS";
        let spec = Spec::parse("temporal", text, NEED)?;
        let share = |v: f32| v > 0.0 && v <= 1.0;
        match (spec.name, spec.values()) {
            ("none", []) => Ok(Self::None),
            ("fill_ratio", &[v]) if share(v) => Ok(Self::FillRatio(v)),
            ("fill_ratio_batch", &[v]) if share(v) => Ok(Self::FillRatioBatch(v)),
            ("steps", &[v]) if share(v) => Ok(Self::Steps(v)),
            ("confidence", &[v]) if share(v) => Ok(Self::Confidence(v)),
            ("margin", &[high, low]) if high >= low && low >= 0.0 => Ok(Self::Margin { high, low }),
            ("entropy", &[v]) if v >= 0.0 => Ok(Self::Entropy(v)),
            ("stable", &[v]) if v >= 1.0 && v.fract() == 0.0 => Ok(Self::Stable(v as u32)),
            _ => Err(Error::value("temporal", text, NEED)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn score(prob: f32, second: f32, entropy: f32) -> Score {
        let (top1, top2) = (prob.ln(), second.ln());
        Score { token: 0.0, logprob: 0.0, top1, top2, entropy, sampled: top1, argmax: 0.0 }
    }

    #[test]
    fn each_rule_fires_exactly_at_its_bound() {
        let state = RowState { length: 20, filled_after: 19, step: 3, planned: 8, stable: 2 };
        let scores = [score(0.9, 0.05, 0.2), score(0.8, 0.1, 0.4)];
        let margin = f32::midpoint((0.9f32 / 0.05).ln(), (0.8f32 / 0.1).ln());
        let at = |high: f32| format!("margin:{}:{}", high + 3.0 / 5.0, high - 1.0);
        for (rule, fires) in [
            ("none", false),
            ("fill_ratio:0.95", true),
            ("fill_ratio:0.96", false),
            ("steps:0.5", true),
            ("steps:0.51", false),
            ("confidence:0.79", true),
            ("confidence:0.81", false),
            (&at(margin - 0.01), true),
            (&at(margin + 0.01), false),
            ("entropy:0.61", true),
            ("entropy:0.59", false),
            ("stable:2", true),
            ("stable:3", false),
        ] {
            let rule: Temporal = rule.parse().unwrap();
            assert_eq!(rule.fires(&state, scores.iter().copied()), fires, "{rule:?}");
        }
    }

    #[test]
    fn nan_never_fires_a_rule() {
        let state = RowState { length: 20, filled_after: 1, step: 0, planned: 8, stable: 0 };
        let scores = [score(f32::NAN, f32::NAN, f32::NAN)];
        for rule in ["confidence:0.01", "margin:0:0", "entropy:9"] {
            assert!(!rule.parse::<Temporal>().unwrap().fires(&state, scores.iter().copied()), "{rule}");
        }
    }

    #[test]
    fn bad_options_say_what_is_needed() {
        for bad in [
            "fill_ratio",
            "fill_ratio:0",
            "fill_ratio:1.5",
            "steps:-1",
            "margin:1:2",
            "stable:1.5",
            "exit:1",
            "none:1",
        ] {
            assert!(bad.parse::<Temporal>().unwrap_err().to_string().contains("margin:HIGH:LOW"), "{bad}");
        }
    }
}
