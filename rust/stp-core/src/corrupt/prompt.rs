//! Prompt masking: the other half of `mean_field` as published.

use super::Keys;
use super::chance::{Chance, Keyed, MAX_ITERATION, Scope};
use crate::error::{Error, Result, check_len};

/// First pass number of the prompt masks' streams: far above the passes of any design.
const PROMPT_PASS: usize = 32_768;

/// Fills `u8[P, W]` with prompt masks: each prompt token with probability `ratio` (Diffu-GRPO: 0.15).
///
/// `prompt` is `u8[R, W]`, 1 at prompt tokens and 0 at padding; `row` is `i32[P]`, the row of each pass as
/// [`super::Design::draw`] writes it. Keyed like the designs: (seed, uid, iteration, pass of the row).
pub fn prompt_mask(
    prompt: &[u8],
    width: usize,
    ratio: f64,
    keys: &Keys<'_>,
    row: &[i32],
    out: &mut [u8],
) -> Result<()> {
    if !(0.0..=1.0).contains(&ratio) {
        return Err(Error::value("ratio", ratio, "a probability, 0 to 1"));
    }
    if keys.iteration > MAX_ITERATION {
        return Err(Error::value("iteration", keys.iteration, format!("0 to {MAX_ITERATION}")));
    }
    check_len("prompt", prompt.len(), keys.uids.len() * width)?;
    check_len("mask", out.len(), row.len() * width)?;
    let mut before = None;
    for (p, &r) in row.iter().enumerate() {
        let Some(&uid) = usize::try_from(r).ok().and_then(|r| keys.uids.get(r)) else {
            let need = format!("row numbers from 0 to {}", keys.uids.len().saturating_sub(1));
            return Err(Error::value("row", r, need));
        };
        let k = match before {
            Some((last, k)) if last == r => k + 1,
            _ => 0,
        };
        before = Some((r, k));
        let mut chance = Keyed::new(keys.seed, uid, keys.iteration);
        chance.turn(Scope::Pass(PROMPT_PASS + k));
        let tokens = &prompt[r as usize * width..(r as usize + 1) * width];
        for (mask, &token) in out[p * width..(p + 1) * width].iter_mut().zip(tokens) {
            *mask = u8::from(token != 0 && chance.coin(ratio));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed check is a failed test")]
mod tests {
    use super::*;

    const UIDS: [u64; 2] = [5, 9];

    fn draw(ratio: f64, row: &[i32], iteration: u32) -> Vec<u8> {
        let prompt = [vec![0; 50], vec![1; 1950], vec![1; 2000]].concat();
        let mut out = vec![7; row.len() * 2000];
        prompt_mask(&prompt, 2000, ratio, &Keys { seed: 3, uids: &UIDS, iteration }, row, &mut out).unwrap();
        out
    }

    #[test]
    fn prompt_tokens_are_masked_at_the_ratio_and_padding_never() {
        let out = draw(0.15, &[0, 1], 0);
        assert!(out[..50].iter().all(|&m| m == 0));
        let share = f64::from(out.iter().map(|&m| u32::from(m)).sum::<u32>()) / 3950.0;
        assert!((share - 0.15).abs() < 0.03, "{share}");
        assert!(draw(0.0, &[0, 1], 0).iter().all(|&m| m == 0));
        assert_eq!(draw(1.0, &[1], 0), vec![1; 2000]);
    }

    #[test]
    fn passes_and_iterations_have_their_own_masks_and_rows_do_not_meet() {
        let out = draw(0.5, &[0, 0, 1], 0);
        assert_ne!(out[..2000], out[2000..4000]);
        assert_eq!(draw(0.5, &[1], 0), out[4000..]);
        assert_ne!(draw(0.5, &[1], 1), out[4000..]);
    }

    #[test]
    fn wrong_arguments_are_named() {
        let keys = Keys { seed: 0, uids: &UIDS, iteration: 0 };
        let fails = |width: usize, ratio: f64, row: &[i32], out: usize| {
            prompt_mask(&[1; 4], width, ratio, &keys, row, &mut vec![0; out]).unwrap_err().to_string()
        };
        assert!(fails(2, 1.5, &[0], 2).contains("ratio"));
        assert!(fails(2, f64::NAN, &[0], 2).contains("ratio"));
        assert!(fails(3, 0.5, &[0], 3).contains("prompt"));
        assert!(fails(2, 0.5, &[0], 3).contains("mask"));
        assert!(fails(2, 0.5, &[2], 2).contains("row"));
        assert!(fails(2, 0.5, &[-1], 2).contains("row"));
    }
}
