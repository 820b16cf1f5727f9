//! The columns of a buffer as keyword arguments: which names a call takes, and checked views of what it got.

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use stp_core::buffer::{Minibatch, Rollouts};

use crate::arrays::{Read, Write, dim, read, slice, slice_mut, write};
use crate::boundary::raise;

/// What a push takes, all of it.
pub(crate) const PUSHED: [&str; 9] = [
    "prompt_ids",
    "prompt_length",
    "token_ids",
    "unmask_step",
    "logprob",
    "stop_reason",
    "uid",
    "group",
    "policy_version",
];

/// What a minibatch writes, any subset of it.
pub(crate) const READ: [&str; 12] = [
    "prompt_ids",
    "prompt_length",
    "token_ids",
    "unmask_step",
    "prior_mask",
    "logprob",
    "stop_reason",
    "reward",
    "advantage",
    "uid",
    "group",
    "policy_version",
];

/// What a checkpoint holds, all of it.
pub(crate) const STORED: [&str; 12] = [
    "prompt_ids",
    "prompt_length",
    "token_ids",
    "unmask_step",
    "logprob",
    "stop_reason",
    "reward",
    "advantage",
    "uid",
    "group",
    "policy_version",
    "capacity",
];

/// Refuses a name that the call does not know: a typing error would otherwise be an array never written.
pub(crate) fn known(call: &str, given: &Bound<'_, PyDict>, names: &[&str]) -> PyResult<()> {
    for key in given.keys() {
        let key = key.str()?;
        if !names.iter().any(|&name| key == name) {
            let text = format!("{call}: got an array named '{key}', needs names among {}", names.join(", "));
            return Err(raise(given.py(), "InvalidValueError", &text));
        }
    }
    Ok(())
}

/// The array of a name that must be there.
pub(crate) fn required<'py>(
    call: &str,
    given: &Bound<'py, PyDict>,
    name: &str,
) -> PyResult<Bound<'py, PyAny>> {
    given.get_item(name)?.ok_or_else(|| {
        let text = format!("{call}: {name} is missing; pass it as a numpy array");
        raise(given.py(), "InvalidValueError", &text)
    })
}

/// New arrays for a checkpoint of `[rows, completion length, prompt width]`.
pub(crate) fn allocate(
    py: Python<'_>,
    [rows, length, width]: [usize; 3],
    capacity: usize,
) -> PyResult<Bound<'_, PyDict>> {
    let zeros = py.import("numpy")?.getattr("zeros")?;
    let arrays = PyDict::new(py);
    for (name, columns, dtype) in [
        ("prompt_ids", Some(width), "int64"),
        ("prompt_length", None, "int32"),
        ("token_ids", Some(length), "int64"),
        ("unmask_step", Some(length), "int32"),
        ("logprob", Some(length), "float32"),
        ("stop_reason", None, "uint8"),
        ("reward", None, "float32"),
        ("advantage", None, "float32"),
        ("uid", None, "uint64"),
        ("group", None, "int64"),
        ("policy_version", None, "int64"),
    ] {
        let shape = [Some(rows), columns].into_iter().flatten().collect::<Vec<_>>();
        arrays.set_item(name, zeros.call1((shape, dtype))?)?;
    }
    let capacity = py.import("numpy")?.getattr("array")?.call1(([capacity], "int64"))?;
    arrays.set_item("capacity", capacity)?;
    Ok(arrays)
}

/// Read-only views of the arrays of a push.
pub(crate) struct Incoming<'py> {
    prompt_ids: Read<'py, i64>,
    prompt_width: usize,
    prompt_length: Read<'py, i32>,
    token_ids: Read<'py, i64>,
    unmask_step: Read<'py, i32>,
    logprob: Read<'py, f32>,
    stop_reason: Read<'py, u8>,
    uid: Read<'py, u64>,
    group: Read<'py, i64>,
    policy_version: Read<'py, i64>,
}

impl<'py> Incoming<'py> {
    /// Checks dtypes and shapes; `uid` says how many rows there are.
    pub(crate) fn new(call: &str, given: &Bound<'py, PyDict>, length: usize) -> PyResult<Self> {
        fn view<'py, T: Element>(
            call: &str,
            given: &Bound<'py, PyDict>,
            name: &str,
            shape: &[isize],
        ) -> PyResult<Read<'py, T>> {
            read(name, &required(call, given, name)?, shape)
        }
        let n = dim("uid", &required(call, given, "uid")?, 0)? as isize;
        let prompt_ids = view(call, given, "prompt_ids", &[n, -1])?;
        let l = length as isize;
        Ok(Self {
            prompt_width: dim("prompt_ids", &required(call, given, "prompt_ids")?, 1)?,
            prompt_ids,
            prompt_length: view(call, given, "prompt_length", &[n])?,
            token_ids: view(call, given, "token_ids", &[n, l])?,
            unmask_step: view(call, given, "unmask_step", &[n, l])?,
            logprob: view(call, given, "logprob", &[n, l])?,
            stop_reason: view(call, given, "stop_reason", &[n])?,
            uid: view(call, given, "uid", &[n])?,
            group: view(call, given, "group", &[n])?,
            policy_version: view(call, given, "policy_version", &[n])?,
        })
    }

    /// The slices behind the views.
    pub(crate) fn view(&self) -> PyResult<Rollouts<'_>> {
        Ok(Rollouts {
            prompt_ids: slice(&self.prompt_ids)?,
            prompt_width: self.prompt_width,
            prompt_length: slice(&self.prompt_length)?,
            token_ids: slice(&self.token_ids)?,
            unmask_step: slice(&self.unmask_step)?,
            logprob: slice(&self.logprob)?,
            stop_reason: slice(&self.stop_reason)?,
            uid: slice(&self.uid)?,
            group: slice(&self.group)?,
            policy_version: slice(&self.policy_version)?,
        })
    }
}

type Out<'py, T> = Option<Write<'py, T>>;

/// Writable views of the arrays that a minibatch fills.
pub(crate) struct Outgoing<'py> {
    prompt_ids: Out<'py, i64>,
    prompt_width: usize,
    prompt_length: Out<'py, i32>,
    token_ids: Out<'py, i64>,
    unmask_step: Out<'py, i32>,
    prior_mask: Out<'py, u8>,
    logprob: Out<'py, f32>,
    stop_reason: Out<'py, u8>,
    reward: Out<'py, f32>,
    advantage: Out<'py, f32>,
    uid: Out<'py, u64>,
    group: Out<'py, i64>,
    policy_version: Out<'py, i64>,
}

impl<'py> Outgoing<'py> {
    /// Checks dtypes and shapes of the arrays that are there.
    pub(crate) fn new(given: &Bound<'py, PyDict>, rows: usize, length: usize) -> PyResult<Self> {
        fn view<'py, T: Element>(
            given: &Bound<'py, PyDict>,
            name: &str,
            shape: &[isize],
        ) -> PyResult<Out<'py, T>> {
            given.get_item(name)?.map(|array| write(name, &array, shape)).transpose()
        }
        let (n, l) = (rows as isize, length as isize);
        let prompt_ids = view(given, "prompt_ids", &[n, -1])?;
        let prompt_width = match &prompt_ids {
            Some(_) => dim("prompt_ids", &required("minibatch", given, "prompt_ids")?, 1)?,
            None => 0,
        };
        Ok(Self {
            prompt_ids,
            prompt_width,
            prompt_length: view(given, "prompt_length", &[n])?,
            token_ids: view(given, "token_ids", &[n, l])?,
            unmask_step: view(given, "unmask_step", &[n, l])?,
            prior_mask: view(given, "prior_mask", &[n, l])?,
            logprob: view(given, "logprob", &[n, l])?,
            stop_reason: view(given, "stop_reason", &[n])?,
            reward: view(given, "reward", &[n])?,
            advantage: view(given, "advantage", &[n])?,
            uid: view(given, "uid", &[n])?,
            group: view(given, "group", &[n])?,
            policy_version: view(given, "policy_version", &[n])?,
        })
    }

    /// The slices behind the views.
    pub(crate) fn view(&mut self) -> PyResult<Minibatch<'_>> {
        fn inner<'a, T: Element>(out: &'a mut Out<'_, T>) -> PyResult<Option<&'a mut [T]>> {
            out.as_mut().map(slice_mut).transpose()
        }
        Ok(Minibatch {
            prompt_ids: inner(&mut self.prompt_ids)?,
            prompt_width: self.prompt_width,
            pad_token_id: 0,
            prompt_length: inner(&mut self.prompt_length)?,
            token_ids: inner(&mut self.token_ids)?,
            unmask_step: inner(&mut self.unmask_step)?,
            prior_mask: inner(&mut self.prior_mask)?,
            logprob: inner(&mut self.logprob)?,
            stop_reason: inner(&mut self.stop_reason)?,
            reward: inner(&mut self.reward)?,
            advantage: inner(&mut self.advantage)?,
            unset_as_nan: false,
            uid: inner(&mut self.uid)?,
            group: inner(&mut self.group)?,
            policy_version: inner(&mut self.policy_version)?,
        })
    }
}
