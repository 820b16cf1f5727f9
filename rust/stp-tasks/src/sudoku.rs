//! 4x4 Sudoku: the 288 solution grids, puzzles with one solution, and a grader that accepts any valid solution.

use std::sync::OnceLock;

use crate::cells;
use stp_core::error::{Error, Result};
use stp_core::rng::{Lane, RowRng};

/// Cells of a 4x4 grid.
pub const CELLS: usize = 16;
/// Number of 4x4 solution grids.
pub const GRIDS: usize = 288;
/// Most blanks of a puzzle that the generator makes.
pub const MAX_BLANKS: usize = 12;

/// A 4x4 grid, row by row; 0 is a blank.
pub type Grid = [u8; CELLS];

/// What a completion is worth.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// A valid grid that keeps every clue.
    pub solved: bool,
    /// Share of blank cells right, against the valid solution that is nearest to the answer.
    pub cells: f32,
    /// Every clue is where the puzzle has it.
    pub clues_kept: bool,
    /// The completion gives a grid of 16 cells at all.
    pub well_formed: bool,
    /// Share of blank cells that random digits get right on this puzzle.
    pub chance: f32,
}

/// All solution grids in lexicographic order.
pub fn grids() -> &'static [Grid] {
    static ALL: OnceLock<Vec<Grid>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = Vec::with_capacity(GRIDS);
        fill(&mut [0; CELLS], 0, &mut all);
        all
    })
}

fn fill(grid: &mut Grid, at: usize, all: &mut Vec<Grid>) {
    if at == CELLS {
        all.push(*grid);
        return;
    }
    for digit in 1..=4 {
        if (0..at).all(|other| grid[other] != digit || !peers(at, other)) {
            grid[at] = digit;
            fill(grid, at + 1, all);
        }
    }
    grid[at] = 0;
}

fn peers(a: usize, b: usize) -> bool {
    let (row, column) = (|i: usize| i / 4, |i: usize| i % 4);
    let square = |i: usize| (i / 8, i % 4 / 2);
    row(a) == row(b) || column(a) == column(b) || square(a) == square(b)
}

/// The valid solutions that keep every clue of `puzzle`.
pub fn solutions(puzzle: &Grid) -> impl Iterator<Item = &'static Grid> {
    let puzzle = *puzzle;
    grids()
        .iter()
        .filter(move |grid| puzzle.iter().zip(*grid).all(|(&clue, &digit)| clue == 0 || clue == digit))
}

/// Reads a puzzle: 16 digits 0 to 4; `.`, `_` and `0` are blanks, white space is skipped.
pub fn parse(puzzle: &str) -> Result<Grid> {
    let bad = |why: &str| {
        let shown: String = puzzle.chars().take(40).collect();
        Error::value("puzzle", format!("'{shown}' ({why})"), "16 digits 0 to 4, row by row, 0 for a blank")
    };
    let mut grid = [0; CELLS];
    let mut count = 0;
    for c in puzzle.chars().filter(|c| !c.is_whitespace()) {
        let digit = match c {
            '.' | '_' => 0,
            '0'..='4' => c as u8 - b'0',
            _ => return Err(bad("a character that is neither a digit from 0 to 4 nor a blank")),
        };
        *grid.get_mut(count).ok_or_else(|| bad("more than 16 cells"))? = digit;
        count += 1;
    }
    if count < CELLS {
        return Err(bad("fewer than 16 cells"));
    }
    if solutions(&grid).next().is_none() {
        return Err(bad("no solution keeps its clues"));
    }
    Ok(grid)
}

/// Four bits per cell, so that cells compare sixteen at a time.
fn packed(cells: &[u8]) -> u64 {
    cells.iter().rev().fold(0, |word, &cell| word << 4 | u64::from(cell & 15))
}

/// The lowest bit of every blank cell's four.
fn blank_bits(puzzle: &Grid) -> u64 {
    packed(&puzzle.map(|clue| u8::from(clue == 0)))
}

/// Cells, out of those marked in `bits`, that are not equal in two packed grids.
fn unequal(a: u64, b: u64, bits: u64) -> usize {
    let x = a ^ b;
    ((x | x >> 1 | x >> 2 | x >> 3) & bits).count_ones() as usize
}

/// A puzzle made ready for grading: a group of completions shares the work.
#[derive(Debug, Clone)]
pub struct Puzzle {
    clues: Grid,
    solutions: Vec<u64>,
    blank: u64,
    chance: f32,
}

impl Puzzle {
    /// Reads a puzzle (see [`parse`]).
    pub fn new(text: &str) -> Result<Self> {
        parse(text).map(|clues| Self::from_clues(&clues))
    }

    /// Prepares the clues of a puzzle.
    #[must_use]
    pub fn from_clues(clues: &Grid) -> Self {
        let solutions: Vec<u64> = solutions(clues).map(|grid| packed(grid)).collect();
        let blank = blank_bits(clues);
        let chance = chance(&solutions, blank);
        Self { clues: *clues, solutions, blank, chance }
    }

    /// Grades a completion. A puzzle without blanks has `cells` 1 if and only if it is solved.
    #[must_use]
    pub fn grade(&self, completion: &str) -> Score {
        let chance = self.chance;
        let Some(read) = cells::read(completion, CELLS) else {
            return Score { solved: false, cells: 0.0, clues_kept: false, well_formed: false, chance };
        };
        let answer = &read[..CELLS];
        let clues_kept = self.clues.iter().zip(answer).all(|(&clue, &digit)| clue == 0 || clue == digit);
        let blanks = self.blank.count_ones() as usize;
        let wrong = nearest(&self.solutions, packed(answer), self.blank).unwrap_or(blanks);
        let solved = clues_kept && wrong == 0 && !self.solutions.is_empty();
        let share = (blanks - wrong) as f32 / blanks.max(1) as f32;
        let cells = if blanks == 0 { f32::from(u8::from(solved)) } else { share };
        Score { solved, cells, clues_kept, well_formed: true, chance }
    }
}

/// Blank cells on which an answer differs from the nearest solution.
fn nearest(solutions: &[u64], answer: u64, bits: u64) -> Option<usize> {
    solutions.iter().map(|&grid| unequal(grid, answer, bits)).min()
}

/// The expected share of random digits: exactly 1/4 with one solution; with several, where the nearest counts, the
/// mean of 512 fixed draws.
fn chance(solutions: &[u64], bits: u64) -> f32 {
    const DRAWS: usize = 512;
    let blanks = bits.count_ones() as usize;
    if blanks == 0 || solutions.len() < 2 {
        return 0.25;
    }
    let mut stream = RowRng::new(0, 0).stream(Lane::Task, 0);
    let wrong: usize = (0..DRAWS)
        .map(|_| {
            let draw = stream.next_u32();
            let guess: Grid = std::array::from_fn(|i| (draw >> (2 * i) & 3) as u8 + 1);
            nearest(solutions, packed(&guess), bits).unwrap_or(blanks)
        })
        .sum();
    1.0 - wrong as f32 / (DRAWS * blanks) as f32
}

/// A puzzle with exactly one solution, `grids()[grid]`, and `blanks` blanks: a pure function of (seed, uid).
///
/// Cells are taken away in a random order wherever the solution stays unique; another order is tried when one ends
/// early.
pub fn puzzle(grid: usize, blanks: usize, seed: u64, uid: u64) -> Result<Grid> {
    let solution =
        grids().get(grid).ok_or_else(|| Error::value("grid", grid, "an index of the 288 solution grids"))?;
    if blanks > MAX_BLANKS {
        return Err(Error::value("blanks", blanks, "0 to 12: fewer than 4 clues never fix a 4x4 grid"));
    }
    let rng = RowRng::new(seed, uid);
    for attempt in 0..4096 {
        let mut order: [usize; CELLS] = std::array::from_fn(|i| i);
        rng.stream(Lane::Task, attempt).shuffle(&mut order);
        let mut made = *solution;
        let mut left = blanks;
        for &cell in &order {
            if left == 0 {
                break;
            }
            made[cell] = 0;
            if solutions(&made).nth(1).is_some() {
                made[cell] = solution[cell];
            } else {
                left -= 1;
            }
        }
        if left == 0 {
            return Ok(made);
        }
    }
    Err(Error::value("blanks", blanks, format!("fewer: no puzzle was found for grid {grid}")))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::float_cmp,
        reason = "a failed unwrap is a failed test; 0 and 1 are exact"
    )]
    use super::*;
    use proptest::prelude::*;

    fn text(grid: &Grid) -> String {
        grid.iter().map(|d| char::from(b'0' + d)).collect()
    }

    #[test]
    fn there_are_288_distinct_valid_grids() {
        assert_eq!(grids().len(), GRIDS);
        assert!(grids().windows(2).all(|w| w[0] < w[1]));
        for grid in grids() {
            for unit in 0..4 {
                let row: u32 = (0..4).map(|i| 1 << grid[unit * 4 + i]).sum();
                let column: u32 = (0..4).map(|i| 1 << grid[i * 4 + unit]).sum();
                let at = unit / 2 * 8 + unit % 2 * 2;
                let square: u32 = [0, 1, 4, 5].iter().map(|i| 1 << grid[at + i]).sum();
                assert_eq!((row, column, square), (30, 30, 30));
            }
        }
    }

    #[test]
    fn every_grid_has_puzzles_up_to_twelve_blanks() {
        for grid in 0..GRIDS {
            for blanks in [0, 8, MAX_BLANKS] {
                let made = puzzle(grid, blanks, 3, grid as u64).unwrap();
                assert_eq!(blank_bits(&made).count_ones() as usize, blanks);
                assert_eq!(solutions(&made).collect::<Vec<_>>(), [&grids()[grid]]);
            }
        }
        assert!(puzzle(GRIDS, 8, 0, 0).is_err());
        assert!(puzzle(0, 13, 0, 0).is_err());
    }

    #[test]
    fn any_valid_solution_counts_and_clues_must_stay() {
        let clues = parse("1234 3412 0000 0000").unwrap();
        let open = Puzzle::from_clues(&clues);
        let all: Vec<_> = solutions(&clues).collect();
        assert!(all.len() > 1);
        for grid in all {
            let score = open.grade(&format!("[{}]", text(grid)));
            assert!(score.solved && score.clues_kept && score.cells == 1.0);
            assert!(score.chance > 0.25 && score.chance < 0.6, "{}", score.chance);
        }
        // another valid grid, but not of this puzzle: the clues are overwritten
        let puzzle = Puzzle::new("1230341221434321").unwrap();
        let score = puzzle.grade("[1234341243212143]");
        assert!(!score.solved && !score.clues_kept && score.cells == 1.0);
        let wrong = puzzle.grade("[1231341221434321]");
        assert!(!wrong.solved && wrong.clues_kept && wrong.cells == 0.0);
        assert!(!puzzle.grade("no grid").well_formed);
    }

    #[test]
    fn a_puzzle_without_blanks_is_solved_by_its_copy_only() {
        let full = Puzzle::from_clues(&grids()[7]);
        assert_eq!(full.grade(&text(&grids()[7])).cells, 1.0);
        assert_eq!(full.grade(&text(&grids()[8])).cells, 0.0);
    }

    #[test]
    fn bad_puzzles_are_errors() {
        for bad in ["", "123", "12340000000000000", "1100000000000000", "12345000000000000", "abcd"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("1.__\n0000 0000 0000").unwrap()[0], 1);
    }

    proptest! {
        #[test]
        fn total_and_in_range(t in "(\\PC|[0-9]{16}|<answer>|</answer>){0,12}", grid in 0usize..GRIDS, uid: u64) {
            let made = puzzle(grid, 8, 0, uid).unwrap();
            let score = Puzzle::from_clues(&made).grade(&t);
            prop_assert!((0.0..=1.0).contains(&score.cells));
            prop_assert!(!score.solved || (score.cells == 1.0 && score.clues_kept));
        }
    }
}
