//! One row of a rollout: its canvas, its place in the plan, and what a forward commits.

use std::sync::Arc;

use super::{FIXED, MASKED, Request};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::marks::Stop;
use crate::rng::{Lane, RowRng, unit_f32};
use crate::schedule::Quota;
use crate::select::{Score, rank_key};
use crate::temporal::RowState;
use crate::unmasking::{Eos, Unmasking};

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) layout: Layout,
    pub(super) unmasking: Unmasking,
    pub(super) rng: RowRng,
    pub(super) canvas: Vec<i64>,
    pub(super) masked: Vec<u32>,
    pub(super) unmask_step: Vec<i16>,
    pub(super) logprob: Vec<f32>,
    pub(super) argmax: Vec<f32>,
    pub(super) stable: u32,
    pub(super) nfe: usize,
    pub(super) planned: usize,
    pub(super) block: usize,
    pub(super) block_masks: usize,
    pub(super) block_steps: usize,
    pub(super) block_step: usize,
    /// Forwards before the current block, of a row whose blocks are decoded as rows of their own.
    block_start: usize,
    /// Whether some forward committed more than its step's share.
    early: bool,
    pub(super) stop: Stop,
    /// The tokens that end a text, shared by all rows; the first fills what is truncated.
    eos: Arc<[i64]>,
    /// Positions before this one are revealed and not end-of-text.
    scanned: usize,
}

/// What a row asks of one forward.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) row: usize,
    /// Its canvas in the call; rows that share a forward share it.
    pub(super) canvas: usize,
    /// Its first candidate in the call.
    pub(super) start: usize,
    /// Candidates that may be selected.
    pub(super) in_block: usize,
    /// Candidates whose numbers are needed.
    pub(super) total: usize,
    pub(super) quota: usize,
    /// Whether the batch-wide rule commits everything.
    pub(super) exit: bool,
}

impl Row {
    /// The row of a request, checked.
    pub(super) fn new(
        request: &Request<'_>,
        mask_token_id: i64,
        eos_token_ids: &Arc<[i64]>,
        seed: u64,
        block_size: usize,
    ) -> Result<Self> {
        check(request, mask_token_id, eos_token_ids)?;
        let unmasking = request.unmasking;
        let (prompt, length) = (request.prompt.len(), request.completion_length);
        let layout = if block_size == 0 {
            Layout::new(prompt, length, unmasking.block_length)
        } else {
            check_causal(&unmasking, block_size)?;
            Layout::causal(prompt, length, block_size)
        };
        let length = layout.completion;
        let mut canvas = Vec::with_capacity(layout.width());
        canvas.extend_from_slice(request.prompt);
        canvas.resize(layout.width(), mask_token_id);
        let mut unmask_step = vec![MASKED; length];
        for anchor in request.prior {
            let position = anchor.position as usize;
            if position >= length {
                let need = format!("a completion position below {length}");
                return Err(Error::value("prior position", position, need));
            }
            if anchor.id == mask_token_id {
                let need = "a token to show; leave the position free instead";
                return Err(Error::value("prior id", "the mask token", need));
            }
            canvas[layout.prompt + position] = anchor.id;
            unmask_step[position] = FIXED;
        }
        let masked: Vec<u32> = (0..length as u32).filter(|&p| unmask_step[p as usize] == MASKED).collect();
        let mut row = Self {
            layout,
            unmasking,
            rng: RowRng::new(seed, request.uid),
            canvas,
            planned: unmasking.planned_steps(&masked, &layout),
            stop: if masked.is_empty() { Stop::Prior } else { Stop::Running },
            masked,
            unmask_step,
            logprob: vec![0.0; length],
            argmax: if unmasking.temporal.tracks_argmax() { vec![-1.0; length] } else { Vec::new() },
            stable: 0,
            nfe: 0,
            block: usize::MAX,
            block_masks: 0,
            block_steps: 0,
            block_step: 0,
            block_start: 0,
            early: false,
            eos: Arc::clone(eos_token_ids),
            scanned: 0,
        };
        row.truncate();
        Ok(row)
    }

    /// Whether two rows are at their first step with equal canvases.
    pub(super) fn same_start(&self, other: &Self) -> bool {
        self.nfe == 0 && other.nfe == 0 && self.layout == other.layout && self.canvas == other.canvas
    }

    /// Enters the next block where needed; says what the row's next forward is for.
    pub(super) fn open_turn(&mut self, row: usize) -> Turn {
        let block = self.masked.first().map_or(0, |&p| self.layout.block_of(p as usize));
        let range = self.layout.block_range(block);
        let in_block = self.masked.partition_point(|&p| (p as usize) < range.end);
        if block != self.block {
            self.block = block;
            self.block_masks = in_block;
            self.block_steps = self.unmasking.block_steps(in_block, range.len(), self.layout.completion);
            self.block_step = 0;
            if self.layout.causal {
                self.block_start = self.nfe;
                self.planned = self.unmasking.planned_in_block(in_block, self.block_steps);
                self.stable = 0;
            }
        }
        let quota = self.next_quota(in_block);
        let may_fire = if self.unmasking.selection.by_quota() { quota } else { in_block };
        let all = self.unmasking.temporal.reads_scores()
            || self.nfe + 1 == self.unmasking.max_nfe
            || self.unmasking.temporal.fires(&self.state(may_fire), std::iter::empty());
        let total = if all && !self.layout.causal { self.masked.len() } else { in_block };
        Turn { row, canvas: 0, start: 0, in_block, total, quota, exit: false }
    }

    /// The quota of the next schedule step that reveals something.
    fn next_quota(&mut self, in_block: usize) -> usize {
        let (n, steps) = (self.block_masks, self.block_steps);
        if self.unmasking.quota != Quota::Bernoulli {
            let (quota, next) = self.unmasking.quota.next_nonzero(n, in_block, self.block_step, steps);
            self.block_step = next;
            return quota;
        }
        loop {
            let left = steps.saturating_sub(self.block_step).max(1);
            // sub-counter 1: sub-counter 0 of this lane ranks positions under a random confidence
            let coin = |p: &u32| self.rng.block(Lane::Order, self.block_step as u32, *p, 1)[0];
            let heads = |p: &&u32| unit_f32(coin(p)) * (left as f32) < 1.0;
            let quota = self.masked[..in_block].iter().filter(heads).count();
            self.block_step += 1;
            if quota > 0 || in_block == 0 {
                return quota;
            }
        }
    }

    /// Whether the row is full enough for a batch-wide exit at this turn; `None` where its unmasking has none.
    pub(super) fn full_enough(&self, turn: &Turn) -> Option<bool> {
        let share = self.unmasking.temporal.batch_share()?;
        Some(self.state(turn.quota).is_filled(share))
    }

    /// What temporal rules read: of the whole row, or of its current block where no block sees a later one.
    fn state(&self, revealed: usize) -> RowState {
        if self.layout.causal {
            let range = self.layout.block_range(self.block);
            let left = self.masked.partition_point(|&p| (p as usize) < range.end);
            let (length, step) = (range.len(), self.nfe - self.block_start);
            let filled_after = length - left + revealed;
            return RowState { length, filled_after, step, planned: self.planned, stable: self.stable };
        }
        let length = self.layout.completion;
        let filled_after = length - self.masked.len() + revealed;
        RowState { length, filled_after, step: self.nfe, planned: self.planned, stable: self.stable }
    }

    /// Commits a forward's numbers.
    pub(super) fn commit(&mut self, turn: &Turn, scores: &[[f32; Score::COLUMNS]], keys: &mut Vec<u64>) {
        let unmasking = self.unmasking;
        keys.clear();
        for (i, score) in scores[..turn.in_block].iter().enumerate() {
            keys.push(rank_key(self.rank(&Score::read(score), self.masked[i]), i));
        }
        let count = unmasking.selection.take(keys, turn.quota);
        self.track_stability(scores);
        let out_of_budget = self.nfe + 1 == unmasking.max_nfe;
        let all = turn.total == self.masked.len() || self.layout.causal;
        let fires = || unmasking.temporal.fires(&self.state(count), scores.iter().map(Score::read));
        let fired = turn.exit || (all && fires());
        if fired || out_of_budget {
            for (i, score) in scores.iter().enumerate() {
                self.reveal(i, score);
            }
            let early = count < turn.total;
            self.early |= early;
            self.masked.drain(..turn.total);
            if self.masked.is_empty() {
                self.stop = match (self.early, fired) {
                    (false, _) => Stop::Plan,
                    (true, true) => Stop::Temporal,
                    (true, false) => Stop::MaxNfe,
                };
            }
        } else {
            for &key in &keys[..count] {
                let i = (key & 0xFFFF_FFFF) as usize;
                self.reveal(i, &scores[i]);
            }
            let unmask_step = &self.unmask_step;
            self.masked.retain(|&p| unmask_step[p as usize] == MASKED);
            if self.masked.is_empty() {
                self.stop = if self.early { Stop::Temporal } else { Stop::Plan };
            }
        }
        self.nfe += 1;
        self.truncate();
    }

    /// What ranks a candidate.
    fn rank(&self, score: &Score, position: u32) -> f32 {
        let confidence = self.unmasking.confidence;
        if self.unmasking.eos == Eos::Last && self.eos.contains(&(score.token as i64)) {
            return f32::NEG_INFINITY;
        }
        let draw = confidence.is_random();
        let random = if draw { self.rng.uniform(Lane::Order, self.nfe as u32, position) } else { 0.5 };
        confidence.rank(score, position, random)
    }

    /// Ends the row where everything up to its first end-of-text token is revealed. The rest becomes end-of-text, with
    /// log-prob 0, and keeps the mark of what nobody drew.
    fn truncate(&mut self) {
        if self.unmasking.eos != Eos::Truncate {
            return;
        }
        let Some(&first) = self.masked.first() else { return };
        let shown = &self.canvas[self.layout.prompt + self.scanned..self.layout.prompt + first as usize];
        if !shown.iter().any(|id| self.eos.contains(id)) {
            self.scanned = first as usize;
            return;
        }
        for &position in &self.masked {
            self.canvas[self.layout.prompt + position as usize] = self.eos[0];
        }
        self.masked.clear();
        self.stop = Stop::Eos;
    }

    /// Counts forwards in a row for which no masked position changed its most likely token.
    fn track_stability(&mut self, scores: &[[f32; Score::COLUMNS]]) {
        if self.argmax.is_empty() {
            return;
        }
        let mut same = true;
        for (&position, score) in self.masked.iter().zip(scores) {
            let kept = &mut self.argmax[position as usize];
            let argmax = Score::read(score).argmax;
            same &= kept.to_bits() == argmax.to_bits();
            *kept = argmax;
        }
        self.stable = if same { self.stable + 1 } else { 0 };
    }

    fn reveal(&mut self, i: usize, score: &[f32; Score::COLUMNS]) {
        let position = self.masked[i] as usize;
        self.canvas[self.layout.prompt + position] = score[0] as i64;
        self.unmask_step[position] = self.nfe as i16;
        self.logprob[position] = score[1];
    }
}

/// Refuses options that reach over the blocks of a block-causal model.
fn check_causal(unmasking: &Unmasking, block_size: usize) -> Result<()> {
    if unmasking.block_length != 0 && unmasking.block_length != block_size {
        let need = format!("0 or {block_size}, the block of the block-causal model");
        return Err(Error::value("block_length", unmasking.block_length, need));
    }
    if unmasking.max_nfe != 0 || unmasking.temporal.batch_share().is_some() {
        let got = if unmasking.max_nfe == 0 { "fill_ratio_batch" } else { "max_nfe" };
        let need = "rules that stay inside a block: a block-causal model's blocks see no later one";
        return Err(Error::value("unmasking", got, need));
    }
    Ok(())
}

/// Refuses a request that cannot be decoded, whatever its prior.
fn check(request: &Request<'_>, mask_token_id: i64, eos_token_ids: &[i64]) -> Result<()> {
    request.unmasking.check()?;
    if request.unmasking.eos != Eos::None && eos_token_ids.is_empty() {
        let need = "the scheduler's eos_token_ids for an unmasking that reads them";
        return Err(Error::value("eos_token_ids", "none", need));
    }
    if request.completion_length > i16::MAX as usize {
        let need = format!("at most {}: a step map has two bytes per token", i16::MAX);
        return Err(Error::value("completion_length", request.completion_length, need));
    }
    if request.prompt.contains(&mask_token_id) {
        let need = "ids without it: it marks what is to be decoded";
        return Err(Error::value("prompt", "the mask token", need));
    }
    Ok(())
}
