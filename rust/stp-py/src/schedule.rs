//! Plans and unmaskings for Python.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use stp_core::error::Error;
use stp_core::layout::Layout;
use stp_core::schedule::{Plan, Quota};
use stp_core::unmasking::Unmasking;

use crate::arrays::{dim, read, slice, slice_mut, write};
use crate::boundary::{enter, to_python};

/// Decoding options of a row, immutable.
#[pyclass(name = "Unmasking", module = "stp_rs._core", frozen)]
pub(crate) struct PyUnmasking {
    pub(crate) inner: Unmasking,
    text: [String; 5],
}

#[pymethods]
impl PyUnmasking {
    #[new]
    #[pyo3(signature = (diffusion_steps, *, block_length=0, quota="ceil_remaining", selection="top_k",
                        confidence="prob", temporal="none", max_nfe=0, eos="none"))]
    fn new(
        py: Python<'_>,
        diffusion_steps: usize,
        block_length: usize,
        quota: &str,
        selection: &str,
        confidence: &str,
        temporal: &str,
        max_nfe: usize,
        eos: &str,
    ) -> PyResult<Self> {
        let build = || -> stp_core::Result<Unmasking> {
            let (quota, selection) = (quota.parse()?, selection.parse()?);
            let (confidence, temporal) = (confidence.parse()?, temporal.parse()?);
            let unmasking = Unmasking {
                diffusion_steps,
                block_length,
                quota,
                selection,
                confidence,
                temporal,
                max_nfe,
                eos: eos.parse()?,
            };
            unmasking.check().map(|()| unmasking)
        };
        let text = [quota, selection, confidence, temporal, eos].map(str::to_string);
        build().map(|inner| Self { inner, text }).map_err(|e| to_python(py, &e))
    }

    /// Whether the choice of positions reads the state only, so that the trajectory log-likelihood is the plain sum.
    #[getter]
    fn exact(&self) -> bool {
        self.inner.exact()
    }

    #[getter]
    fn diffusion_steps(&self) -> usize {
        self.inner.diffusion_steps
    }

    /// Mask counts of the plan that a row with these free positions follows; None where it depends on the model, the
    /// batch or chance.
    fn plan(&self, py: Python<'_>, free: &Bound<'_, PyAny>) -> PyResult<Option<Vec<u32>>> {
        let view = read::<u8>("free", free, &[-1])?;
        let free = slice(&view)?;
        enter(py, || {
            let layout = Layout::new(0, free.len(), self.inner.block_length);
            let positions: Vec<u32> = (0..free.len() as u32).filter(|&p| free[p as usize] != 0).collect();
            Ok(self.inner.plan(&positions, &layout).map(|p| p.counts().to_vec()))
        })
    }

    /// The arguments that make an equal unmasking: for pickle and copy.
    fn __getnewargs_ex__<'py>(&self, py: Python<'py>) -> PyResult<((usize,), Bound<'py, PyDict>)> {
        let options = PyDict::new(py);
        for (name, text) in
            ["quota", "selection", "confidence", "temporal", "eos"].into_iter().zip(&self.text)
        {
            options.set_item(name, text)?;
        }
        options.set_item("block_length", self.inner.block_length)?;
        options.set_item("max_nfe", self.inner.max_nfe)?;
        Ok(((self.inner.diffusion_steps,), options))
    }

    fn __repr__(&self) -> String {
        let [quota, selection, confidence, temporal, eos] = &self.text;
        let s = &self.inner;
        format!(
            "Unmasking({}, block_length={}, quota='{quota}', selection='{selection}', confidence='{confidence}', \
             temporal='{temporal}', max_nfe={}, eos='{eos}')\n  {}",
            s.diffusion_steps,
            s.block_length,
            s.max_nfe,
            drawn(s)
        )
    }
}

/// The plan of a completion with one free token per step, in text: masks before each forward, and reveals.
fn drawn(unmasking: &Unmasking) -> String {
    let n = unmasking.diffusion_steps.min(DRAWN);
    let whole = Unmasking { diffusion_steps: n, ..*unmasking };
    let layout = Layout::new(0, n, unmasking.block_length);
    let positions: Vec<u32> = (0..n as u32).collect();
    let Some(plan) = whole.plan(&positions, &layout) else {
        return "how many tokens a forward reveals depends on the model".to_string();
    };
    let counts = plan.counts();
    let bars: String = (0..counts.len().min(COLUMNS))
        .map(|i| {
            let masks = counts[i * counts.len() / counts.len().min(COLUMNS)] as usize;
            HEIGHTS[(masks * HEIGHTS.len()).div_ceil(n).clamp(1, HEIGHTS.len()) - 1]
        })
        .collect();
    let mut runs: Vec<(u32, usize)> = Vec::new();
    for reveal in plan.reveals() {
        match runs.last_mut() {
            Some((count, times)) if *count == reveal => *times += 1,
            _ => runs.push((reveal, 1)),
        }
    }
    let more = if runs.len() > RUNS { ", ..." } else { "" };
    let said: Vec<String> = runs
        .iter()
        .take(RUNS)
        .map(|&(count, times)| if times == 1 { count.to_string() } else { format!("{count} x {times}") })
        .collect();
    format!(
        "{n} free tokens, {} forwards; masked before each: {bars}\n  revealed by each: {}{more}",
        counts.len(),
        said.join(", ")
    )
}

/// Most tokens of a drawn plan, its columns, and runs of equal reveals.
const DRAWN: usize = 4096;
const COLUMNS: usize = 60;
const RUNS: usize = 12;
const HEIGHTS: [char; 8] =
    ['\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}'];

/// Mask counts of the even plan of `n` tokens in at most `steps` steps.
#[pyfunction]
#[pyo3(signature = (n, steps, quota="ceil_remaining"))]
fn plan_counts(py: Python<'_>, n: usize, steps: usize, quota: &str) -> PyResult<Vec<u32>> {
    let quota: Quota = quota.parse().map_err(|e| to_python(py, &e))?;
    enter(py, || {
        if n.max(steps) > Plan::LONGEST {
            let need = format!("at most {} of either", Plan::LONGEST);
            return Err(Error::value("n, steps", format!("{n}, {steps}"), need));
        }
        Ok(Plan::even(n, steps, quota).counts().to_vec())
    })
}

/// Writes into `out` `[R, L]` the mask counts of the plan that each row's likelihood is computed for, zero-padded.
#[pyfunction]
#[pyo3(signature = (unmask_step, out, *, score_prior, diffusion_steps, quota="ceil_remaining"))]
fn scored_counts(
    unmask_step: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    score_prior: bool,
    diffusion_steps: usize,
    quota: &str,
) -> PyResult<()> {
    let py = unmask_step.py();
    let quota: Quota = quota.parse().map_err(|e| to_python(py, &e))?;
    if diffusion_steps > Plan::LONGEST {
        let need = format!("at most {}", Plan::LONGEST);
        return Err(to_python(py, &Error::value("diffusion_steps", diffusion_steps, need)));
    }
    let (rows, length) = (dim("unmask_step", unmask_step, 0)?, dim("unmask_step", unmask_step, 1)?);
    let steps = read::<i32>("unmask_step", unmask_step, &[rows as isize, length as isize])?;
    let mut target = write::<i32>("out", out, &[rows as isize, length as isize])?;
    let (steps, target) = (slice(&steps)?, slice_mut(&mut target)?);
    enter(py, || {
        target.fill(0);
        for (row, out) in steps.chunks_exact(length.max(1)).zip(target.chunks_exact_mut(length.max(1))) {
            let plan = Plan::scored(row, score_prior, diffusion_steps, quota);
            for (slot, &count) in out.iter_mut().zip(plan.counts()) {
                *slot = count as i32;
            }
        }
        Ok(())
    })
}

/// Adds this file's classes and functions to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyUnmasking>()?;
    m.add_function(wrap_pyfunction!(plan_counts, m)?)?;
    m.add_function(wrap_pyfunction!(scored_counts, m)?)
}
