//! The rollout scheduler: which rows and positions need a forward, and what its numbers commit.
//!
//! Rows are independent. A row's numbers are keyed by its uid, so slot, batch composition and order do not change
//! its trajectory; finished rows leave at once and queued ones take their place (continuous batching).

use std::collections::VecDeque;

use crate::error::{Error, Result, check_len};
use crate::layout::Layout;
use crate::prior::Anchor;
use crate::rng::{Lane, RowRng};
use crate::sampler::Sampler;
use crate::select::{Score, rank_key};
use crate::temporal::RowState;

/// `unmask_step` of a position that a prior fixed.
pub const PRIOR: i32 = -1;
/// `unmask_step` of a position outside the row's completion.
pub const OUTSIDE: i32 = -2;

const MASKED: i32 = -3;

/// Why a row ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// It has not ended.
    Running = 0,
    /// Its plan reached the end.
    Plan = 1,
    /// Its temporal rule committed the rest.
    Temporal = 2,
    /// Its forward budget committed the rest.
    MaxNfe = 3,
    /// The prior fixed every position: no forward was needed.
    Prior = 4,
}

/// One completion to decode.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Key of the row's random numbers, unique within a run.
    pub uid: u64,
    /// Prompt token ids.
    pub prompt: &'a [i64],
    /// L.
    pub completion_length: usize,
    /// Fixed positions, ascending.
    pub prior: &'a [Anchor],
    /// How it is decoded.
    pub sampler: Sampler,
}

/// What one model call has to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Step {
    /// Canvases in the call; 0 when every row is finished.
    pub rows: usize,
    /// Tokens per canvas, padding included.
    pub width: usize,
    /// Positions whose logits are read.
    pub candidates: usize,
}

/// Counters of a scheduler's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Canvases computed (row forwards).
    pub forwards: u64,
    /// Model calls.
    pub calls: u64,
    /// Sum over rows of their forwards; above `forwards` where the first step was shared.
    pub nfe: u64,
    /// Positions whose logits were read.
    pub head_rows: u64,
    /// Tokens computed, padding included.
    pub tokens: u64,
    /// Padding tokens among them.
    pub padding: u64,
    /// Candidates whose numbers were NaN.
    pub nan: u64,
}

#[derive(Debug, Clone)]
struct Row {
    layout: Layout,
    sampler: Sampler,
    rng: RowRng,
    canvas: Vec<i64>,
    masked: Vec<u32>,
    unmask_step: Vec<i32>,
    logprob: Vec<f32>,
    argmax: Vec<f32>,
    stable: u32,
    nfe: usize,
    planned: usize,
    block: usize,
    block_masks: usize,
    block_steps: usize,
    block_step: usize,
    stop: Stop,
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    row: usize,
    start: usize,
    in_block: usize,
    total: usize,
    quota: usize,
}

/// Decodes a queue of rows through model calls that the caller makes.
#[derive(Debug)]
pub struct Scheduler {
    mask_token_id: i64,
    pad_token_id: i64,
    slots: usize,
    seed: u64,
    share_first: bool,
    rows: Vec<Row>,
    queue: VecDeque<usize>,
    active: Vec<usize>,
    turns: Vec<Turn>,
    keys: Vec<u64>,
    pending: Option<Step>,
    stats: Stats,
}

impl Scheduler {
    /// A scheduler that keeps at most `slots` rows in flight. With `share_first`, neighbouring rows whose canvases are
    /// equal at their first step (a group of samples of one prompt) share that forward.
    pub fn new(
        mask_token_id: i64,
        pad_token_id: i64,
        slots: usize,
        seed: u64,
        share_first: bool,
    ) -> Result<Self> {
        if slots == 0 {
            return Err(Error::value("slots", 0, "at least 1"));
        }
        let (rows, active, turns, keys) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (queue, pending, stats) = (VecDeque::new(), None, Stats::default());
        Ok(Self {
            mask_token_id,
            pad_token_id,
            slots,
            seed,
            share_first,
            rows,
            queue,
            active,
            turns,
            keys,
            pending,
            stats,
        })
    }

    /// Queues a row; returns its index, which is its place in the results.
    pub fn submit(&mut self, request: &Request<'_>) -> Result<usize> {
        request.sampler.check()?;
        let layout =
            Layout::new(request.prompt.len(), request.completion_length, request.sampler.block_length);
        let length = layout.completion;
        if request.prompt.contains(&self.mask_token_id) {
            return Err(Error::value(
                "prompt",
                "the mask token",
                "ids without it: it marks what is to be decoded",
            ));
        }
        let mut canvas = Vec::with_capacity(layout.width());
        canvas.extend_from_slice(request.prompt);
        canvas.resize(layout.width(), self.mask_token_id);
        let mut unmask_step = vec![MASKED; length];
        for anchor in request.prior {
            let position = anchor.position as usize;
            if position >= length {
                let need = format!("a completion position below {length}");
                return Err(Error::value("prior position", position, need));
            }
            if anchor.id == self.mask_token_id {
                return Err(Error::value(
                    "prior id",
                    "the mask token",
                    "a token to show; leave the position free instead",
                ));
            }
            canvas[layout.prompt + position] = anchor.id;
            unmask_step[position] = PRIOR;
        }
        let masked: Vec<u32> = (0..length as u32).filter(|&p| unmask_step[p as usize] == MASKED).collect();
        let planned = request.sampler.planned_steps(&masked, &layout);
        let index = self.rows.len();
        let stop = if masked.is_empty() { Stop::Prior } else { Stop::Running };
        if stop == Stop::Running {
            self.queue.push_back(index);
        }
        self.rows.push(Row {
            layout,
            sampler: request.sampler,
            rng: RowRng::new(self.seed, request.uid),
            canvas,
            masked,
            unmask_step,
            logprob: vec![0.0; length],
            argmax: if request.sampler.temporal.tracks_argmax() { vec![-1.0; length] } else { Vec::new() },
            stable: 0,
            nfe: 0,
            planned,
            block: usize::MAX,
            block_masks: 0,
            block_steps: 0,
            block_step: 0,
            stop,
        });
        Ok(index)
    }

    /// Rows submitted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing was submitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Counters so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Sizes that hold any step: (canvas tokens, candidates) for at most `slots` rows.
    #[must_use]
    pub fn capacity(&self) -> (usize, usize) {
        let slots = self.slots.min(self.rows.len());
        let width = self.rows.iter().map(|r| r.layout.width()).max().unwrap_or(0);
        let length = self.rows.iter().map(|r| r.layout.completion).max().unwrap_or(0);
        (slots * width, slots * length)
    }

    /// Fills the canvases of the next model call: `ids` as `[rows, width]` packed at the front, `lengths[rows]` (tokens
    /// before padding), `candidates[N]` (flat index into `[rows * width]`) and one uniform per candidate.
    pub fn next_step(
        &mut self,
        ids: &mut [i64],
        lengths: &mut [i32],
        candidates: &mut [i32],
        uniforms: &mut [f32],
    ) -> Result<Step> {
        if self.pending.is_some() {
            return Err(Error::state(
                "next_step was called twice",
                "commit the numbers of the last step first",
            ));
        }
        let (tokens, positions) = self.capacity();
        let slots = self.slots.min(self.rows.len());
        for (name, got, need) in [
            ("ids", ids.len(), tokens),
            ("lengths", lengths.len(), slots),
            ("candidates", candidates.len(), positions),
            ("uniforms", uniforms.len(), positions),
        ] {
            if got < need {
                return Err(Error::shape(name, got, format!("at least {need} (see capacity)")));
            }
        }
        while self.active.len() < self.slots {
            let Some(next) = self.queue.pop_front() else { break };
            self.active.push(next);
        }
        let width = self.active.iter().map(|&r| self.rows[r].layout.width()).max().unwrap_or(0);
        let mut step = Step { rows: 0, width, candidates: 0 };
        let mut previous: Option<usize> = None;
        self.turns.clear();
        for &index in &self.active {
            let row = &mut self.rows[index];
            let (quota, total, in_block) = row.open_turn();
            if !(self.share_first && previous.is_some_and(|p| self.same_start(p, index))) {
                let canvas = &self.rows[index].canvas;
                let target = &mut ids[step.rows * width..(step.rows + 1) * width];
                target[..canvas.len()].copy_from_slice(canvas);
                target[canvas.len()..].fill(self.pad_token_id);
                lengths[step.rows] = canvas.len() as i32;
                self.stats.padding += (width - canvas.len()) as u64;
                step.rows += 1;
            }
            previous = Some(index);
            let row = &self.rows[index];
            let base = (step.rows - 1) * width + row.layout.prompt;
            for (i, &position) in row.masked[..total].iter().enumerate() {
                candidates[step.candidates + i] = (base + position as usize) as i32;
                uniforms[step.candidates + i] = row.rng.uniform(Lane::Sample, row.nfe as u32, position);
            }
            self.turns.push(Turn { row: index, start: step.candidates, in_block, total, quota });
            step.candidates += total;
        }
        if step.rows > 0 {
            self.stats.forwards += step.rows as u64;
            self.stats.calls += 1;
            self.stats.nfe += self.turns.len() as u64;
            self.stats.head_rows += step.candidates as u64;
            self.stats.tokens += (step.rows * width) as u64;
            self.pending = Some(step);
        }
        Ok(step)
    }

    /// Whether two rows are at their first step with equal canvases.
    fn same_start(&self, first: usize, second: usize) -> bool {
        let (a, b) = (&self.rows[first], &self.rows[second]);
        a.nfe == 0 && b.nfe == 0 && a.layout == b.layout && a.canvas == b.canvas
    }

    /// Commits the packed numbers `[N, 7]` of the pending step (columns: see [`Score`]). Nothing changes if they are
    /// refused.
    pub fn commit(&mut self, packed: &[f32]) -> Result<()> {
        let Some(step) = self.pending else {
            return Err(Error::state("commit came without a pending step", "call next_step first"));
        };
        check_len("packed", packed.len(), step.candidates * Score::COLUMNS)?;
        let (scores, _) = packed.as_chunks::<{ Score::COLUMNS }>();
        for row in scores {
            let token = row[0];
            let valid = token >= 0.0 && token.fract() == 0.0 && token < 16_777_216.0;
            if !valid || token as i64 == self.mask_token_id {
                let need = "a token id below 2^24 that is not the mask token (forbid it when sampling)";
                return Err(Error::value("packed token", token, need));
            }
        }
        self.pending = None;
        for turn in &self.turns {
            let scores = &scores[turn.start..turn.start + turn.total];
            self.stats.nan += scores.iter().filter(|s| s[2].is_nan()).count() as u64;
            self.rows[turn.row].commit(turn, scores, &mut self.keys);
        }
        let rows = &self.rows;
        self.active.retain(|&r| rows[r].stop == Stop::Running);
        Ok(())
    }

    /// Rows that are not finished.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.active.len() + self.queue.len()
    }

    /// Writes the trajectories of all rows in the order of submission, padded to `length` columns: `token_ids`,
    /// `unmask_step` (>= 0, [`PRIOR`] or [`OUTSIDE`]), `logprob` (0 where nothing was sampled), `nfe` and `stop`.
    pub fn results(&self, length: usize, out: &mut Results<'_>) -> Result<()> {
        if self.unfinished() > 0 {
            let got = format!("{} rows are not finished", self.unfinished());
            return Err(Error::state(got, "run next_step and commit until next_step gives no rows"));
        }
        let rows = self.rows.len();
        check_len("token_ids", out.token_ids.len(), rows * length)?;
        check_len("unmask_step", out.unmask_step.len(), rows * length)?;
        check_len("logprob", out.logprob.len(), rows * length)?;
        check_len("nfe", out.nfe.len(), rows)?;
        check_len("stop", out.stop.len(), rows)?;
        if let Some(long) = self.rows.iter().map(|r| r.layout.completion).find(|&l| l > length) {
            return Err(Error::shape("token_ids", length, format!("at least {long} columns")));
        }
        out.token_ids.fill(self.pad_token_id);
        out.unmask_step.fill(OUTSIDE);
        out.logprob.fill(0.0);
        for (i, row) in self.rows.iter().enumerate() {
            let (a, b) = (i * length, i * length + row.layout.completion);
            out.token_ids[a..b].copy_from_slice(&row.canvas[row.layout.prompt..]);
            out.unmask_step[a..b].copy_from_slice(&row.unmask_step);
            out.logprob[a..b].copy_from_slice(&row.logprob);
            out.nfe[i] = row.nfe as i32;
            out.stop[i] = row.stop as u8;
        }
        Ok(())
    }
}

/// Caller-owned arrays that [`Scheduler::results`] fills.
#[derive(Debug)]
pub struct Results<'a> {
    /// `[R, L]`.
    pub token_ids: &'a mut [i64],
    /// `[R, L]`.
    pub unmask_step: &'a mut [i32],
    /// `[R, L]`.
    pub logprob: &'a mut [f32],
    /// `[R]`.
    pub nfe: &'a mut [i32],
    /// `[R]`, a [`Stop`].
    pub stop: &'a mut [u8],
}

impl Row {
    /// Enters the next block where needed; returns (quota, positions that need numbers, those that may be selected).
    fn open_turn(&mut self) -> (usize, usize, usize) {
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

    fn commit(&mut self, turn: &Turn, scores: &[[f32; Score::COLUMNS]], keys: &mut Vec<u64>) {
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
