//! The Python module `stp_rs._core`: a list of what the Rust core offers. Each class or function group has its own file.
#![allow(
    clippy::too_many_arguments,
    clippy::needless_pass_by_value,
    reason = "pyfunctions take keyword arguments, and own what Python hands them"
)]

mod arrays;
mod boundary;
mod corrupt;
mod grade;
mod prior;
mod rng;
mod rollout;
mod schedule;
mod shared;

use pyo3::prelude::*;
use pyo3::types::IntoPyDict;
use stp_core::marks::{MARKS, Stop};

/// The Rust core of `stp_rs`.
#[pymodule(gil_used = false)]
fn _core(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("MARKS", MARKS.iter().copied().into_py_dict(m.py())?)?;
    m.add("STOP_REASONS", Stop::NAMES.map(|(name, stop)| (name, stop as u8)).into_py_dict(m.py())?)?;
    arrays::prepare(m.py())?;
    rng::register(m)?;
    corrupt::register(m)?;
    grade::register(m)?;
    prior::register(m)?;
    rollout::register(m)?;
    schedule::register(m)?;
    Ok(())
}
