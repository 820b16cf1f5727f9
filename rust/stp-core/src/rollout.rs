//! The rollout scheduler: which rows and positions need a forward, and what its numbers commit.
//!
//! Rows are independent. A row's numbers are keyed by its uid, so slot, batch composition and order do not change
//! its trajectory; finished rows leave at once and queued ones take their place (continuous batching).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Result, check_len};
use crate::marks::{OUTSIDE, PRIOR, Stop, UNDRAWN};
use crate::prior::Anchor;
use crate::rng::Lane;
use crate::select::{Reads, Score};
use crate::unmasking::Unmasking;

mod row;

use row::{Row, Turn};

/// A row keeps two bytes per token for its step map: [`PRIOR`] and [`UNDRAWN`], what is masked, as they stand there.
const FIXED: i16 = PRIOR as i16;
const MASKED: i16 = UNDRAWN as i16;

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
    pub unmasking: Unmasking,
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
    /// Which of their numbers some row of the call reads.
    pub reads: Reads,
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

/// Decodes a queue of rows through model calls that the caller makes.
#[derive(Debug)]
pub struct Scheduler {
    mask_token_id: i64,
    pad_token_id: i64,
    eos_token_ids: Arc<[i64]>,
    slots: usize,
    max_tokens: usize,
    length_sorted: bool,
    seed: u64,
    block_size: usize,
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
            eos_token_ids: Arc::from([]),
            slots,
            max_tokens: 0,
            length_sorted: false,
            seed,
            block_size: 0,
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

    /// The tokens that end a text, for unmaskings that read them; the first fills what is truncated.
    #[must_use]
    pub fn with_eos(mut self, eos_token_ids: &[i64]) -> Self {
        self.eos_token_ids = Arc::from(eos_token_ids);
        self
    }

    /// Decodes for a block-causal model: in its blocks, counted from the start of the prompt; temporal rules and what they
    /// commit stay inside a block. 0 is a model that sees the whole canvas.
    #[must_use]
    pub fn with_blocks(mut self, block_size: usize) -> Self {
        self.block_size = block_size;
        self
    }

    /// Bounds a call to `max_tokens` tokens, padding included (0: no bound; one row is always admitted). With
    /// `length_sorted`, long rows are admitted first and rows of a width together, which leaves less padding; the rows of
    /// a group have one width and stay neighbours.
    #[must_use]
    pub fn with_admission(mut self, max_tokens: usize, length_sorted: bool) -> Self {
        (self.max_tokens, self.length_sorted) = (max_tokens, length_sorted);
        self
    }

    /// Queues rows; their order is that of the results. Either all are queued or none.
    pub fn submit(&mut self, requests: &[Request<'_>]) -> Result<()> {
        let make = |r| Row::new(r, self.mask_token_id, &self.eos_token_ids, self.seed, self.block_size);
        let rows: Vec<Row> = requests.iter().map(make).collect::<Result<_>>()?;
        for row in rows {
            if row.stop == Stop::Running {
                self.queue.push_back(self.rows.len());
            }
            self.rows.push(row);
        }
        if self.length_sorted {
            let rows = &self.rows;
            self.queue.make_contiguous().sort_by_key(|&r| std::cmp::Reverse(rows[r].layout.width()));
        }
        self.reserve();
        Ok(())
    }

    /// Makes room for any step, so that none allocates.
    fn reserve(&mut self) {
        let slots = self.slots.min(self.rows.len());
        let longest = self.rows.iter().map(|r| r.layout.completion).max().unwrap_or(0);
        self.active.reserve(slots.saturating_sub(self.active.len()));
        self.turns.reserve(slots.saturating_sub(self.turns.len()));
        self.keys.reserve(longest.saturating_sub(self.keys.len()));
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
        let most = if self.max_tokens == 0 { usize::MAX } else { self.max_tokens.max(width) };
        let tokens = slots.saturating_mul(width).min(most);
        (tokens, slots.saturating_mul(length).min(tokens))
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
        self.check_buffers(ids.len(), lengths.len(), candidates.len(), uniforms.len())?;
        self.admit();
        self.turns.clear();
        for &index in &self.active {
            self.turns.push(self.rows[index].open_turn(index));
        }
        self.exit_together();
        let width = self.width();
        let mut step = Step { width, ..Step::default() };
        let mut previous: Option<usize> = None;
        for turn in &mut self.turns {
            let row = &self.rows[turn.row];
            if !(self.share_first && previous.is_some_and(|p: usize| self.rows[p].same_start(row))) {
                let target = &mut ids[step.rows * width..(step.rows + 1) * width];
                target[..row.canvas.len()].copy_from_slice(&row.canvas);
                target[row.canvas.len()..].fill(self.pad_token_id);
                lengths[step.rows] = row.canvas.len() as i32;
                self.stats.padding += (width - row.canvas.len()) as u64;
                step.rows += 1;
            }
            previous = Some(turn.row);
            (turn.start, turn.canvas) = (step.candidates, step.rows - 1);
            let base = turn.canvas * width + row.layout.prompt;
            for (i, &position) in row.masked[..turn.total].iter().enumerate() {
                candidates[turn.start + i] = (base + position as usize) as i32;
                uniforms[turn.start + i] = row.rng.uniform(Lane::Sample, row.nfe as u32, position);
            }
            step.candidates += turn.total;
            step.reads = step.reads | row.unmasking.reads();
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

    /// Tokens of the widest row in flight.
    fn width(&self) -> usize {
        self.active.iter().map(|&r| self.rows[r].layout.width()).max().unwrap_or(0)
    }

    /// Takes rows from the queue, in its order, while slots and tokens last.
    fn admit(&mut self) {
        if self.active.iter().any(|&r| self.rows[r].unmasking.temporal.batch_share().is_some()) {
            return;
        }
        let mut width = self.width();
        while let Some(&next) = self.queue.front() {
            width = width.max(self.rows[next].layout.width());
            let tokens = (self.active.len() + 1).saturating_mul(width);
            let fits = self.active.is_empty() || self.max_tokens == 0 || tokens <= self.max_tokens;
            if self.active.len() >= self.slots || !fits {
                return;
            }
            self.queue.pop_front();
            self.active.push(next);
        }
    }

    /// Lets the rows with the batch-wide rule commit everything once each of them is full enough.
    fn exit_together(&mut self) {
        let rows = &self.rows;
        if self.turns.iter().any(|t| rows[t.row].full_enough(t) == Some(false)) {
            return;
        }
        for turn in &mut self.turns {
            turn.exit = rows[turn.row].full_enough(turn).is_some();
            if turn.exit {
                turn.total = rows[turn.row].masked.len();
            }
        }
    }

    /// Writes the place of every candidate of the pending step: row times `length` plus completion position.
    pub fn places(&self, length: usize, out: &mut [i32]) -> Result<()> {
        let Some(step) = self.pending else {
            return Err(Error::state("places came without a pending step", "call next_step first"));
        };
        if out.len() < step.candidates {
            return Err(Error::shape("places", out.len(), format!("at least {}", step.candidates)));
        }
        for turn in &self.turns {
            let row = &self.rows[turn.row];
            for (place, &position) in out[turn.start..].iter_mut().zip(&row.masked[..turn.total]) {
                *place = (turn.row * length + position as usize) as i32;
            }
        }
        Ok(())
    }

    /// Writes, for every canvas of the pending step, the row that it belongs to (the first, where rows share it) and the
    /// canvas position at which its current block starts: 0 to there, a block-causal model has seen for good.
    pub fn blocks(&self, rows: &mut [i32], starts: &mut [i32]) -> Result<()> {
        let Some(step) = self.pending else {
            return Err(Error::state("blocks came without a pending step", "call next_step first"));
        };
        for (name, got) in [("rows", rows.len()), ("starts", starts.len())] {
            if got < step.rows {
                return Err(Error::shape(name, got, format!("at least {}", step.rows)));
            }
        }
        for turn in self.turns.iter().rev() {
            let row = &self.rows[turn.row];
            rows[turn.canvas] = turn.row as i32;
            let first = row.masked.first().map_or(row.layout.completion, |&p| p as usize);
            let position = row.layout.prompt + first;
            starts[turn.canvas] = (position - position % row.layout.block) as i32;
        }
        Ok(())
    }

    fn check_buffers(&self, ids: usize, lengths: usize, candidates: usize, uniforms: usize) -> Result<()> {
        let (tokens, positions) = self.capacity();
        let slots = self.slots.min(self.rows.len());
        for (name, got, need) in [
            ("ids", ids, tokens),
            ("lengths", lengths, slots),
            ("candidates", candidates, positions),
            ("uniforms", uniforms, positions),
        ] {
            if got < need {
                return Err(Error::shape(name, got, format!("at least {need} (see capacity)")));
            }
        }
        Ok(())
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
    /// `unmask_step` (>= 0, or one of [`crate::marks::MARKS`]), `logprob` (0 where nothing was sampled), `nfe` and `stop`.
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
        for (i, row) in self.rows.iter().enumerate() {
            let (a, b, end) = (i * length, i * length + row.layout.completion, (i + 1) * length);
            out.token_ids[a..b].copy_from_slice(&row.canvas[row.layout.prompt..]);
            out.token_ids[b..end].fill(self.pad_token_id);
            for (step, &stored) in out.unmask_step[a..b].iter_mut().zip(&row.unmask_step) {
                *step = i32::from(stored);
            }
            out.unmask_step[b..end].fill(OUTSIDE);
            out.logprob[a..b].copy_from_slice(&row.logprob);
            out.logprob[b..end].fill(0.0);
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
