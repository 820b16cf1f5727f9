//! The rollout scheduler for Python.

use std::sync::MutexGuard;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use stp_core::error::Error;
use stp_core::rollout::{Request, Results, Scheduler};
use stp_core::select::Score;
use stp_core::unmasking::Unmasking;

use crate::arrays::{dim, read, slice, slice_mut, write};
use crate::boundary::{enter, raise, to_python};
use crate::prior::PyPriorSet;
use crate::schedule::PyUnmasking;
use crate::shared::Shared;

/// Rows, width and candidates of a model call; whether top2, entropy and argmax are read.
type NextCall = (usize, usize, usize, (bool, bool, bool));

/// Decodes a queue of rows through model calls that the caller makes.
#[pyclass(name = "RolloutScheduler", module = "stp_rs._core", frozen)]
struct PyScheduler {
    inner: Shared<Scheduler>,
}

impl PyScheduler {
    /// The scheduler, for this thread alone.
    fn lock(&self) -> stp_core::Result<MutexGuard<'_, Scheduler>> {
        self.inner.lock().ok_or_else(|| {
            Error::state(
                "the process was forked in the middle of a call of this scheduler by another thread",
                "make a new scheduler in the child",
            )
        })
    }

    /// The same outside of `enter`.
    fn get(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, Scheduler>> {
        self.lock().map_err(|error| to_python(py, &error))
    }
}

#[pymethods]
impl PyScheduler {
    #[new]
    #[pyo3(signature = (*, mask_token_id, pad_token_id, slots, seed, share_first=true, eos_token_ids=None,
                        max_tokens=0, length_sorted=false, block_size=0))]
    fn new(
        py: Python<'_>,
        mask_token_id: i64,
        pad_token_id: i64,
        slots: usize,
        seed: u64,
        share_first: bool,
        eos_token_ids: Option<Vec<i64>>,
        max_tokens: usize,
        length_sorted: bool,
        block_size: usize,
    ) -> PyResult<Self> {
        let inner = Scheduler::new(mask_token_id, pad_token_id, slots, seed, share_first).map(|s| {
            s.with_eos(eos_token_ids.as_deref().unwrap_or_default())
                .with_blocks(block_size)
                .with_admission(max_tokens, length_sorted)
        });
        inner.map(|s| Self { inner: Shared::new(s) }).map_err(|e| to_python(py, &e))
    }

    /// Queues rows: `uids` u64 `[R]`, `prompt_ids` i64 `[R, P]` right-padded, lengths i32 `[R]`; one
    /// unmasking for all rows or a sequence of R.
    #[pyo3(signature = (uids, prompt_ids, prompt_lengths, completion_lengths, unmasking, prior=None))]
    fn submit(
        &self,
        uids: &Bound<'_, PyAny>,
        prompt_ids: &Bound<'_, PyAny>,
        prompt_lengths: &Bound<'_, PyAny>,
        completion_lengths: &Bound<'_, PyAny>,
        unmasking: &Bound<'_, PyAny>,
        prior: Option<&PyPriorSet>,
    ) -> PyResult<()> {
        let py = uids.py();
        let (rows, width) = (dim("uids", uids, 0)?, dim("prompt_ids", prompt_ids, 1)?);
        let uids = read::<u64>("uids", uids, &[-1])?;
        let prompts = read::<i64>("prompt_ids", prompt_ids, &[rows as isize, -1])?;
        let plen = read::<i32>("prompt_lengths", prompt_lengths, &[rows as isize])?;
        let clen = read::<i32>("completion_lengths", completion_lengths, &[rows as isize])?;
        let (uids, prompts, plen, clen) = (slice(&uids)?, slice(&prompts)?, slice(&plen)?, slice(&clen)?);
        let prior = prior.map(|p| &p.inner);
        let unmaskings = unmaskings(unmasking)?;
        enter(py, || {
            if unmaskings.len() != 1 && unmaskings.len() != rows {
                return Err(Error::shape(
                    "unmasking",
                    unmaskings.len(),
                    format!("one unmasking, or one per row ({rows})"),
                ));
            }
            if let Some(prior) = prior.filter(|p| p.rows() != rows) {
                return Err(Error::shape("prior (rows)", prior.rows(), rows));
            }
            let bad = plen.iter().find(|&&l| l < 0 || l as usize > width);
            if let Some(bad) = bad.or_else(|| clen.iter().find(|&&l| l < 0)) {
                let need = format!("lengths of at least 0, prompts of at most {width}");
                return Err(Error::value("lengths", bad, need));
            }
            let request = |row: usize| Request {
                uid: uids[row],
                prompt: &prompts[row * width..row * width + plen[row] as usize],
                completion_length: clen[row] as usize,
                prior: prior.map_or(&[], |p| p.row(row)),
                unmasking: unmaskings[if unmaskings.len() == 1 { 0 } else { row }],
            };
            let requests: Vec<Request<'_>> = (0..rows).map(request).collect();
            self.lock()?.submit(&requests)
        })
    }

    /// Sizes that hold any step: (canvas tokens, candidates).
    fn capacity(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        Ok(self.get(py)?.capacity())
    }

    /// Fills the next model call and returns (rows, width, candidates, reads); rows is 0 when all rows are finished.
    /// `reads` says whether top2, entropy and argmax of the candidates are read: `commit` does not look at the others.
    fn next_step(
        &self,
        ids: &Bound<'_, PyAny>,
        lengths: &Bound<'_, PyAny>,
        candidates: &Bound<'_, PyAny>,
        uniforms: &Bound<'_, PyAny>,
    ) -> PyResult<NextCall> {
        let py = ids.py();
        let mut ids = write::<i64>("ids", ids, &[-1])?;
        let mut lengths = write::<i32>("lengths", lengths, &[-1])?;
        let mut candidates = write::<i32>("candidates", candidates, &[-1])?;
        let mut uniforms = write::<f32>("uniforms", uniforms, &[-1])?;
        let (ids, lengths) = (slice_mut(&mut ids)?, slice_mut(&mut lengths)?);
        let (candidates, uniforms) = (slice_mut(&mut candidates)?, slice_mut(&mut uniforms)?);
        let step = enter(py, || self.lock()?.next_step(ids, lengths, candidates, uniforms))?;
        let reads = (step.reads.top2, step.reads.entropy, step.reads.argmax);
        Ok((step.rows, step.width, step.candidates, reads))
    }

    /// Writes the place of every candidate of the pending step: row times `length` plus completion position.
    fn places(&self, length: usize, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut view = write::<i32>("places", out, &[-1])?;
        let target = slice_mut(&mut view)?;
        enter(out.py(), || self.lock()?.places(length, target))
    }

    /// Writes the row of every canvas of the pending step, and where its current block starts.
    fn blocks(&self, rows: &Bound<'_, PyAny>, starts: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut row_view = write::<i32>("rows", rows, &[-1])?;
        let mut start_view = write::<i32>("starts", starts, &[-1])?;
        let (row_target, start_target) = (slice_mut(&mut row_view)?, slice_mut(&mut start_view)?);
        enter(rows.py(), || self.lock()?.blocks(row_target, start_target))
    }

    /// Commits the numbers f32 `[N, 7]` of the pending step.
    fn commit(&self, packed: &Bound<'_, PyAny>) -> PyResult<()> {
        let view = read::<f32>("packed", packed, &[-1, Score::COLUMNS as isize])?;
        let values = slice(&view)?;
        enter(packed.py(), || self.lock()?.commit(values))
    }

    /// Writes all trajectories in the order of submission.
    fn results(
        &self,
        token_ids: &Bound<'_, PyAny>,
        unmask_step: &Bound<'_, PyAny>,
        logprob: &Bound<'_, PyAny>,
        nfe: &Bound<'_, PyAny>,
        stop: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = token_ids.py();
        let rows = self.get(py)?.len();
        let length = dim("token_ids", token_ids, 1)?;
        let shape = [rows as isize, length as isize];
        let mut token_ids = write::<i64>("token_ids", token_ids, &shape)?;
        let mut unmask_step = write::<i32>("unmask_step", unmask_step, &shape)?;
        let mut logprob = write::<f32>("logprob", logprob, &shape)?;
        let mut nfe = write::<i32>("nfe", nfe, &shape[..1])?;
        let mut stop = write::<u8>("stop", stop, &shape[..1])?;
        let mut out = Results {
            token_ids: slice_mut(&mut token_ids)?,
            unmask_step: slice_mut(&mut unmask_step)?,
            logprob: slice_mut(&mut logprob)?,
            nfe: slice_mut(&mut nfe)?,
            stop: slice_mut(&mut stop)?,
        };
        enter(py, || self.lock()?.results(length, &mut out))
    }

    /// Counters: forwards, calls, nfe, head_rows, tokens, padding, nan.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = self.get(py)?.stats();
        let dict = PyDict::new(py);
        for (name, value) in [
            ("forwards", s.forwards),
            ("calls", s.calls),
            ("nfe", s.nfe),
            ("head_rows", s.head_rows),
            ("tokens", s.tokens),
            ("padding", s.padding),
            ("nan", s.nan),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }

    /// Rows that are not finished.
    #[getter]
    fn unfinished(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.get(py)?.unfinished())
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.get(py)?.len())
    }
}

/// The unmaskings of a submission: one for all rows, or one per row.
fn unmaskings(value: &Bound<'_, PyAny>) -> PyResult<Vec<Unmasking>> {
    if let Ok(one) = value.cast::<PyUnmasking>() {
        return Ok(vec![one.get().inner]);
    }
    let inner = |item: PyResult<Bound<'_, PyAny>>| -> PyResult<Unmasking> {
        let item = item?;
        item.cast::<PyUnmasking>().map(|s| s.get().inner).map_err(|_| {
            let text =
                "unmasking: got another object, needs an Unmasking or a sequence of one Unmasking per row";
            raise(item.py(), "InvalidValueError", text)
        })
    };
    value.try_iter()?.map(inner).collect()
}

/// Adds this file's classes and functions to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyScheduler>()
}
