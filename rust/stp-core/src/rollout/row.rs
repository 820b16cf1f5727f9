//! One row of a rollout: its canvas, its place in the plan, and what a forward commits.

use super::{MASKED, PRIOR, Request, Stop};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::rng::{Lane, RowRng};
use crate::sampler::Sampler;
use crate::select::{Score, rank_key};
use crate::temporal::RowState;

#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) layout: Layout,
    pub(super) sampler: Sampler,
    pub(super) rng: RowRng,
    pub(super) canvas: Vec<i64>,
    pub(super) masked: Vec<u32>,
    pub(super) unmask_step: Vec<i32>,
    pub(super) logprob: Vec<f32>,
    pub(super) argmax: Vec<f32>,
    pub(super) stable: u32,
    pub(super) nfe: usize,
    pub(super) planned: usize,
    pub(super) block: usize,
    pub(super) block_masks: usize,
    pub(super) block_steps: usize,
    pub(super) block_step: usize,
    pub(super) stop: Stop,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) row: usize,
    pub(super) start: usize,
    pub(super) in_block: usize,
    pub(super) total: usize,
    pub(super) quota: usize,
}

impl Row {
    /// The row of a request, checked.
    pub(super) fn new(request: &Request<'_>, mask_token_id: i64, seed: u64) -> Result<Self> {
        let sampler = request.sampler;
        sampler.check()?;
        let layout = Layout::new(request.prompt.len(), request.completion_length, sampler.block_length);
        let length = layout.completion;
        if request.prompt.contains(&mask_token_id) {
            let need = "ids without it: it marks what is to be decoded";
            return Err(Error::value("prompt", "the mask token", need));
        }
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
            unmask_step[position] = PRIOR;
        }
        let masked: Vec<u32> = (0..length as u32).filter(|&p| unmask_step[p as usize] == MASKED).collect();
        Ok(Self {
            layout,
            sampler,
            rng: RowRng::new(seed, request.uid),
            canvas,
            planned: sampler.planned_steps(&masked, &layout),
            stop: if masked.is_empty() { Stop::Prior } else { Stop::Running },
            masked,
            unmask_step,
            logprob: vec![0.0; length],
            argmax: if sampler.temporal.tracks_argmax() { vec![-1.0; length] } else { Vec::new() },
            stable: 0,
            nfe: 0,
            block: usize::MAX,
            block_masks: 0,
            block_steps: 0,
            block_step: 0,
        })
    }

    /// Whether two rows are at their first step with equal canvases.
    pub(super) fn same_start(&self, other: &Self) -> bool {
        self.nfe == 0 && other.nfe == 0 && self.layout == other.layout && self.canvas == other.canvas
    }

    /// Enters the next block where needed; returns (quota, positions that need numbers, those that may be selected).
    pub(super) fn open_turn(&mut self) -> (usize, usize, usize) {
        let block = self.masked.first().map_or(0, |&p| self.layout.block_of(p as usize));
        let range = self.layout.block_range(block);
        let in_block = self.masked.partition_point(|&p| (p as usize) < range.end);
        if block != self.block {
            self.block = block;
            self.block_masks = in_block;
            self.block_steps = self.sampler.block_steps(in_block, range.len(), self.layout.completion);
            self.block_step = 0;
        }
        let (quota, next) =
            self.sampler.quota.next_nonzero(self.block_masks, in_block, self.block_step, self.block_steps);
        self.block_step = next;
        let may_fire = if self.sampler.selection.by_quota() { quota } else { in_block };
        let all = self.sampler.temporal.reads_scores()
            || self.nfe + 1 == self.sampler.max_nfe
            || self.sampler.temporal.fires(&self.state(may_fire), std::iter::empty());
        (quota, if all { self.masked.len() } else { in_block }, in_block)
    }

    fn state(&self, revealed: usize) -> RowState {
        let length = self.layout.completion;
        let filled_after = length - self.masked.len() + revealed;
        RowState { length, filled_after, step: self.nfe, planned: self.planned, stable: self.stable }
    }

    pub(super) fn commit(&mut self, turn: &Turn, scores: &[[f32; Score::COLUMNS]], keys: &mut Vec<u64>) {
        let sampler = self.sampler;
        keys.clear();
        for (i, score) in scores[..turn.in_block].iter().enumerate() {
            let position = self.masked[i];
            let random = self.rng.uniform(Lane::Order, self.nfe as u32, position);
            keys.push(rank_key(sampler.confidence.rank(&Score::read(score), position, random), i));
        }
        keys.sort_unstable();
        let read = |i: usize| Score::read(&scores[i]);
        let count = sampler.selection.take(sampler.confidence, keys, turn.quota, read);
        self.track_stability(scores);
        let out_of_budget = self.nfe + 1 == sampler.max_nfe;
        let all = turn.total == self.masked.len();
        let fired = all && sampler.temporal.fires(&self.state(count), scores.iter().map(Score::read));
        if fired || out_of_budget {
            for (i, score) in scores.iter().enumerate() {
                self.reveal(i, score);
            }
            let early = count < turn.total;
            self.stop = match (early, fired) {
                (false, _) => Stop::Plan,
                (true, true) => Stop::Temporal,
                (true, false) => Stop::MaxNfe,
            };
            self.masked.clear();
        } else {
            for &key in &keys[..count] {
                let i = (key & 0xFFFF_FFFF) as usize;
                self.reveal(i, &scores[i]);
            }
            let unmask_step = &self.unmask_step;
            self.masked.retain(|&p| unmask_step[p as usize] == MASKED);
            if self.masked.is_empty() {
                self.stop = Stop::Plan;
            }
        }
        self.nfe += 1;
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
        self.unmask_step[position] = self.nfe as i32;
        self.logprob[position] = score[1];
    }
}
