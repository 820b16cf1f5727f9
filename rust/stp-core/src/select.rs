//! Which candidates a step reveals: confidence kinds and selection rules.
//!
//! Every rule picks candidates only, picks at least one, breaks ties by position and ranks NaN last.

use std::str::FromStr;

use crate::error::{Error, Result};

/// The numbers that the device sends for one candidate, in this order, as f32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Sampled token id (exact in f32 below 2^24).
    pub token: f32,
    /// Log-probability of the sampled token under the law that drew it.
    pub logprob: f32,
    /// Log-probability of the most likely token (untempered).
    pub top1: f32,
    /// Log-probability of the second most likely token (untempered).
    pub top2: f32,
    /// Entropy of the untempered distribution, in nats.
    pub entropy: f32,
    /// Untempered log-probability of the sampled token.
    pub sampled: f32,
    /// Most likely token id.
    pub argmax: f32,
}

impl Score {
    /// Numbers per candidate.
    pub const COLUMNS: usize = 7;

    /// Reads one row of the packed array.
    #[must_use]
    pub fn read(row: &[f32; Self::COLUMNS]) -> Self {
        let &[token, logprob, top1, top2, entropy, sampled, argmax] = row;
        Self { token, logprob, top1, top2, entropy, sampled, argmax }
    }
}

/// Which numbers of its candidates a step reads besides those that every step does: the token, its two log-probs and
/// `top1`. The others need not be computed: what they hold is never looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reads {
    /// `top2`.
    pub top2: bool,
    /// `entropy`.
    pub entropy: bool,
    /// `argmax`.
    pub argmax: bool,
}

impl std::ops::BitOr for Reads {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self {
            top2: self.top2 | other.top2,
            entropy: self.entropy | other.entropy,
            argmax: self.argmax | other.argmax,
        }
    }
}

/// What ranks the candidates of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Confidence {
    /// Probability of the most likely token: reads the state only, so the trajectory likelihood is exact.
    #[default]
    Prob,
    /// Untempered probability of the *sampled* token (LLaDA `low_confidence`): the unrevealed samples leak into the
    /// choice, so the trajectory likelihood is biased.
    SampledProb,
    /// The same under the law that drew it, tempered and cut to top-k and top-p (Dream, SDAR).
    DrawnProb,
    /// Difference of the two largest probabilities.
    Margin,
    /// Negative entropy.
    Entropy,
    /// An independent random number per position.
    Random,
    /// The leftmost masked position.
    Leftmost,
    /// `Prob` with Gumbel noise: positions drawn without replacement in proportion to their largest probability.
    Gumbel,
}

impl Confidence {
    /// Every name that `from_str` accepts.
    pub const NAMES: [&'static str; 8] =
        ["prob", "sampled_prob", "drawn_prob", "margin", "entropy", "random", "leftmost", "gumbel"];

    /// Whether the choice reads the state only: the trajectory log-likelihood is then the plain sum of log-probs.
    #[must_use]
    pub fn exact(self) -> bool {
        !matches!(self, Self::SampledProb | Self::DrawnProb)
    }

    /// Whether [`Confidence::rank`] reads its random number.
    #[must_use]
    pub fn is_random(self) -> bool {
        matches!(self, Self::Random | Self::Gumbel)
    }

    /// What [`Confidence::rank`] reads.
    #[must_use]
    pub fn reads(self) -> Reads {
        Reads { top2: self == Self::Margin, entropy: self == Self::Entropy, argmax: false }
    }

    /// The number to rank by; higher is revealed first. `random` is a uniform in (0, 1).
    #[must_use]
    pub fn rank(self, score: &Score, position: u32, random: f32) -> f32 {
        match self {
            Self::Prob => score.top1,
            Self::SampledProb => score.sampled,
            Self::DrawnProb => score.logprob,
            Self::Margin => score.top1.exp() - score.top2.exp(),
            Self::Entropy => -score.entropy,
            Self::Random => random,
            Self::Leftmost => -(position as f32),
            Self::Gumbel => score.top1 - (-random.ln()).ln(),
        }
    }
}

impl FromStr for Confidence {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "prob" => Ok(Self::Prob),
            "sampled_prob" => Ok(Self::SampledProb),
            "drawn_prob" => Ok(Self::DrawnProb),
            "margin" => Ok(Self::Margin),
            "entropy" => Ok(Self::Entropy),
            "random" => Ok(Self::Random),
            "leftmost" => Ok(Self::Leftmost),
            "gumbel" => Ok(Self::Gumbel),
            _ => Err(Error::value("confidence", name, format!("one of {}", Self::NAMES.join(", ")))),
        }
    }
}

/// How many candidates a step takes from the ranking.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Selection {
    /// The quota of the plan.
    #[default]
    TopK,
    /// Every candidate whose probability is at least `min_prob`, at most `cap` (0: no cap), at least one.
    Threshold {
        /// Smallest probability of the most likely token.
        min_prob: f32,
        /// Most tokens per step; 0 means no cap.
        cap: u32,
    },
    /// Rank r (from 1) is taken while its probability is at least 1 - factor / (r + 1), as published.
    Factor {
        /// The factor f of Fast-dLLM.
        factor: f32,
    },
    /// Ascending entropy while the sum of the entropies before it stays at most `budget` (EB-Sampler).
    EntropyBound {
        /// gamma, in nats.
        budget: f32,
    },
}

impl FromStr for Selection {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        const NEED: &str = "top_k, threshold:MIN_PROB[:CAP], factor:F or entropy_bound:GAMMA";
        let spec = Spec::parse("selection", text, NEED)?;
        match (spec.name, spec.values()) {
            ("top_k", []) => Ok(Self::TopK),
            ("threshold", &[p]) if (0.0..=1.0).contains(&p) => Ok(Self::Threshold { min_prob: p, cap: 0 }),
            ("threshold", &[p, cap]) if (0.0..=1.0).contains(&p) && cap >= 0.0 => {
                Ok(Self::Threshold { min_prob: p, cap: cap as u32 })
            }
            ("factor", &[factor]) if factor > 0.0 => Ok(Self::Factor { factor }),
            ("entropy_bound", &[budget]) if budget >= 0.0 => Ok(Self::EntropyBound { budget }),
            _ => Err(Error::value("selection", text, NEED)),
        }
    }
}

/// A parsed `name:number:number` option.
pub(crate) struct Spec<'a> {
    pub(crate) name: &'a str,
    numbers: [f32; 3],
    len: usize,
}

impl<'a> Spec<'a> {
    pub(crate) fn parse(name: &'static str, text: &'a str, need: &str) -> Result<Self> {
        let mut parts = text.split(':');
        let head = parts.next().unwrap_or_default();
        let (mut numbers, mut len) = ([0.0; 3], 0);
        for part in parts {
            let number = part.parse::<f32>().ok().filter(|v| v.is_finite());
            match (number, numbers.get_mut(len)) {
                (Some(v), Some(slot)) => *slot = v,
                _ => return Err(Error::value(name, text, need)),
            }
            len += 1;
        }
        Ok(Self { name: head, numbers, len })
    }

    pub(crate) fn values(&self) -> &[f32] {
        &self.numbers[..self.len]
    }
}

/// A sort key: ascending keys are descending scores, ties by index, NaN last.
#[must_use]
pub fn rank_key(score: f32, index: usize) -> u64 {
    let bits = (score + 0.0).to_bits(); // -0.0 ties with 0.0
    let ordered = if score.is_nan() {
        0
    } else if bits >> 31 == 0 {
        bits | 0x8000_0000
    } else {
        !bits
    };
    u64::from(!ordered) << 32 | index as u64
}

/// The score that a key was made of.
fn key_score(key: u64) -> f32 {
    match !((key >> 32) as u32) {
        0 => f32::NAN,
        ordered if ordered >> 31 == 1 => f32::from_bits(ordered & 0x7FFF_FFFF),
        ordered => f32::from_bits(!ordered),
    }
}

impl Selection {
    /// Brings the keys (by [`rank_key`]) of the candidates to reveal to the front and returns how many they are: at
    /// least 1 where there is a candidate. Their order among each other is undefined.
    pub fn take(self, keys: &mut [u64], quota: usize) -> usize {
        let prob = |key: &u64| key_score(*key).exp();
        let count = match self {
            Self::TopK => quota,
            Self::Threshold { min_prob, cap } => {
                let above = keys.iter().filter(|k| prob(k) >= min_prob).count();
                if cap == 0 { above } else { above.min(cap as usize) }
            }
            Self::Factor { factor } => {
                keys.sort_unstable();
                let fits = |(i, k): (usize, &u64)| prob(k) >= 1.0 - factor / (i as f32 + 2.0);
                keys.iter().enumerate().take_while(|&rk| fits(rk)).count()
            }
            Self::EntropyBound { budget } => {
                keys.sort_unstable();
                let mut before = 0.0;
                let within = |k: &&u64| {
                    let entropy = -key_score(**k);
                    let fits = before <= budget && entropy != f32::INFINITY;
                    before += entropy.max(0.0);
                    fits
                };
                keys.iter().take_while(within).count()
            }
        };
        let count = count.clamp(usize::from(!keys.is_empty()), keys.len());
        if self.by_count() && 0 < count && count < keys.len() {
            keys.select_nth_unstable(count - 1);
        }
        count
    }

    /// Whether the rule needs no order of the candidates but the cut itself.
    fn by_count(self) -> bool {
        matches!(self, Self::TopK | Self::Threshold { .. })
    }

    /// Refuses a confidence kind that this rule cannot read: thresholds read a probability, the bound an entropy.
    pub fn check(self, confidence: Confidence) -> Result<()> {
        use Confidence::{DrawnProb, Entropy, Prob, SampledProb};
        let (fits, names) = match self {
            Self::TopK => return Ok(()),
            Self::Threshold { .. } | Self::Factor { .. } => {
                (matches!(confidence, Prob | SampledProb | DrawnProb), "prob, sampled_prob or drawn_prob")
            }
            Self::EntropyBound { .. } => (confidence == Entropy, "entropy"),
        };
        if fits {
            return Ok(());
        }
        Err(Error::value(
            "confidence",
            format!("{confidence:?} with {self:?}"),
            format!("{names} for this selection"),
        ))
    }

    /// Whether the number of tokens is known before the forward.
    #[must_use]
    pub fn by_quota(self) -> bool {
        self == Self::TopK
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_sort_by_score_then_index_with_nan_last() {
        let scores = [0.5, f32::NAN, -1.0, 0.5, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0];
        let mut keys: Vec<u64> = scores.iter().enumerate().map(|(i, &s)| rank_key(s, i)).collect();
        keys.sort_unstable();
        let order: Vec<u64> = keys.iter().map(|k| k & 0xFFFF_FFFF).collect();
        assert_eq!(order, [4, 0, 3, 6, 7, 2, 5, 1]);
        for (&key, &index) in keys.iter().zip(&order) {
            let (back, score) = (key_score(key), scores[index as usize]);
            assert!(
                back.total_cmp(&(score + 0.0)).is_eq() || (back.is_nan() && score.is_nan()),
                "{back} {score}"
            );
        }
    }

    #[test]
    fn the_factor_rule_counts_ranks_from_one() {
        let take = |probs: &[f32]| {
            let mut keys: Vec<u64> = probs.iter().enumerate().map(|(i, p)| rank_key(p.ln(), i)).collect();
            Selection::Factor { factor: 0.6 }.take(&mut keys, 1)
        };
        // 1 - .6/2 = .7, 1 - .6/3 = .8, 1 - .6/4 = .85
        assert_eq!(take(&[0.69, 0.69]), 1, "one is forced");
        assert_eq!(take(&[0.9, 0.79]), 1);
        assert_eq!(take(&[0.9, 0.81, 0.81]), 2);
        assert_eq!(take(&[0.9, 0.86, 0.86]), 3);
    }

    #[test]
    fn options_parse_or_say_what_they_need() {
        assert_eq!(
            "threshold:0.9:4".parse::<Selection>().unwrap(),
            Selection::Threshold { min_prob: 0.9, cap: 4 }
        );
        for bad in [
            "threshold",
            "threshold:2",
            "top_k:1",
            "factor:x",
            "entropy_bound:-1",
            "",
            "threshold:nan",
            "a:1:2:3:4",
        ] {
            assert!(
                bad.parse::<Selection>().unwrap_err().to_string().contains("entropy_bound:GAMMA"),
                "{bad}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_rule_takes_between_one_and_all(
            tops in proptest::collection::vec(prop_oneof![-9.0f32..0.0, Just(f32::NAN), Just(f32::NEG_INFINITY)], 1..40),
            quota in 0usize..50, which in 0usize..5,
        ) {
            let rule: Selection = ["top_k", "threshold:0.7", "threshold:0.1:3", "factor:1.0", "entropy_bound:0.3"][which].parse().unwrap();
            let mut keys: Vec<u64> = tops.iter().enumerate().map(|(i, &s)| rank_key(s, i)).collect();
            let mut sorted = keys.clone();
            sorted.sort_unstable();
            let count = rule.take(&mut keys, quota);
            prop_assert!((1..=tops.len()).contains(&count));
            keys[..count].sort_unstable();
            prop_assert_eq!(&keys[..count], &sorted[..count], "the best ones are in front");
            if which == 2 { prop_assert!(count <= 3); }
            if which == 0 { prop_assert_eq!(count, quota.clamp(1, tops.len())); }
            if which == 1 {
                let above = tops.iter().filter(|t| t.exp() >= 0.7).count();
                prop_assert_eq!(count, above.max(1));
            }
        }
    }
}
