//! Graders: bounded, total functions from a completion to a score, and the generators of the puzzle tasks.
//!
//! Nothing here executes model output: expressions are read by a parser with a fixed stack, grids by a scanner.
//! Every grader is linear in the length of the text and accepts any string.
#![forbid(unsafe_code)]

pub mod cells;
pub mod countdown;
pub mod expr;
pub mod extract;
pub mod format;
pub mod latex;
pub mod math;
pub mod notation;
pub mod number;
pub mod ratio;
pub mod sudoku;
pub mod sudoku9;
