//! An unmasking: everything that decides how one row is decoded, apart from the model and the temperature.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::schedule::{Plan, Quota, pruned_steps};
use crate::select::{Confidence, Reads, Selection};
use crate::temporal::{RowState, Temporal};

/// What the end-of-text token does to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Eos {
    /// Nothing: it is a token as any other.
    #[default]
    None,
    /// Once everything up to the first one is revealed, the row ends and what is masked becomes end-of-text. This
    /// changes the context of no sampled token, but a tail that the policy would have filled otherwise is not sampled.
    Truncate,
    /// Candidates that drew it are revealed last (LLaDA `confidence_eos_eot_inf`). The choice of positions then reads
    /// the draws, so the trajectory likelihood is biased.
    Last,
}

impl FromStr for Eos {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::None),
            "truncate" => Ok(Self::Truncate),
            "last" => Ok(Self::Last),
            _ => Err(Error::value("eos", name, "one of none, truncate, last")),
        }
    }
}

/// Decoding options of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unmasking {
    /// Denoising steps for a whole unpruned completion.
    pub diffusion_steps: usize,
    /// Tokens per block, decoded left to right; 0 means one block.
    pub block_length: usize,
    /// Spread of the masks over the steps.
    pub quota: Quota,
    /// How many candidates a step takes.
    pub selection: Selection,
    /// What ranks them.
    pub confidence: Confidence,
    /// When the rest is committed together.
    pub temporal: Temporal,
    /// Most forwards per row; the last one commits the rest. 0 means no bound but the plan's.
    pub max_nfe: usize,
    /// What the end-of-text token does.
    pub eos: Eos,
}

impl Unmasking {
    /// Refuses options that contradict each other.
    pub fn check(&self) -> Result<()> {
        if self.diffusion_steps == 0 || self.diffusion_steps > Plan::LONGEST {
            let need = format!("1 to {}", Plan::LONGEST);
            return Err(Error::value("diffusion_steps", self.diffusion_steps, need));
        }
        if self.temporal.batch_share().is_some() && !self.selection.by_quota() {
            let need = "selection top_k: the batch-wide exit is decided before the forward";
            return Err(Error::value(
                "temporal",
                format!("fill_ratio_batch with {:?}", self.selection),
                need,
            ));
        }
        self.selection.check(self.confidence)
    }

    /// What the unmasking reads of its candidates: the selection reads what its confidence does.
    #[must_use]
    pub fn reads(&self) -> Reads {
        self.confidence.reads() | self.temporal.reads()
    }

    /// Whether the choice of positions reads the state only: the trajectory log-likelihood is then the plain sum of
    /// log-probs.
    #[must_use]
    pub fn exact(&self) -> bool {
        self.confidence.exact() && self.eos != Eos::Last
    }

    /// Steps for `n` free positions of a block of `block` tokens: the block's share of `diffusion_steps`, pruned.
    #[must_use]
    pub fn block_steps(&self, n: usize, block: usize, length: usize) -> usize {
        pruned_steps(n, block, pruned_steps(block, length, self.diffusion_steps))
    }

    /// Forwards that a block of `n` free positions has before temporal pruning.
    #[must_use]
    pub fn planned_in_block(&self, n: usize, steps: usize) -> usize {
        Plan::even(n, steps, self.quota).reveals().len()
    }

    /// Reveals per step of a row with these free positions (ascending), before temporal pruning.
    fn reveals(&self, free: &[u32], layout: &Layout) -> Vec<usize> {
        let mut reveals = Vec::new();
        for b in 0..layout.blocks() {
            let range = layout.block_range(b);
            let n = free.iter().filter(|&&p| range.contains(&(p as usize))).count();
            let plan = Plan::even(n, self.block_steps(n, range.len(), layout.completion), self.quota);
            reveals.extend(plan.reveals().iter().map(|&c| c as usize));
        }
        reveals
    }

    /// Forwards that the row's plan has before temporal pruning.
    #[must_use]
    pub fn planned_steps(&self, free: &[u32], layout: &Layout) -> usize {
        self.reveals(free, layout).len()
    }

    /// The plan that a row follows, both prunings applied; `None` where the number of tokens per step depends on the
    /// model's numbers (adaptive selections and rules, end-of-text), on the batch or on chance.
    #[must_use]
    pub fn plan(&self, free: &[u32], layout: &Layout) -> Option<Plan> {
        let adaptive =
            !self.selection.by_quota() || self.temporal.reads_scores() || self.eos == Eos::Truncate;
        if adaptive || self.temporal.batch_share().is_some() || self.quota == Quota::Bernoulli {
            return None;
        }
        let reveals = self.reveals(free, layout);
        let mut plan = Plan::from_reveals(&reveals);
        let mut filled_after = layout.completion - free.len();
        for (step, &c) in reveals.iter().enumerate() {
            filled_after += c;
            let state =
                RowState { length: layout.completion, filled_after, step, planned: reveals.len(), stable: 0 };
            if step + 1 == self.max_nfe || self.temporal.fires(&state, std::iter::empty()) {
                plan.keep_steps(step + 1);
                break;
            }
        }
        Some(plan)
    }
}
