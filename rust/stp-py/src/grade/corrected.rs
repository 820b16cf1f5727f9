//! The corrected graders of numbers, MATH answers, 9x9 grids and layouts for Python.
#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands extracted arguments over by value")]

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::types::PyString;
use stp_core::error::{Error, check_len};
use stp_tasks::math::Match;
use stp_tasks::number::Verdict;
use stp_tasks::ratio::Ratio;
use stp_tasks::{cells, countdown, format, math, number, sudoku9};

use super::{Many, texts, write_score};
use crate::{arrays, boundary};

type Strings<'py> = Many<Bound<'py, PyString>>;
type Comparison = (&'static str, String, String, Option<usize>);

/// The final numbers of completions: (value as `3` or `1/3`, text it was read from), or None where no answer is stated.
#[pyfunction]
fn number_answers(py: Python<'_>, completions: Strings<'_>) -> PyResult<Vec<Option<(String, String)>>> {
    let completions = texts(&completions);
    boundary::enter(py, || {
        let shown = |a: number::Answer<'_>| (a.value.to_string(), a.text.to_string());
        Ok(completions.iter().map(|c| number::answer(c).map(shown)).collect())
    })
}

/// Whether the final number of each completion is that of its truth; None where the truth states no number.
#[pyfunction]
fn number_grade(
    py: Python<'_>,
    completions: Strings<'_>,
    truths: Strings<'_>,
) -> PyResult<Vec<Option<bool>>> {
    let (completions, truths) = (texts(&completions), texts(&truths));
    boundary::enter(py, || {
        check_len("truths", truths.len(), completions.len())?;
        let grade = |(c, t): (&Cow<'_, str>, &Cow<'_, str>)| match number::grade(number::answer(c), t) {
            Verdict::Right => Some(true),
            Verdict::Wrong => Some(false),
            Verdict::NoTruth => None,
        };
        Ok(completions.iter().zip(&truths).map(grade).collect())
    })
}

/// The number that each text states, or None.
#[pyfunction]
fn number_values(py: Python<'_>, answers: Strings<'_>) -> PyResult<Vec<Option<f64>>> {
    let answers = texts(&answers);
    boundary::enter(py, || Ok(answers.iter().map(|a| number::read(a).map(Ratio::to_f64)).collect()))
}

/// The texts that completions give as their answers: the last answer tag, in it or without it the last box.
#[pyfunction]
fn answer_spans(py: Python<'_>, completions: Strings<'_>) -> PyResult<Vec<String>> {
    let completions = texts(&completions);
    boundary::enter(py, || Ok(completions.iter().map(|c| math::read(c).to_string()).collect()))
}

/// What is certain about each answer and its truth: (text, number, no or unsure; the answer and the truth as a computer
/// algebra system reads them; the decimals of a truth that may be rounded).
#[pyfunction]
fn math_compare(py: Python<'_>, answers: Strings<'_>, truths: Strings<'_>) -> PyResult<Vec<Comparison>> {
    let (answers, truths) = (texts(&answers), texts(&truths));
    boundary::enter(py, || {
        check_len("truths", truths.len(), answers.len())?;
        let name = |found| match found {
            Match::Text => "text",
            Match::Number => "number",
            Match::No => "no",
            Match::Unsure => "unsure",
        };
        let compared = answers.iter().zip(&truths).map(|(a, t)| math::compare(a, t));
        Ok(compared.map(|c| (name(c.found), c.answer, c.truth, c.decimals)).collect())
    })
}

/// The expressions that Countdown completions give as their answers.
#[pyfunction]
fn countdown_expressions(py: Python<'_>, completions: Strings<'_>) -> PyResult<Vec<String>> {
    let completions = texts(&completions);
    boundary::enter(py, || Ok(completions.iter().map(|c| countdown::expression(c).to_string()).collect()))
}

/// The grids of `n` cells that completions give as their answers (0 for no digit), or None.
#[pyfunction]
fn grid_answers(py: Python<'_>, completions: Strings<'_>, n: usize) -> PyResult<Vec<Option<String>>> {
    let completions = texts(&completions);
    boundary::enter(py, || {
        if n == 0 || n > cells::MAX_CELLS {
            return Err(Error::value("n", n, "1 to 81 cells"));
        }
        let text = |grid: cells::Cells| grid[..n].iter().map(|d| char::from(b'0' + d)).collect();
        Ok(completions.iter().map(|c| cells::read(c, n).map(text)).collect())
    })
}

/// Grades 9x9 Sudoku completions into `out[N, 5]`, as `sudoku4_grade` does. An empty solution is solved for, within a
/// bound; `cells` is 0 for a wrong answer where that fails.
#[pyfunction]
fn sudoku9_grade(
    py: Python<'_>,
    completions: Strings<'_>,
    puzzles: Strings<'_>,
    solutions: Strings<'_>,
    out: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (completions, puzzles, solutions) = (texts(&completions), texts(&puzzles), texts(&solutions));
    let n = completions.len();
    let mut view = arrays::write::<f32>("out", out, &[n as isize, 5])?;
    let out = arrays::slice_mut(&mut view)?;
    boundary::enter(py, || {
        check_len("puzzles", puzzles.len(), n)?;
        check_len("solutions", solutions.len(), n)?;
        let mut last = None; // a group shares its puzzle
        for (i, row) in out.chunks_exact_mut(5).enumerate() {
            let text = (&puzzles[i], &solutions[i]);
            let ready = match last {
                Some((key, puzzle, solution)) if key == text => (key, puzzle, solution),
                _ => {
                    let puzzle = sudoku9::parse(text.0)?;
                    let solution = if text.1.is_empty() {
                        sudoku9::solve(&puzzle).unwrap_or([0; sudoku9::CELLS])
                    } else {
                        sudoku9::parse(text.1)?
                    };
                    (text, puzzle, solution)
                }
            };
            write_score(row, sudoku9::grade(&completions[i], &ready.1, &ready.2));
            last = Some(ready);
        }
        Ok(())
    })
}

/// How well completions keep to a layout of tags: (share of tags once and in order, strict).
#[pyfunction]
fn tag_layout(
    py: Python<'_>,
    completions: Strings<'_>,
    tags: Strings<'_>,
    prefilled: bool,
) -> PyResult<Vec<(f32, bool)>> {
    let (completions, tags) = (texts(&completions), texts(&tags));
    boundary::enter(py, || {
        let tags: Vec<&str> = tags.iter().map(AsRef::as_ref).collect();
        let layout = |c: &str| {
            let found = format::layout(c, &tags, prefilled);
            (found.share, found.strict)
        };
        Ok(completions.iter().map(|c| layout(c)).collect())
    })
}

/// Adds this file's functions to the module.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(number_answers, m)?)?;
    m.add_function(wrap_pyfunction!(number_grade, m)?)?;
    m.add_function(wrap_pyfunction!(number_values, m)?)?;
    m.add_function(wrap_pyfunction!(answer_spans, m)?)?;
    m.add_function(wrap_pyfunction!(math_compare, m)?)?;
    m.add_function(wrap_pyfunction!(countdown_expressions, m)?)?;
    m.add_function(wrap_pyfunction!(grid_answers, m)?)?;
    m.add_function(wrap_pyfunction!(sudoku9_grade, m)?)?;
    m.add_function(wrap_pyfunction!(tag_layout, m)?)
}
