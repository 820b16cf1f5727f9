//! Python face of `stp_core::corrupt`.

use std::sync::{Mutex, TryLockError};

use numpy::{PyArray1, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use stp_core::corrupt::{self, Batch, Keys, Options, Out, Scratch};

use crate::arrays::{bounded, dim, read, slice, slice_mut, write};
use crate::boundary::{enter, raise, to_python};

/// A law over weighted masks.
#[pyclass(frozen, module = "stp_rs._core")]
struct Design {
    design: corrupt::Design,
    scratch: Mutex<Scratch>,
}

impl Design {
    /// What `work` returns, given the design's working memory; a thread that finds it in use has memory of its own. So
    /// threads do not wait for each other, and a child that was forked in the middle of a draw does not wait for ever.
    fn with_scratch<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        match self.scratch.try_lock() {
            Ok(mut scratch) => work(&mut scratch),
            Err(TryLockError::Poisoned(poisoned)) => work(&mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => work(&mut Scratch::default()),
        }
    }
}

#[pymethods]
impl Design {
    #[new]
    #[pyo3(signature = (name, num_mc=2, *, num_iterations=1, block_length=0, truncate=None, divide_weights=false))]
    #[allow(clippy::too_many_arguments, reason = "one argument per option")]
    fn new(
        py: Python<'_>,
        name: &str,
        num_mc: usize,
        num_iterations: usize,
        block_length: usize,
        truncate: Option<Vec<f64>>,
        divide_weights: bool,
    ) -> PyResult<Self> {
        let truncate = match truncate.as_deref() {
            None => None,
            Some(&[low, high]) => Some((low, high)),
            Some(other) => {
                let text = format!("truncate: got {} numbers, needs two, from and to", other.len());
                return Err(raise(py, "InvalidValueError", &text));
            }
        };
        let options = Options { num_mc, num_iterations, block_length, truncate, divide_weights };
        let design = corrupt::Design::new(name, options).map_err(|error| to_python(py, &error))?;
        Ok(Self { design, scratch: Mutex::default() })
    }

    /// The arguments that make an equal design: for pickle and copy.
    fn __getnewargs_ex__<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<((&'static str, usize), Bound<'py, PyDict>)> {
        let (given, options) = (self.design.options(), PyDict::new(py));
        options.set_item("num_iterations", given.num_iterations)?;
        options.set_item("block_length", given.block_length)?;
        options.set_item("truncate", given.truncate)?;
        options.set_item("divide_weights", given.divide_weights)?;
        Ok(((self.name(), given.num_mc), options))
    }

    #[getter]
    fn name(&self) -> &'static str {
        self.design.info().name
    }

    #[getter]
    fn num_mc(&self) -> usize {
        self.design.options().num_mc
    }

    /// Whether it scores what the rollout drew, where it drew it: recorded log-probs are the old ones.
    #[getter]
    fn recorded(&self) -> bool {
        self.design.info().recorded()
    }

    /// Whether the weights of a row sum to 1 (a mean per token) instead of n (a log-likelihood), on average.
    #[getter]
    fn per_token(&self) -> bool {
        self.design.info().per_token()
    }

    /// Whether `unmask_counts` is read; the other designs take n from the eligible positions alone.
    #[getter]
    fn reads_plan(&self) -> bool {
        self.design.info().reads_plan
    }

    #[getter]
    fn published(&self) -> bool {
        self.design.info().published
    }

    #[getter]
    fn unbiased(&self) -> bool {
        self.design.unbiased()
    }

    #[getter]
    fn target(&self) -> &'static str {
        self.design.info().target.name()
    }

    /// The number of passes of each row: i32[R].
    fn passes<'py>(
        &self,
        py: Python<'py>,
        eligible: &Bound<'py, PyAny>,
        unmask_counts: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let (rows, length) = (dim("eligible", eligible, 0)?, dim("eligible", eligible, 1)?);
        let max_steps = dim("unmask_counts", unmask_counts, 1)?;
        bounded(py, "rows", rows)?;
        let eligible = read::<u8>("eligible", eligible, &[-1, -1])?;
        let unmask_counts = read::<i32>("unmask_counts", unmask_counts, &[rows as isize, -1])?;
        let batch = Batch {
            rows,
            length,
            eligible: slice(&eligible)?,
            max_steps,
            unmask_counts: slice(&unmask_counts)?,
            unmask_step: &[],
            mass: &[],
        };
        let out = PyArray1::<i32>::zeros(py, rows, false);
        let mut view = out.readwrite();
        let passes = view.as_slice_mut()?;
        enter(py, || self.with_scratch(|scratch| self.design.passes(&batch, scratch, passes)))?;
        drop(view);
        Ok(out)
    }

    /// Draws the masks and weights of every row into caller-allocated arrays.
    #[pyo3(signature = (eligible, unmask_counts, unmask_step, seed, uids, iteration, mask, weight, row, *, mass=None))]
    #[allow(clippy::too_many_arguments, reason = "one argument per array that crosses the boundary")]
    fn draw(
        &self,
        py: Python<'_>,
        eligible: &Bound<'_, PyAny>,
        unmask_counts: &Bound<'_, PyAny>,
        unmask_step: &Bound<'_, PyAny>,
        seed: u64,
        uids: &Bound<'_, PyAny>,
        iteration: u32,
        mask: &Bound<'_, PyAny>,
        weight: &Bound<'_, PyAny>,
        row: &Bound<'_, PyAny>,
        mass: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (rows, length) = (dim("eligible", eligible, 0)?, dim("eligible", eligible, 1)?);
        let max_steps = dim("unmask_counts", unmask_counts, 1)?;
        let passes = dim("row", row, 0)?;
        let (r, l, p) = (rows as isize, length as isize, passes as isize);
        let eligible = read::<u8>("eligible", eligible, &[r, l])?;
        let unmask_counts = read::<i32>("unmask_counts", unmask_counts, &[r, -1])?;
        let unmask_step = read::<i32>("unmask_step", unmask_step, &[r, l])?;
        let uids = read::<u64>("uids", uids, &[r])?;
        let mut mask = write::<u8>("mask", mask, &[p, l])?;
        let mut weight = write::<f32>("weight", weight, &[p, l])?;
        let mut row = write::<i32>("row", row, &[p])?;
        let mass = mass.map(|mass| read::<f32>("mass", mass, &[r, l])).transpose()?;
        let batch = Batch {
            rows,
            length,
            eligible: slice(&eligible)?,
            max_steps,
            unmask_counts: slice(&unmask_counts)?,
            unmask_step: slice(&unmask_step)?,
            mass: mass.as_ref().map(slice).transpose()?.unwrap_or_default(),
        };
        let keys = Keys { seed, uids: slice(&uids)?, iteration };
        let mut out =
            Out { mask: slice_mut(&mut mask)?, weight: slice_mut(&mut weight)?, row: slice_mut(&mut row)? };
        enter(py, || self.with_scratch(|scratch| self.design.draw(&batch, &keys, &mut out, scratch)))
    }

    /// Every outcome of one row with its probability: (probability, mask [P][L], weight [P][L]).
    #[pyo3(signature = (eligible, unmask_counts, unmask_step, *, iteration=0, limit=1_000_000, mass=None))]
    #[allow(clippy::too_many_arguments, reason = "one argument per array that crosses the boundary")]
    fn law(
        &self,
        py: Python<'_>,
        eligible: &Bound<'_, PyAny>,
        unmask_counts: &Bound<'_, PyAny>,
        unmask_step: &Bound<'_, PyAny>,
        iteration: u32,
        limit: usize,
        mass: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Outcome>> {
        let length = dim("eligible", eligible, 1)?;
        let max_steps = dim("unmask_counts", unmask_counts, 1)?;
        let eligible = read::<u8>("eligible", eligible, &[1, -1])?;
        let unmask_counts = read::<i32>("unmask_counts", unmask_counts, &[1, -1])?;
        let unmask_step = read::<i32>("unmask_step", unmask_step, &[1, length as isize])?;
        let mass = mass.map(|mass| read::<f32>("mass", mass, &[1, length as isize])).transpose()?;
        let batch = Batch {
            rows: 1,
            length,
            eligible: slice(&eligible)?,
            max_steps,
            unmask_counts: slice(&unmask_counts)?,
            unmask_step: slice(&unmask_step)?,
            mass: mass.as_ref().map(slice).transpose()?.unwrap_or_default(),
        };
        let law = enter(py, || self.design.law(&batch, iteration, limit))?;
        let width = length.max(1);
        Ok(law
            .into_iter()
            .map(|outcome| {
                let mask =
                    outcome.mask.chunks(width).map(|pass| pass.iter().map(|&m| i64::from(m)).collect());
                let weight = outcome.weight.chunks(width).map(<[f64]>::to_vec);
                (outcome.probability, mask.collect(), weight.collect())
            })
            .collect())
    }

    /// All designs: (name, one line about it).
    #[staticmethod]
    fn names() -> Vec<(&'static str, &'static str)> {
        corrupt::designs().iter().map(|info| (info.name, info.about)).collect()
    }

    fn __repr__(&self) -> String {
        format!("Design({:?}, num_mc={})", self.name(), self.num_mc())
    }
}

/// (probability, mask [P][L], weight [P][L])
type Outcome = (f64, Vec<Vec<i64>>, Vec<Vec<f64>>);

/// Fills u8[P, W] with prompt masks: each prompt token with probability `ratio`, keyed like the passes.
#[pyfunction]
#[allow(clippy::too_many_arguments, reason = "one argument per array that crosses the boundary")]
fn prompt_mask(
    py: Python<'_>,
    prompt: &Bound<'_, PyAny>,
    ratio: f64,
    seed: u64,
    uids: &Bound<'_, PyAny>,
    iteration: u32,
    row: &Bound<'_, PyAny>,
    mask: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (rows, width) = (dim("prompt", prompt, 0)?, dim("prompt", prompt, 1)?);
    let passes = dim("row", row, 0)? as isize;
    let prompt = read::<u8>("prompt", prompt, &[rows as isize, width as isize])?;
    let uids = read::<u64>("uids", uids, &[rows as isize])?;
    let row = read::<i32>("row", row, &[passes])?;
    let mut mask = write::<u8>("mask", mask, &[passes, width as isize])?;
    let keys = Keys { seed, uids: slice(&uids)?, iteration };
    let (prompt, row, mask) = (slice(&prompt)?, slice(&row)?, slice_mut(&mut mask)?);
    enter(py, || corrupt::prompt_mask(prompt, width, ratio, &keys, row, mask))
}

/// Adds this file's classes and functions to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<Design>()?;
    m.add_function(wrap_pyfunction!(prompt_mask, m)?)
}
