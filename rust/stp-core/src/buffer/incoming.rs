//! Rows on their way into the buffer, and every check that a push relies on.

use std::fmt::Display;

use crate::error::{Error, Result, check_len};
use crate::marks::{MARKS, UNDRAWN};

/// Rounding may lift the log of a probability of one a little above zero; anything more is no log-probability.
const LOGPROB_SLACK: f32 = 1e-3;

/// Finished rollouts on their way into a [`super::Buffer`]: N rows, prompts right-padded, completions of length L.
#[derive(Debug, Clone, Copy)]
pub struct Rollouts<'a> {
    /// `[N, prompt_width]`; what follows the first `prompt_length` ids of a row is not read.
    pub prompt_ids: &'a [i64],
    /// Columns of `prompt_ids`.
    pub prompt_width: usize,
    /// `[N]`.
    pub prompt_length: &'a [i32],
    /// `[N, L]`, all of it, also after an end of text.
    pub token_ids: &'a [i64],
    /// `[N, L]`: the denoising step that revealed a position, or one of [`MARKS`].
    pub unmask_step: &'a [i32],
    /// `[N, L]`: log-probability under the law that drew the token; 0 where none did.
    pub logprob: &'a [f32],
    /// `[N]`.
    pub stop_reason: &'a [u8],
    /// `[N]`: row uids, the keys of their random numbers.
    pub uid: &'a [u64],
    /// `[N]`: rows of one prompt share a group.
    pub group: &'a [i64],
    /// `[N]`: the version of the policy that decoded the row.
    pub policy_version: &'a [i64],
}

impl Rollouts<'_> {
    /// Everything that a push relies on, before anything is written.
    pub(super) fn check(&self, completion_length: usize) -> Result<()> {
        let n = self.uid.len();
        let tokens = n.saturating_mul(completion_length);
        for (name, got, need) in [
            ("prompt_ids", self.prompt_ids.len(), n.saturating_mul(self.prompt_width)),
            ("prompt_length", self.prompt_length.len(), n),
            ("token_ids", self.token_ids.len(), tokens),
            ("unmask_step", self.unmask_step.len(), tokens),
            ("logprob", self.logprob.len(), tokens),
            ("stop_reason", self.stop_reason.len(), n),
            ("group", self.group.len(), n),
            ("policy_version", self.policy_version.len(), n),
        ] {
            check_len(name, got, need)?;
        }
        let width = self.prompt_width;
        let need = format!("lengths from 0 to {width}, the columns of prompt_ids");
        check("prompt_length", 1, self.prompt_length, &need, |length| {
            usize::try_from(length).is_ok_and(|length| length <= width)
        })?;
        for (row, &length) in self.prompt_length.iter().enumerate() {
            let ids = &self.prompt_ids[row * width..row * width + length as usize];
            if let Some(at) = ids.iter().position(|&id| !is_token(id)) {
                let got = format!("{} at row {row}, position {at}", ids[at]);
                return Err(Error::value("prompt_ids", got, TOKEN_NEED));
            }
        }
        check("token_ids", completion_length, self.token_ids, TOKEN_NEED, is_token)?;
        let marks: Vec<String> = MARKS.iter().map(|(name, mark)| format!("{mark} ({name})")).collect();
        let need = format!("a step from 0 to 32767, or one of {}", marks.join(", "));
        check("unmask_step", completion_length, self.unmask_step, &need, |step: i32| {
            (UNDRAWN..=i32::from(i16::MAX)).contains(&step)
        })?;
        let need = "a finite log-probability (at most 0); take the logarithm of a probability";
        check("logprob", completion_length, self.logprob, need, |logprob: f32| {
            logprob.is_finite() && logprob <= LOGPROB_SLACK
        })?;
        let undrawn = |(&step, &logprob): (&i32, &f32)| step < 0 && logprob != 0.0;
        match self.unmask_step.iter().zip(self.logprob).position(undrawn) {
            None => Ok(()),
            Some(at) => Err(Error::value(
                "logprob",
                located(self.logprob[at], at, completion_length),
                "0 where unmask_step < 0: no law drew these tokens",
            )),
        }
    }
}

pub(super) const TOKEN_NEED: &str = "a token id from 0 to 4294967295";

pub(super) fn is_token(id: i64) -> bool {
    u32::try_from(id).is_ok()
}

fn located(value: impl Display, at: usize, width: usize) -> String {
    match width {
        1 => format!("{value} at row {at}"),
        _ => format!("{value} at row {}, position {}", at / width, at % width),
    }
}

/// Refuses the first value outside its domain; `values` is row by row, `width` to a row.
pub(super) fn check<T: Copy + Display>(
    name: &'static str,
    width: usize,
    values: &[T],
    need: &str,
    fits: impl Fn(T) -> bool,
) -> Result<()> {
    match values.iter().position(|&value| !fits(value)) {
        None => Ok(()),
        Some(at) => Err(Error::value(name, located(values[at], at, width), need)),
    }
}
