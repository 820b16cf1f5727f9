//! Spatial priors for Python.

use pyo3::prelude::*;
use stp_core::prior::{self, SOURCES, Selector};
use stp_core::rng::RowRng;

use crate::arrays::{bounded, dim, read, slice, slice_mut, write};
use crate::boundary::{enter, raise, to_python};

/// A ragged batch of fixed completion tokens, immutable.
#[pyclass(name = "PriorSet", module = "stp_rs._core", frozen, eq)]
#[derive(PartialEq)]
pub(crate) struct PyPriorSet {
    pub(crate) inner: prior::PriorSet,
}

#[pymethods]
impl PyPriorSet {
    /// No prior on any of `rows` rows.
    #[staticmethod]
    fn empty(py: Python<'_>, rows: usize) -> PyResult<Self> {
        bounded(py, "rows", rows)?;
        Ok(Self { inner: prior::PriorSet::empty(rows) })
    }

    /// From `ids` i64 `[R, L]` with negative values where nothing is fixed.
    #[staticmethod]
    #[pyo3(signature = (ids, source="custom"))]
    fn from_dense(ids: &Bound<'_, PyAny>, source: &str) -> PyResult<Self> {
        let py = ids.py();
        let Some(source) = SOURCES.iter().position(|&s| s == source) else {
            let text = format!("source: got '{source}', needs one of {}", SOURCES.join(", "));
            return Err(raise(py, "InvalidValueError", &text));
        };
        let (rows, length) = (dim("ids", ids, 0)?, dim("ids", ids, 1)?);
        let view = read::<i64>("ids", ids, &[-1, -1])?;
        let values = slice(&view)?;
        bounded(py, "rows", rows)?;
        if length == 0 {
            return Ok(Self { inner: prior::PriorSet::empty(rows) });
        }
        enter(py, || prior::PriorSet::from_dense(values, length, source as u8)).map(|inner| Self { inner })
    }

    /// Both priors; the same position with another token is a `PriorConflictError`, or left out of a `soft` later one.
    #[pyo3(signature = (later, *, soft=false))]
    fn compose(&self, py: Python<'_>, later: &Self, soft: bool) -> PyResult<Self> {
        enter(py, || self.inner.compose(&later.inner, soft)).map(|inner| Self { inner })
    }

    /// The anchors at positions with `keep` u8 `[R, L]` != 0.
    fn restrict(&self, keep: &Bound<'_, PyAny>) -> PyResult<Self> {
        let length = dim("keep", keep, 1)?;
        let view = read::<u8>("keep", keep, &[self.inner.rows() as isize, -1])?;
        let values = slice(&view)?;
        enter(keep.py(), || self.inner.restrict(length, values)).map(|inner| Self { inner })
    }

    /// Rows by index, in that order, with repeats.
    fn select(&self, py: Python<'_>, rows: Vec<usize>) -> PyResult<Self> {
        bounded(py, "rows", rows.len())?;
        enter(py, || self.inner.select(&rows)).map(|inner| Self { inner })
    }

    /// Writes the fixed ids into `ids` i64 `[R, L]`, -1 where a position is free.
    fn fill(&self, ids: &Bound<'_, PyAny>) -> PyResult<()> {
        let length = dim("ids", ids, 1)?;
        let mut view = write::<i64>("ids", ids, &[self.inner.rows() as isize, -1])?;
        let out = slice_mut(&mut view)?;
        enter(ids.py(), || self.inner.fill(length, out))
    }

    /// The anchors of a row as (position, id, source name).
    fn row(&self, py: Python<'_>, row: usize) -> PyResult<Vec<(u32, i64, &'static str)>> {
        if row >= self.inner.rows() {
            let text = format!("row: got {row}, needs one below {}", self.inner.rows());
            return Err(raise(py, "InvalidValueError", &text));
        }
        Ok(self.inner.row(row).iter().map(|a| (a.position, a.id, SOURCES[usize::from(a.source)])).collect())
    }

    /// Fixed tokens in all rows.
    #[getter]
    fn num_anchors(&self) -> usize {
        self.inner.len()
    }

    fn __len__(&self) -> usize {
        self.inner.rows()
    }

    fn __repr__(&self) -> String {
        let head = format!("PriorSet(rows={}, num_anchors={})", self.inner.rows(), self.inner.len());
        std::iter::once(head).chain(drawn(&self.inner)).collect::<Vec<_>>().join("\n")
    }
}

/// The first rows in text: the letter of what fixed each position, a dot where one is free; and what the letters mean.
fn drawn(set: &prior::PriorSet) -> Vec<String> {
    let rows = set.rows().min(ROWS);
    let anchors = || (0..rows).flat_map(|row| set.row(row));
    let Some(last) = anchors().map(|a| a.position as usize).max() else {
        return Vec::new();
    };
    let columns = (last + 1).min(COLUMNS);
    let mut lines: Vec<String> = (0..rows)
        .map(|row| {
            let mut cells = vec!['.'; columns];
            for anchor in set.row(row) {
                if let Some(cell) = cells.get_mut(anchor.position as usize) {
                    *cell = letter(anchor.source);
                }
            }
            let more = if last >= columns { " ..." } else { "" };
            format!("  {row:>2} {}{more}", cells.into_iter().collect::<String>())
        })
        .collect();
    if set.rows() > rows {
        lines.push(format!("   and {} rows more", set.rows() - rows));
    }
    let seen = (0..SOURCES.len() as u8).filter(|&source| anchors().any(|a| a.source == source));
    let legend: Vec<String> = seen.map(|s| format!("{} {}", letter(s), SOURCES[usize::from(s)])).collect();
    lines.push(format!("   . free, {}", legend.join(", ")));
    lines
}

/// The letter of a source: its first, `#` for one of the caller's own.
fn letter(source: u8) -> char {
    match SOURCES[usize::from(source)] {
        "custom" => '#',
        name => name.chars().next().map_or('#', |first| first.to_ascii_uppercase()),
    }
}

/// Most rows and positions that are drawn.
const ROWS: usize = 6;
const COLUMNS: usize = 100;

/// Marks in `keep` u8 `[R, L]` the anchors of each row: a share of its eligible positions, at least one where positive.
#[pyfunction]
#[pyo3(signature = (selector, share, *, confidence, eligible, seed, uids, keep))]
fn choose_anchors(
    selector: &str,
    share: f64,
    confidence: &Bound<'_, PyAny>,
    eligible: &Bound<'_, PyAny>,
    seed: u64,
    uids: &Bound<'_, PyAny>,
    keep: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let py = keep.py();
    let selector: Selector = selector.parse().map_err(|e| to_python(py, &e))?;
    let (rows, length) = (dim("keep", keep, 0)?, dim("keep", keep, 1)?);
    let shape = [rows as isize, length as isize];
    let confidence = read::<f32>("confidence", confidence, &shape)?;
    let eligible = read::<u8>("eligible", eligible, &shape)?;
    let uids = read::<u64>("uids", uids, &shape[..1])?;
    let mut keep = write::<u8>("keep", keep, &shape)?;
    let (confidence, eligible, uids) = (slice(&confidence)?, slice(&eligible)?, slice(&uids)?);
    let keep = slice_mut(&mut keep)?;
    enter(py, || {
        for (row, &uid) in uids.iter().enumerate() {
            let at = row * length..(row + 1) * length;
            let rng = RowRng::new(seed, uid);
            prior::choose_anchors(
                selector,
                share,
                &confidence[at.clone()],
                &eligible[at.clone()],
                rng,
                &mut keep[at],
            )?;
        }
        Ok(())
    })
}

/// Adds this file's classes and functions to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyPriorSet>()?;
    m.add_function(wrap_pyfunction!(choose_anchors, m)?)
}
