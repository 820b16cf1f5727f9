#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use proptest::prelude::*;

use super::*;
use crate::marks::{OUTSIDE, PRIOR, UNDRAWN};

/// One rollout as a record of its own: what the struct of arrays must agree with.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    prompt: Vec<i64>,
    tokens: Vec<i64>,
    steps: Vec<i32>,
    logprobs: Vec<f32>,
    stop: u8,
    uid: u64,
    group: i64,
    version: i64,
}

const L: usize = 4;

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let tokens = prop::collection::vec(0..=i64::from(u32::MAX), L);
    let steps = prop::collection::vec(UNDRAWN..9, L);
    let row =
        (prop::collection::vec(0..50i64, 0..5), tokens, steps, any::<u8>(), any::<u64>(), 0..4i64, -3..4i64)
            .prop_map(|(prompt, tokens, steps, stop, uid, group, version)| {
                let logprobs = steps.iter().map(|&s| if s < 0 { 0.0 } else { -0.5 - s as f32 }).collect();
                Row { prompt, tokens, steps, logprobs, stop, uid, group, version }
            });
    prop::collection::vec(row, 0..6)
}

/// The columns of some rows, owned.
struct Columns {
    prompt_ids: Vec<i64>,
    width: usize,
    prompt_length: Vec<i32>,
    token_ids: Vec<i64>,
    unmask_step: Vec<i32>,
    logprob: Vec<f32>,
    stop_reason: Vec<u8>,
    uid: Vec<u64>,
    group: Vec<i64>,
    policy_version: Vec<i64>,
}

impl Columns {
    fn new(rows: &[Row]) -> Self {
        let width = rows.iter().map(|r| r.prompt.len()).max().unwrap_or(0);
        let padded = |r: &Row| [r.prompt.clone(), vec![-100; width - r.prompt.len()]].concat();
        Self {
            prompt_ids: rows.iter().flat_map(padded).collect(),
            width,
            prompt_length: rows.iter().map(|r| r.prompt.len() as i32).collect(),
            token_ids: rows.iter().flat_map(|r| r.tokens.clone()).collect(),
            unmask_step: rows.iter().flat_map(|r| r.steps.clone()).collect(),
            logprob: rows.iter().flat_map(|r| r.logprobs.clone()).collect(),
            stop_reason: rows.iter().map(|r| r.stop).collect(),
            uid: rows.iter().map(|r| r.uid).collect(),
            group: rows.iter().map(|r| r.group).collect(),
            policy_version: rows.iter().map(|r| r.version).collect(),
        }
    }

    fn view(&self) -> Rollouts<'_> {
        Rollouts {
            prompt_ids: &self.prompt_ids,
            prompt_width: self.width,
            prompt_length: &self.prompt_length,
            token_ids: &self.token_ids,
            unmask_step: &self.unmask_step,
            logprob: &self.logprob,
            stop_reason: &self.stop_reason,
            uid: &self.uid,
            group: &self.group,
            policy_version: &self.policy_version,
        }
    }
}

/// All rows of a buffer, read through minibatches of one.
fn read(buffer: &Buffer) -> Vec<Row> {
    let width = buffer.max_prompt_length() + 1;
    (0..buffer.len() as i32)
        .map(|index| {
            let mut ids = vec![-7; width];
            let (mut tokens, mut steps, mut logprobs) = (vec![0; L], vec![0; L], vec![0.0; L]);
            let mut prior = vec![9; L];
            let (mut length, mut stop, mut uid) = ([0], [0], [0]);
            let (mut group, mut version) = ([0], [0]);
            buffer
                .minibatch(
                    &[index],
                    &mut Minibatch {
                        prompt_ids: Some(&mut ids),
                        prompt_width: width,
                        pad_token_id: 99,
                        prompt_length: Some(&mut length),
                        token_ids: Some(&mut tokens),
                        unmask_step: Some(&mut steps),
                        prior_mask: Some(&mut prior),
                        logprob: Some(&mut logprobs),
                        stop_reason: Some(&mut stop),
                        uid: Some(&mut uid),
                        group: Some(&mut group),
                        policy_version: Some(&mut version),
                        ..Minibatch::default()
                    },
                )
                .unwrap();
            assert!(prior.iter().zip(&steps).all(|(&p, &s)| p == u8::from(s == PRIOR)));
            assert!(ids[length[0] as usize..].iter().all(|&id| id == 99));
            ids.truncate(length[0] as usize);
            Row {
                prompt: ids,
                tokens,
                steps,
                logprobs,
                stop: stop[0],
                uid: uid[0],
                group: group[0],
                version: version[0],
            }
        })
        .collect()
}

fn set_values(buffer: &Buffer) -> (Vec<f32>, Vec<f32>) {
    let rows: Vec<i32> = (0..buffer.len() as i32).collect();
    let (mut reward, mut advantage) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
    let out = &mut Minibatch {
        reward: Some(&mut reward),
        advantage: Some(&mut advantage),
        unset_as_nan: true,
        ..Minibatch::default()
    };
    buffer.minibatch(&rows, out).unwrap();
    (reward, advantage)
}

fn filled(rows: &[Row]) -> Buffer {
    let mut buffer = Buffer::new(L, 64).unwrap();
    buffer.push(&Columns::new(rows).view()).unwrap();
    buffer
}

fn one() -> Row {
    Row {
        prompt: vec![5, 6],
        tokens: vec![1, 2, 3, 4],
        steps: vec![1, PRIOR, 0, OUTSIDE],
        logprobs: vec![-1.0, 0.0, -2.0, 0.0],
        stop: 3,
        uid: u64::MAX,
        group: -1,
        version: 7,
    }
}

proptest! {
    #[test]
    fn what_is_pushed_is_what_is_read(first in rows(), second in rows()) {
        let mut buffer = filled(&first);
        prop_assert_eq!(buffer.push(&Columns::new(&second).view()).unwrap(), first.len());
        let all = [first, second].concat();
        let prompt_tokens: usize = all.iter().map(|r| r.prompt.len()).sum();
        prop_assert_eq!(buffer.nbytes(), all.len() * (41 + 10 * L) + 4 * prompt_tokens);
        prop_assert_eq!(read(&buffer), all);
    }

    #[test]
    fn evicting_keeps_the_others_in_order(all in rows(), before in -4..5i64) {
        let mut buffer = filled(&all);
        let rewards: Vec<f32> = (0..all.len()).map(|i| i as f32).collect();
        let indices: Vec<i32> = (0..all.len() as i32).collect();
        buffer.set_rewards(&indices, &rewards).unwrap();
        let (kept, old): (Vec<_>, Vec<_>) = all.into_iter().zip(rewards).partition(|(r, _)| r.version >= before);
        prop_assert_eq!(buffer.evict(before), old.len());
        prop_assert_eq!(set_values(&buffer).0, kept.iter().map(|(_, x)| *x).collect::<Vec<_>>());
        prop_assert_eq!(read(&buffer), kept.into_iter().map(|(r, _)| r).collect::<Vec<_>>());
    }

    #[test]
    fn replay_masks_exactly_what_is_revealed_from_the_step_on(all in rows(), step in 0..10i32) {
        let buffer = filled(&all);
        for (index, row) in all.iter().enumerate() {
            let mut out = [0; L];
            buffer.state_at(index as i32, step, 77, &mut out).unwrap();
            let ended = row.steps.iter().all(|&s| s < step);
            for (i, &shown) in out.iter().enumerate() {
                let masked = row.steps[i] >= step || (row.steps[i] == UNDRAWN && !ended);
                prop_assert_eq!(shown, if masked { 77 } else { row.tokens[i] });
            }
        }
    }

    #[test]
    fn a_refused_push_changes_nothing(all in rows(), which in 0..7usize) {
        let mut buffer = filled(&all);
        let mut bad = Columns::new(&[one(), one()]);
        match which {
            0 => bad.prompt_ids[3] = -1,
            1 => bad.prompt_length[1] = 3,
            2 => bad.token_ids[7] = i64::from(u32::MAX) + 1,
            3 => bad.unmask_step[4] = 32768,
            4 => bad.logprob[4] = f32::NAN,
            5 => bad.logprob[5] = -1.0,
            _ => { bad.group.pop(); }
        }
        prop_assert!(buffer.push(&bad.view()).is_err());
        prop_assert_eq!(read(&buffer), all);
    }
}

#[test]
fn a_full_buffer_says_what_to_do() {
    let mut buffer = Buffer::new(L, 3).unwrap();
    let two = Columns::new(&[one(), one()]);
    assert_eq!(buffer.push(&two.view()).unwrap(), 0);
    let error = buffer.push(&two.view()).unwrap_err();
    assert!(matches!(error, Error::State { .. }));
    assert!(error.to_string().contains("evict") && error.to_string().contains("larger capacity"));
    assert_eq!(buffer.len(), 2);
    assert_eq!(buffer.evict(8), 2);
    assert_eq!(buffer.push(&two.view()).unwrap(), 0);
}

#[test]
fn unset_rewards_and_advantages_are_not_read_as_zero() {
    let mut buffer = filled(&[one(), one()]);
    buffer.set_rewards(&[1, 1], &[9.0, 0.5]).unwrap();
    let mut out = [0.0; 1];
    let mut reward = |buffer: &Buffer, row| {
        let result =
            buffer.minibatch(&[row], &mut Minibatch { reward: Some(&mut out), ..Minibatch::default() });
        result.map(|()| out[0])
    };
    assert!(reward(&buffer, 0).unwrap_err().to_string().contains("set_rewards"));
    assert!((reward(&buffer, 1).unwrap() - 0.5).abs() < 1e-9);
    assert!(buffer.set_rewards(&[0], &[f32::NAN]).is_err());
    assert!(buffer.set_advantages(&[2], &[1.0]).unwrap_err().to_string().contains("rows"));
}

#[test]
fn restoring_keeps_what_is_set_and_what_is_not() {
    let columns = Columns::new(&[one(), one()]);
    let empty = Buffer::new(L, 2).unwrap();
    let unset = [f32::NAN; 2];
    let buffer = empty.clone().restore(&columns.view(), &[0.25, f32::NAN], &unset).unwrap();
    let (reward, advantage) = set_values(&buffer);
    assert!((reward[0] - 0.25).abs() < 1e-9);
    assert!(reward[1].is_nan() && advantage.iter().all(|a| a.is_nan()));
    assert!(empty.clone().restore(&columns.view(), &unset[..1], &unset).is_err());
    assert!(empty.restore(&columns.view(), &unset, &[f32::INFINITY, 0.0]).is_err());
}

#[test]
fn clearing_drops_rows_of_any_version() {
    let mut buffer = filled(&[Row { version: i64::MAX, ..one() }]);
    assert_eq!(buffer.evict(i64::MAX), 0);
    buffer.clear();
    assert!(buffer.is_empty() && buffer.nbytes() == 0);
}

#[test]
fn lengths_that_cannot_be_are_refused() {
    assert!(Buffer::new(0, 1).is_err());
    assert!(Buffer::new(1, usize::MAX).is_err());
    let buffer = filled(&[one()]);
    assert!(buffer.state_at(0, -1, 77, &mut [0; L]).is_err());
    assert!(buffer.state_at(0, 0, 77, &mut [0; L - 1]).is_err());
    assert!(buffer.state_at(0, 0, -1, &mut [0; L]).is_err());
    let mut narrow = Minibatch { prompt_ids: Some(&mut [0]), prompt_width: 1, ..Minibatch::default() };
    assert!(buffer.minibatch(&[0], &mut narrow).unwrap_err().to_string().contains("longest prompt"));
}
