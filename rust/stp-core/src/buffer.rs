//! The trajectory buffer: what happened in rollouts, as a struct of arrays.
//!
//! A trajectory is `token_ids` and `unmask_step`: any state of the denoising is rebuilt from the two
//! ([`Buffer::replay`]), so no canvas is stored. A row of L completion and P prompt tokens takes
//! [`BYTES_PER_COMPLETION_TOKEN`] L + [`BYTES_PER_PROMPT_TOKEN`] P + [`BYTES_PER_ROW`] = 10 L + 4 P + 41 bytes.

mod gather;
mod incoming;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result, check_len};

use incoming::check;

pub use gather::Minibatch;
pub use incoming::Rollouts;

/// Token id (u32), step (i16) and log-probability (f32).
pub const BYTES_PER_COMPLETION_TOKEN: usize = 4 + 2 + 4;
/// Token id (u32).
pub const BYTES_PER_PROMPT_TOKEN: usize = 4;
/// Prompt end, stop reason, uid, group, reward, advantage and policy version.
pub const BYTES_PER_ROW: usize = 8 + 1 + 8 + 8 + 4 + 4 + 8;

/// What a reward or an advantage is before it is set. Values that are set are finite, so this one is unmistakable.
const UNSET: f32 = f32::NAN;

/// Rollouts kept until the optimiser has used them. Rows are numbered from 0 in the order they came.
#[derive(Debug, Clone)]
pub struct Buffer {
    completion_length: usize,
    capacity: usize,
    prompt_ids: Vec<u32>,
    prompt_end: Vec<usize>,
    token_ids: Vec<u32>,
    // i16 halves the step map; a step reveals a token, so 32768 of them need a completion that no model has
    unmask_step: Vec<i16>,
    logprob: Vec<f32>,
    stop_reason: Vec<u8>,
    uid: Vec<u64>,
    group: Vec<i64>,
    reward: Vec<f32>,
    advantage: Vec<f32>,
    policy_version: Vec<i64>,
}

impl Buffer {
    /// An empty buffer for up to `capacity` rows. Memory grows with the rows, not with the capacity.
    pub fn new(completion_length: usize, capacity: usize) -> Result<Self> {
        let most = i32::MAX as usize;
        for (name, value) in [("completion_length", completion_length), ("capacity", capacity)] {
            if value == 0 || value > most {
                return Err(Error::value(name, value, format!("an integer from 1 to {most}")));
            }
        }
        Ok(Self {
            completion_length,
            capacity,
            prompt_ids: Vec::new(),
            prompt_end: Vec::new(),
            token_ids: Vec::new(),
            unmask_step: Vec::new(),
            logprob: Vec::new(),
            stop_reason: Vec::new(),
            uid: Vec::new(),
            group: Vec::new(),
            reward: Vec::new(),
            advantage: Vec::new(),
            policy_version: Vec::new(),
        })
    }

    /// A buffer with the given rows; rewards and advantages may be NaN where they are not set yet.
    pub fn restore(mut self, rows: &Rollouts<'_>, reward: &[f32], advantage: &[f32]) -> Result<Self> {
        for (name, values) in [("reward", reward), ("advantage", advantage)] {
            check_len(name, values.len(), rows.uid.len())?;
            check(name, 1, values, "a finite number, or NaN where it is not set", |v: f32| !v.is_infinite())?;
        }
        let first = self.push(rows)?;
        self.reward[first..].copy_from_slice(reward);
        self.advantage[first..].copy_from_slice(advantage);
        Ok(self)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.uid.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.uid.is_empty()
    }

    /// L, the length of every completion.
    pub fn completion_length(&self) -> usize {
        self.completion_length
    }

    /// The largest number of rows.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that the rows take.
    pub fn nbytes(&self) -> usize {
        self.len() * (BYTES_PER_ROW + self.completion_length * BYTES_PER_COMPLETION_TOKEN)
            + self.prompt_ids.len() * BYTES_PER_PROMPT_TOKEN
    }

    /// The longest prompt of the buffer, 0 when it is empty.
    pub fn max_prompt_length(&self) -> usize {
        (0..self.len()).map(|row| self.prompt(row).len()).max().unwrap_or(0)
    }

    /// Appends rows and gives the index of the first. On an error nothing has been written.
    pub fn push(&mut self, rows: &Rollouts<'_>) -> Result<usize> {
        let (first, n) = (self.len(), rows.uid.len());
        rows.check(self.completion_length)?;
        if n > self.capacity - first {
            return Err(Error::state(
                format!("the buffer holds {first} of at most {} rows and {n} more do not fit", self.capacity),
                "evict used rows before the push, or make a buffer with a larger capacity",
            ));
        }
        self.reserve(n, rows.prompt_length.iter().map(|&length| length as usize).sum())?;
        for (row, &length) in rows.prompt_length.iter().enumerate() {
            let start = row * rows.prompt_width;
            let ids = &rows.prompt_ids[start..start + length as usize];
            self.prompt_ids.extend(ids.iter().map(|&id| id as u32));
            self.prompt_end.push(self.prompt_ids.len());
        }
        self.token_ids.extend(rows.token_ids.iter().map(|&id| id as u32));
        self.unmask_step.extend(rows.unmask_step.iter().map(|&step| step as i16));
        self.logprob.extend_from_slice(rows.logprob);
        self.stop_reason.extend_from_slice(rows.stop_reason);
        self.uid.extend_from_slice(rows.uid);
        self.group.extend_from_slice(rows.group);
        self.reward.resize(first + n, UNSET);
        self.advantage.resize(first + n, UNSET);
        self.policy_version.extend_from_slice(rows.policy_version);
        Ok(first)
    }

    /// Sets the rewards of some rows; where a row comes twice the later value counts.
    pub fn set_rewards(&mut self, rows: &[i32], reward: &[f32]) -> Result<()> {
        let at = self.finite_values(rows, "reward", reward)?;
        at.iter().zip(reward).for_each(|(&row, &value)| self.reward[row] = value);
        Ok(())
    }

    /// Sets the advantages of some rows; where a row comes twice the later value counts.
    pub fn set_advantages(&mut self, rows: &[i32], advantage: &[f32]) -> Result<()> {
        let at = self.finite_values(rows, "advantage", advantage)?;
        at.iter().zip(advantage).for_each(|(&row, &value)| self.advantage[row] = value);
        Ok(())
    }

    /// Drops the rows decoded by a policy older than `before_version` and gives their number.
    /// The others keep their order and are numbered from 0 again.
    pub fn evict(&mut self, before_version: i64) -> usize {
        let keep: Vec<bool> = self.policy_version.iter().map(|&version| version >= before_version).collect();
        self.retain(&keep)
    }

    /// Drops all rows. The memory is kept for the next ones.
    pub fn clear(&mut self) {
        self.retain(&vec![false; self.len()]);
    }

    fn retain(&mut self, keep: &[bool]) -> usize {
        let before = self.len();
        let (mut from, mut end) = (0, 0);
        for (row, &kept) in keep.iter().enumerate() {
            let next = self.prompt_end[row];
            if kept {
                self.prompt_ids.copy_within(from..next, end);
                end += next - from;
                self.prompt_end[row] = end;
            }
            from = next;
        }
        self.prompt_ids.truncate(end);
        compact(&mut self.prompt_end, 1, keep);
        compact(&mut self.token_ids, self.completion_length, keep);
        compact(&mut self.unmask_step, self.completion_length, keep);
        compact(&mut self.logprob, self.completion_length, keep);
        compact(&mut self.stop_reason, 1, keep);
        compact(&mut self.uid, 1, keep);
        compact(&mut self.group, 1, keep);
        compact(&mut self.reward, 1, keep);
        compact(&mut self.advantage, 1, keep);
        compact(&mut self.policy_version, 1, keep);
        before - self.len()
    }

    fn prompt(&self, row: usize) -> &[u32] {
        let start = if row == 0 { 0 } else { self.prompt_end[row - 1] };
        &self.prompt_ids[start..self.prompt_end[row]]
    }

    /// The row indices as `usize`, all inside the buffer.
    fn indices(&self, rows: &[i32]) -> Result<Vec<usize>> {
        let n = self.len();
        check(
            "rows",
            1,
            rows,
            &format!("indices from 0 to {n} exclusive, the number of rows held"),
            |row| usize::try_from(row).is_ok_and(|row| row < n),
        )?;
        Ok(rows.iter().map(|&row| row as usize).collect())
    }

    fn finite_values(&self, rows: &[i32], name: &'static str, values: &[f32]) -> Result<Vec<usize>> {
        check_len(name, values.len(), rows.len())?;
        check(name, 1, values, "finite numbers; replace or drop the rows that have none", f32::is_finite)?;
        self.indices(rows)
    }

    /// Makes room for `n` rows, so that the writes of a push cannot fail half way.
    fn reserve(&mut self, n: usize, prompt_tokens: usize) -> Result<()> {
        let tokens = n.saturating_mul(self.completion_length);
        self.prompt_ids
            .try_reserve(prompt_tokens)
            .and_then(|()| self.prompt_end.try_reserve(n))
            .and_then(|()| self.token_ids.try_reserve(tokens))
            .and_then(|()| self.unmask_step.try_reserve(tokens))
            .and_then(|()| self.logprob.try_reserve(tokens))
            .and_then(|()| self.stop_reason.try_reserve(n))
            .and_then(|()| self.uid.try_reserve(n))
            .and_then(|()| self.group.try_reserve(n))
            .and_then(|()| self.reward.try_reserve(n))
            .and_then(|()| self.advantage.try_reserve(n))
            .and_then(|()| self.policy_version.try_reserve(n))
            .map_err(|_| {
                Error::state(format!("no memory for {n} more rows"), "evict used rows or push fewer at once")
            })
    }
}

/// Moves the kept rows of `width` values to the front, in order, and forgets the others.
fn compact<T: Copy>(values: &mut Vec<T>, width: usize, keep: &[bool]) {
    let mut end = 0;
    for row in (0..keep.len()).filter(|&row| keep[row]) {
        values.copy_within(row * width..(row + 1) * width, end);
        end += width;
    }
    values.truncate(end);
}
