//! Published graders (`paper_compat`) for Python: batches of texts in, what was read and what it scored out.
#![expect(clippy::needless_pass_by_value, reason = "pyo3 hands extracted arguments over by value")]

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::types::PyString;
use stp_core::error::check_len;
use stp_core::grade::extract::ending;
use stp_core::grade::paper::{countdown, gsm8k, math, rewards, sudoku};

use super::texts;
use crate::boundary;

type Strings<'py> = Vec<Bound<'py, PyString>>;
type Gsm8kParts = (f64, f64, f64, f64, f64);

/// The part of each completion that is read.
fn endings<'a>(texts: &'a [Cow<'a, str>]) -> Vec<&'a str> {
    texts.iter().map(|text| ending(text)).collect()
}

/// d1's reading of GSM8K completions: (value, text it was read from), or None where nothing was found.
#[pyfunction]
fn paper_gsm8k(py: Python<'_>, completions: Strings<'_>) -> PyResult<Vec<Option<(f64, String)>>> {
    let completions = texts(&completions);
    boundary::enter(py, || {
        let completions = endings(&completions);
        Ok(completions.iter().map(|c| gsm8k::read(c).map(|r| (r.value, r.text.to_string()))).collect())
    })
}

/// d1's reading of MATH completions: the text that is compared, or None where nothing was found.
#[pyfunction]
fn paper_math(py: Python<'_>, completions: Strings<'_>) -> PyResult<Vec<Option<String>>> {
    let completions = texts(&completions);
    boundary::enter(py, || {
        let completions = endings(&completions);
        Ok(completions.iter().map(|c| math::read(c).map(str::to_string)).collect())
    })
}

/// Whether answers and truths are equal under the MATH benchmark's normaliser.
#[pyfunction]
fn paper_math_equal(py: Python<'_>, answers: Strings<'_>, truths: Strings<'_>) -> PyResult<Vec<bool>> {
    let (answers, truths) = (texts(&answers), texts(&truths));
    boundary::enter(py, || {
        check_len("truths", truths.len(), answers.len())?;
        Ok(answers.iter().zip(&truths).map(|(a, t)| math::equivalent(a, t)).collect())
    })
}

/// Whether answers are numbers, as Python reads them, within 1e-6 of the truths.
#[pyfunction]
fn paper_math_close(py: Python<'_>, answers: Strings<'_>, truths: Vec<f64>) -> PyResult<Vec<bool>> {
    let answers = texts(&answers);
    boundary::enter(py, || {
        check_len("truths", truths.len(), answers.len())?;
        Ok(answers.iter().zip(&truths).map(|(a, &t)| math::close(a, t)).collect())
    })
}

/// d1's grading of Countdown completions: (correct, the expression that was graded).
#[pyfunction]
fn paper_countdown(
    py: Python<'_>,
    completions: Strings<'_>,
    numbers: Vec<Vec<i64>>,
    targets: Vec<f64>,
) -> PyResult<Vec<(bool, String)>> {
    let completions = texts(&completions);
    boundary::enter(py, || {
        let completions = endings(&completions);
        check_len("numbers", numbers.len(), completions.len())?;
        check_len("targets", targets.len(), completions.len())?;
        let problems = numbers.iter().zip(&targets);
        let grade = |(text, (numbers, &target)): (&&str, (&Vec<i64>, &f64))| {
            let expression = countdown::expression(text);
            (countdown::correct(&expression, numbers, target), expression)
        };
        Ok(completions.iter().zip(problems).map(grade).collect())
    })
}

/// d1's grading of Sudoku completions: (right blank cells, blank cells, the digits that were graded).
#[pyfunction]
fn paper_sudoku(
    py: Python<'_>,
    completions: Strings<'_>,
    puzzles: Strings<'_>,
    solutions: Strings<'_>,
) -> PyResult<Vec<(usize, usize, String)>> {
    let (completions, puzzles, solutions) = (texts(&completions), texts(&puzzles), texts(&solutions));
    boundary::enter(py, || {
        let completions = endings(&completions);
        check_len("puzzles", puzzles.len(), completions.len())?;
        check_len("solutions", solutions.len(), completions.len())?;
        let truths = puzzles.iter().zip(&solutions);
        Ok(completions
            .iter()
            .zip(truths)
            .map(|(text, (puzzle, solution))| {
                let answer = sudoku::answer(text);
                let (right, blanks) = sudoku::cells(&answer, puzzle, solution);
                (right, blanks, answer)
            })
            .collect())
    })
}

/// The parts of d1's GSM8K reward: (layout, soft format, strict format, digits only, correct).
#[pyfunction]
fn paper_gsm8k_reward(
    py: Python<'_>,
    completions: Strings<'_>,
    truths: Strings<'_>,
) -> PyResult<Vec<Gsm8kParts>> {
    let (completions, truths) = (texts(&completions), texts(&truths));
    boundary::enter(py, || {
        let completions = endings(&completions);
        check_len("truths", truths.len(), completions.len())?;
        let parts = |(text, truth): (&&str, &Cow<'_, str>)| {
            let r = rewards::gsm8k(text, truth);
            (r.layout, r.soft, r.strict, r.digits, r.correct)
        };
        Ok(completions.iter().zip(&truths).map(parts).collect())
    })
}

/// d1's MATH reward: (correct, format).
#[pyfunction]
fn paper_math_reward(
    py: Python<'_>,
    completions: Strings<'_>,
    truths: Strings<'_>,
) -> PyResult<Vec<(f64, f64)>> {
    let (completions, truths) = (texts(&completions), texts(&truths));
    boundary::enter(py, || {
        let completions = endings(&completions);
        check_len("truths", truths.len(), completions.len())?;
        Ok(completions.iter().zip(&truths).map(|(c, t)| rewards::math(c, t)).collect())
    })
}

/// d1's Countdown reward (also ESPO's): 1.0, 0.1 or 0.
#[pyfunction]
fn paper_countdown_reward(
    py: Python<'_>,
    completions: Strings<'_>,
    numbers: Vec<Vec<i64>>,
    targets: Vec<f64>,
) -> PyResult<Vec<f64>> {
    let completions = texts(&completions);
    boundary::enter(py, || {
        let completions = endings(&completions);
        check_len("numbers", numbers.len(), completions.len())?;
        check_len("targets", targets.len(), completions.len())?;
        let problems = numbers.iter().zip(&targets);
        Ok(completions.iter().zip(problems).map(|(c, (n, &t))| countdown::reward(c, n, t)).collect())
    })
}

/// d1's Sudoku reward (also ESPO's): share of blank cells right.
#[pyfunction]
fn paper_sudoku_reward(
    py: Python<'_>,
    completions: Strings<'_>,
    puzzles: Strings<'_>,
    solutions: Strings<'_>,
) -> PyResult<Vec<f64>> {
    let (completions, puzzles, solutions) = (texts(&completions), texts(&puzzles), texts(&solutions));
    boundary::enter(py, || {
        let completions = endings(&completions);
        check_len("puzzles", puzzles.len(), completions.len())?;
        check_len("solutions", solutions.len(), completions.len())?;
        let truths = puzzles.iter().zip(&solutions);
        Ok(completions.iter().zip(truths).map(|(c, (p, s))| sudoku::reward(c, p, s)).collect())
    })
}

/// What ESPO takes for the answers of GSM8K completions; empty where it finds none.
#[pyfunction]
fn espo_numbers(py: Python<'_>, completions: Strings<'_>) -> PyResult<Vec<String>> {
    let completions = texts(&completions);
    boundary::enter(py, || {
        let completions = endings(&completions);
        Ok(completions.iter().map(|c| rewards::espo_number(c).to_string()).collect())
    })
}

/// Adds this file's functions to the module.
pub(super) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(paper_gsm8k, m)?)?;
    m.add_function(wrap_pyfunction!(paper_math, m)?)?;
    m.add_function(wrap_pyfunction!(paper_math_equal, m)?)?;
    m.add_function(wrap_pyfunction!(paper_math_close, m)?)?;
    m.add_function(wrap_pyfunction!(paper_countdown, m)?)?;
    m.add_function(wrap_pyfunction!(paper_sudoku, m)?)?;
    m.add_function(wrap_pyfunction!(paper_gsm8k_reward, m)?)?;
    m.add_function(wrap_pyfunction!(paper_math_reward, m)?)?;
    m.add_function(wrap_pyfunction!(paper_countdown_reward, m)?)?;
    m.add_function(wrap_pyfunction!(paper_sudoku_reward, m)?)?;
    m.add_function(wrap_pyfunction!(espo_numbers, m)?)
}
