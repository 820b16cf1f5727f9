//! Reading the buffer: rows into caller-owned arrays, and the states of a denoising rebuilt.

use super::Buffer;
use super::incoming::{TOKEN_NEED, check, is_token};
use crate::error::{Error, Result, check_len};
use crate::marks::{PRIOR, hidden};

/// Where [`Buffer::minibatch`] writes: any subset of the columns, each for N rows.
#[derive(Debug, Default)]
pub struct Minibatch<'a> {
    /// `[N, prompt_width]`, right-padded with `pad_token_id`.
    pub prompt_ids: Option<&'a mut [i64]>,
    /// Columns of `prompt_ids`: at least the longest prompt of the rows.
    pub prompt_width: usize,
    /// What fills `prompt_ids` behind a prompt.
    pub pad_token_id: i64,
    /// `[N]`.
    pub prompt_length: Option<&'a mut [i32]>,
    /// `[N, L]`.
    pub token_ids: Option<&'a mut [i64]>,
    /// `[N, L]`.
    pub unmask_step: Option<&'a mut [i32]>,
    /// `[N, L]`: 1 at positions that a prior fixed.
    pub prior_mask: Option<&'a mut [u8]>,
    /// `[N, L]`.
    pub logprob: Option<&'a mut [f32]>,
    /// `[N]`.
    pub stop_reason: Option<&'a mut [u8]>,
    /// `[N]`.
    pub reward: Option<&'a mut [f32]>,
    /// `[N]`.
    pub advantage: Option<&'a mut [f32]>,
    /// Whether a reward or an advantage that is not set yet is written as NaN; refused otherwise.
    pub unset_as_nan: bool,
    /// `[N]`.
    pub uid: Option<&'a mut [u64]>,
    /// `[N]`.
    pub group: Option<&'a mut [i64]>,
    /// `[N]`.
    pub policy_version: Option<&'a mut [i64]>,
}

impl Minibatch<'_> {
    fn check(&self, buffer: &Buffer, rows: &[usize]) -> Result<()> {
        fn len<T>(out: Option<&&mut [T]>) -> Option<usize> {
            out.map(|values| values.len())
        }
        let n = rows.len();
        let tokens = n.saturating_mul(buffer.completion_length);
        for (name, got, need) in [
            ("prompt_ids", len(self.prompt_ids.as_ref()), n.saturating_mul(self.prompt_width)),
            ("prompt_length", len(self.prompt_length.as_ref()), n),
            ("token_ids", len(self.token_ids.as_ref()), tokens),
            ("unmask_step", len(self.unmask_step.as_ref()), tokens),
            ("prior_mask", len(self.prior_mask.as_ref()), tokens),
            ("logprob", len(self.logprob.as_ref()), tokens),
            ("stop_reason", len(self.stop_reason.as_ref()), n),
            ("reward", len(self.reward.as_ref()), n),
            ("advantage", len(self.advantage.as_ref()), n),
            ("uid", len(self.uid.as_ref()), n),
            ("group", len(self.group.as_ref()), n),
            ("policy_version", len(self.policy_version.as_ref()), n),
        ] {
            got.map_or(Ok(()), |got| check_len(name, got, need))?;
        }
        if self.prompt_ids.is_some() {
            check("pad_token_id", 1, &[self.pad_token_id], TOKEN_NEED, is_token)?;
            let longest = rows.iter().map(|&row| buffer.prompt(row).len()).max().unwrap_or(0);
            if longest > self.prompt_width {
                let need = format!("at least {longest}, the longest prompt of these rows");
                return Err(Error::shape("prompt_ids", format!("{} columns", self.prompt_width), need));
            }
        }
        for (wanted, values, name) in [
            (self.reward.is_some(), &buffer.reward, "reward"),
            (self.advantage.is_some(), &buffer.advantage, "advantage"),
        ] {
            let refused = wanted && !self.unset_as_nan;
            if let Some(row) = rows.iter().find(|&&row| refused && values[row].is_nan()) {
                return Err(Error::state(
                    format!("row {row} has no {name} yet"),
                    format!("call set_{name}s before the minibatch, or leave {name} out of it"),
                ));
            }
        }
        Ok(())
    }
}

impl Buffer {
    /// Copies rows, in the order given, into the arrays of `out`. On an error nothing has been written.
    pub fn minibatch(&self, rows: &[i32], out: &mut Minibatch<'_>) -> Result<()> {
        let rows = &self.indices(rows)?;
        out.check(self, rows)?;
        let (length, pad, width) = (self.completion_length, out.pad_token_id, out.prompt_width);
        if let Some(ids) = &mut out.prompt_ids {
            for (at, &row) in rows.iter().enumerate() {
                let (prompt, line) = (self.prompt(row), &mut ids[at * width..(at + 1) * width]);
                let (head, tail) = line.split_at_mut(prompt.len());
                head.iter_mut().zip(prompt).for_each(|(to, &id)| *to = i64::from(id));
                tail.fill(pad);
            }
        }
        if let Some(lengths) = &mut out.prompt_length {
            lengths.iter_mut().zip(rows).for_each(|(to, &row)| *to = self.prompt(row).len() as i32);
        }
        copy(rows, length, &self.token_ids, &mut out.token_ids, i64::from);
        copy(rows, length, &self.unmask_step, &mut out.unmask_step, i32::from);
        copy(rows, length, &self.unmask_step, &mut out.prior_mask, |step| u8::from(i32::from(step) == PRIOR));
        copy(rows, length, &self.logprob, &mut out.logprob, |x| x);
        copy(rows, 1, &self.stop_reason, &mut out.stop_reason, |x| x);
        copy(rows, 1, &self.reward, &mut out.reward, |x| x);
        copy(rows, 1, &self.advantage, &mut out.advantage, |x| x);
        copy(rows, 1, &self.uid, &mut out.uid, |x| x);
        copy(rows, 1, &self.group, &mut out.group, |x| x);
        copy(rows, 1, &self.policy_version, &mut out.policy_version, |x| x);
        Ok(())
    }

    /// The completion of one row as it was before denoising step `step`: [`Buffer::replay`] of one row.
    pub fn state_at(&self, row: i32, step: i32, mask_token_id: i64, out: &mut [i64]) -> Result<()> {
        self.replay(&[row], &[step], mask_token_id, out)
    }

    /// Rebuilds completions as they were before a denoising step: `out` is `[N, L]`.
    ///
    /// A position revealed at `step` or later shows the mask, and so does what nobody drew until the row has ended;
    /// prior and padding always show their token. Step 0
    /// gives the canvas that the rollout started from, any step after the last one the finished completion.
    pub fn replay(&self, rows: &[i32], step: &[i32], mask_token_id: i64, out: &mut [i64]) -> Result<()> {
        let length = self.completion_length;
        check_len("step", step.len(), rows.len())?;
        check_len("out", out.len(), rows.len().saturating_mul(length))?;
        check("step", 1, step, "a denoising step, at least 0", |step| step >= 0)?;
        check("mask_token_id", 1, &[mask_token_id], TOKEN_NEED, is_token)?;
        let rows = self.indices(rows)?;
        for ((line, row), &step) in out.chunks_exact_mut(length).zip(rows).zip(step) {
            let here = row * length..(row + 1) * length;
            let last = self.unmask_step[here.clone()].iter().max().map_or(-1, |&last| i32::from(last));
            let tokens = self.token_ids[here.clone()].iter().zip(&self.unmask_step[here]);
            for (to, (&token, &revealed)) in line.iter_mut().zip(tokens) {
                *to = if hidden(revealed.into(), step, last) { mask_token_id } else { i64::from(token) };
            }
        }
        Ok(())
    }
}

fn copy<T: Copy, U>(
    rows: &[usize],
    width: usize,
    from: &[T],
    to: &mut Option<&mut [U]>,
    cast: impl Fn(T) -> U,
) {
    let Some(to) = to else { return };
    for (line, &row) in to.chunks_exact_mut(width).zip(rows) {
        let source = &from[row * width..(row + 1) * width];
        line.iter_mut().zip(source).for_each(|(to, &value)| *to = cast(value));
    }
}
