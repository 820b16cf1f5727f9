//! Python face of `stp_tasks`: batches of texts in, scores out.
#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands extracted arguments over by value")]

mod corrected;

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::types::PyString;
use stp_tasks::countdown::{self, Family};
use stp_tasks::sudoku::{self, Score};

use crate::{arrays, boundary};

/// Most texts or problems of a call: more is a mistake, and the memory of its answer would end the process.
const MOST: usize = 1 << 22;

/// A list of a call, of bounded length.
struct Many<T>(Vec<T>);

impl<T> std::ops::Deref for Many<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'a, T> IntoIterator for &'a Many<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'a, 'py, T> FromPyObject<'a, 'py> for Many<T>
where
    Vec<T>: FromPyObject<'a, 'py, Error: Into<PyErr>>,
{
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let got = object.len().unwrap_or(0); // what has no length is no sequence, which `Vec` says
        if got > MOST {
            let text = format!("got a list of {got}, needs at most {MOST} at a time");
            return Err(boundary::raise(object.py(), "InvalidValueError", &text));
        }
        object.extract().map(Self).map_err(Into::into)
    }
}

/// The texts of Python strings; lone surrogates, which UTF-8 cannot hold, become U+FFFD instead of an error.
fn texts<'a>(strings: &'a [Bound<'_, PyString>]) -> Vec<Cow<'a, str>> {
    strings.iter().map(|s| s.to_string_lossy()).collect()
}

/// One row of five scores.
fn write_score(row: &mut [f32], score: Score) {
    let flag = |b: bool| f32::from(u8::from(b));
    let scores =
        [flag(score.solved), score.cells, flag(score.clues_kept), flag(score.well_formed), score.chance];
    row.copy_from_slice(&scores);
}

/// Grades 4x4 Sudoku completions into `out[N, 5]`: `solved, cells, clues_kept, well_formed, chance`.
#[pyfunction]
fn sudoku4_grade(
    py: Python<'_>,
    completions: Many<Bound<'_, PyString>>,
    puzzles: Many<Bound<'_, PyString>>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (completions, puzzles) = (texts(&completions), texts(&puzzles));
    let n = completions.len();
    let mut view = arrays::write::<f32>("out", out, &[n as isize, 5])?;
    let out = arrays::slice_mut(&mut view)?;
    boundary::enter(py, || {
        stp_core::error::check_len("puzzles", puzzles.len(), n)?;
        let mut last: Option<(&Cow<'_, str>, sudoku::Puzzle)> = None; // a group shares its puzzle
        for ((completion, puzzle), row) in completions.iter().zip(&puzzles).zip(out.chunks_exact_mut(5)) {
            let ready = match last {
                Some((text, ready)) if text == puzzle => (text, ready),
                _ => (puzzle, sudoku::Puzzle::new(puzzle)?),
            };
            write_score(row, ready.1.grade(completion));
            last = Some(ready);
        }
        Ok(())
    })
}

/// The 288 solution grids of 4x4 Sudoku as digit strings, in lexicographic order.
#[pyfunction]
fn sudoku4_grids() -> Vec<String> {
    sudoku::grids().iter().map(digits).collect()
}

/// Puzzles with one solution: for each `uids[i]` one of solution grid `grids[i]` with `blanks` zeros.
#[pyfunction]
fn sudoku4_puzzles(
    py: Python<'_>,
    grids: Many<usize>,
    uids: Many<u64>,
    blanks: usize,
    seed: u64,
) -> PyResult<Vec<String>> {
    boundary::enter(py, || {
        stp_core::error::check_len("uids", uids.len(), grids.len())?;
        let made = grids.iter().zip(&uids);
        made.map(|(&grid, &uid)| sudoku::puzzle(grid, blanks, seed, uid).map(|p| digits(&p))).collect()
    })
}

fn digits(grid: &sudoku::Grid) -> String {
    grid.iter().map(|d| char::from(b'0' + d)).collect()
}

/// Grades Countdown completions into the verdict codes `out[N]` (see `stp_rs.tasks.countdown.VERDICTS`).
#[pyfunction]
fn countdown_grade(
    py: Python<'_>,
    completions: Many<Bound<'_, PyString>>,
    numbers: Many<Vec<i64>>,
    targets: Many<i64>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let completions = texts(&completions);
    let n = completions.len();
    let mut view = arrays::write::<u8>("out", out, &[n as isize])?;
    let out = arrays::slice_mut(&mut view)?;
    boundary::enter(py, || {
        stp_core::error::check_len("numbers", numbers.len(), n)?;
        stp_core::error::check_len("targets", targets.len(), n)?;
        let problems = numbers.iter().zip(&targets);
        for ((completion, (numbers, &target)), code) in completions.iter().zip(problems).zip(out) {
            *code = countdown::grade(completion, numbers, target) as u8;
        }
        Ok(())
    })
}

/// The numbers of the Countdown problems `uids`, drawn from `1..=max_number`.
#[pyfunction]
fn countdown_numbers(
    py: Python<'_>,
    uids: Many<u64>,
    count: usize,
    max_number: i64,
    seed: u64,
) -> PyResult<Vec<Vec<i64>>> {
    let family = Family { count, max_number, max_target: 2, operators: b"+".to_vec() };
    boundary::enter(py, || {
        family.check()?;
        Ok(uids.iter().map(|&uid| family.numbers(seed, uid)).collect())
    })
}

/// A solvable Countdown problem over each number set: (target, solution), or None where no target was found.
#[pyfunction]
fn countdown_problems(
    py: Python<'_>,
    numbers: Many<Vec<i64>>,
    uids: Many<u64>,
    max_target: i64,
    operators: &str,
    seed: u64,
) -> PyResult<Vec<Option<(i64, String)>>> {
    boundary::enter(py, || {
        stp_core::error::check_len("uids", uids.len(), numbers.len())?;
        let operators = operators.as_bytes().to_vec();
        let solve = |(numbers, &uid): (&Vec<i64>, &u64)| {
            let count = numbers.len();
            let max_number = numbers.iter().copied().max().unwrap_or(0);
            let family = Family { count, max_number, max_target, operators: operators.clone() };
            family.check()?;
            Ok(family.problem(numbers, seed, uid).map(|p| (p.target, p.solution)))
        };
        numbers.iter().zip(&uids).map(solve).collect()
    })
}

/// An expression that solves each Countdown problem, or None.
#[pyfunction]
fn countdown_solutions(
    py: Python<'_>,
    numbers: Many<Vec<i64>>,
    targets: Many<i64>,
) -> PyResult<Vec<Option<String>>> {
    boundary::enter(py, || {
        stp_core::error::check_len("targets", targets.len(), numbers.len())?;
        Ok(numbers.iter().zip(&targets).map(|(n, &t)| countdown::solve(n, t)).collect())
    })
}

/// Adds this file's functions to the module.
pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    sudoku::grids(); // made while one thread runs: a child that is forked in the middle of it would wait for ever
    m.add_function(wrap_pyfunction!(sudoku4_grade, m)?)?;
    m.add_function(wrap_pyfunction!(sudoku4_grids, m)?)?;
    m.add_function(wrap_pyfunction!(sudoku4_puzzles, m)?)?;
    m.add_function(wrap_pyfunction!(countdown_grade, m)?)?;
    m.add_function(wrap_pyfunction!(countdown_numbers, m)?)?;
    m.add_function(wrap_pyfunction!(countdown_problems, m)?)?;
    m.add_function(wrap_pyfunction!(countdown_solutions, m)?)?;
    corrected::register(m)
}
