//! Philox and row uids for Python.

use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use stp_core::error::Error;
use stp_core::rng;

use crate::boundary::{enter, raise};

/// One Philox4x32-10 block: four u32 for a key of two and a counter of four.
#[pyfunction]
fn philox4x32(py: Python<'_>, key: Vec<u32>, counter: Vec<u32>) -> PyResult<[u32; 4]> {
    Ok(rng::philox4x32(numbers(py, "key", &key)?, numbers(py, "counter", &counter)?))
}

fn numbers<const N: usize>(py: Python<'_>, name: &str, given: &[u32]) -> PyResult<[u32; N]> {
    let text = || format!("{name}: got {} numbers, needs {N}", given.len());
    given.try_into().map_err(|_| raise(py, "InvalidValueError", &text()))
}

/// A 64-bit row uid from up to three coordinates, for example (update, prompt, sample).
#[pyfunction]
#[pyo3(signature = (a, b=0, c=0))]
fn row_uid(a: u64, b: u64, c: u64) -> u64 {
    rng::row_uid(a, b, c)
}

/// Most elements of a permutation: a gigabyte of them.
const MOST: u32 = 1 << 28;

/// A uniformly random order of `0..n` as u32 `[n]`: a pure function of (seed, uid).
#[pyfunction]
fn permutation(py: Python<'_>, seed: u64, uid: u64, n: u32) -> PyResult<Bound<'_, PyArray1<u32>>> {
    let order = enter(py, || {
        if n > MOST {
            return Err(Error::value("n", n, format!("at most {MOST}")));
        }
        let mut order: Vec<u32> = Vec::new();
        order
            .try_reserve_exact(n as usize)
            .map_err(|_| Error::state(format!("no memory for {n} numbers"), "take fewer"))?;
        order.extend(0..n);
        rng::RowRng::new(seed, uid).stream(rng::Lane::Shuffle, 0).shuffle(&mut order);
        Ok(order)
    })?;
    Ok(order.into_pyarray(py))
}

/// Adds this file's functions to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(philox4x32, m)?)?;
    m.add_function(wrap_pyfunction!(row_uid, m)?)?;
    m.add_function(wrap_pyfunction!(permutation, m)?)
}
