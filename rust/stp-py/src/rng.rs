//! Philox and row uids for Python.

use pyo3::prelude::*;
use stp_core::rng;

/// One Philox4x32-10 block: four u32 for a key of two and a counter of four.
#[pyfunction]
fn philox4x32(key: [u32; 2], counter: [u32; 4]) -> [u32; 4] {
    rng::philox4x32(key, counter)
}

/// A 64-bit row uid from up to three coordinates, for example (update, prompt, sample).
#[pyfunction]
#[pyo3(signature = (a, b=0, c=0))]
fn row_uid(a: u64, b: u64, c: u64) -> u64 {
    rng::row_uid(a, b, c)
}

/// A uniformly random order of `0..n`: a pure function of (seed, uid).
#[pyfunction]
fn permutation(seed: u64, uid: u64, n: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n).collect();
    rng::RowRng::new(seed, uid).stream(rng::Lane::Shuffle, 0).shuffle(&mut order);
    order
}

/// Adds this file's functions to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(philox4x32, m)?)?;
    m.add_function(wrap_pyfunction!(row_uid, m)?)?;
    m.add_function(wrap_pyfunction!(permutation, m)?)
}
