//! 4x4 Sudoku: the 288 solution grids, puzzles with one solution, and a grader that accepts any valid solution.

use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::grade::cells;
use crate::rng::{Lane, RowRng};

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
            _ => return Err(bad("a character that is no cell")),
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

/// Grades a completion. A puzzle without blanks has `cells` 1 if and only if it is solved.
#[must_use]
pub fn grade(completion: &str, puzzle: &Grid) -> Score {
    let chance = chance(puzzle);
    let Some(read) = cells::read(completion, CELLS) else {
        return Score { solved: false, cells: 0.0, clues_kept: false, well_formed: false, chance };
    };
    let answer = &read[..CELLS];
    let clues_kept = puzzle.iter().zip(answer).all(|(&clue, &digit)| clue == 0 || clue == digit);
    let blanks = blanks_of(puzzle);
    let right = best_match(puzzle, answer);
    let solved = clues_kept && right == blanks;
    let cells = if blanks == 0 { f32::from(u8::from(solved)) } else { right as f32 / blanks as f32 };
    Score { solved, cells, clues_kept, well_formed: true, chance }
}

fn blanks_of(puzzle: &Grid) -> usize {
    puzzle.iter().map(|&clue| usize::from(clue == 0)).sum()
}

/// Blank cells on which the answer agrees with the nearest valid solution.
fn best_match(puzzle: &Grid, answer: &[u8]) -> usize {
    let agree = |grid: &Grid| (0..CELLS).filter(|&i| puzzle[i] == 0 && grid[i] == answer[i]).count();
    solutions(puzzle).map(agree).max().unwrap_or(0)
}

/// The expected share of random digits: exactly 1/4 with one solution; with several, where the nearest counts, the
/// mean of 512 fixed draws.
fn chance(puzzle: &Grid) -> f32 {
    const DRAWS: usize = 512;
    let blanks = blanks_of(puzzle);
    if blanks == 0 || solutions(puzzle).nth(1).is_none() {
        return 0.25;
    }
    let mut stream = RowRng::new(0, 0).stream(Lane::Task, 0);
    let total: usize = (0..DRAWS)
        .map(|_| {
            let bits = stream.next_u32();
            let guess: [u8; CELLS] = std::array::from_fn(|i| (bits >> (2 * i) & 3) as u8 + 1);
            best_match(puzzle, &guess)
        })
        .sum();
    total as f32 / (DRAWS * blanks) as f32
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
                assert_eq!(blanks_of(&made), blanks);
                assert_eq!(solutions(&made).collect::<Vec<_>>(), [&grids()[grid]]);
            }
        }
        assert!(puzzle(GRIDS, 8, 0, 0).is_err());
        assert!(puzzle(0, 13, 0, 0).is_err());
    }

    #[test]
    fn any_valid_solution_counts_and_clues_must_stay() {
        let open = parse("1234 3412 0000 0000").unwrap();
        let all: Vec<_> = solutions(&open).collect();
        assert!(all.len() > 1);
        for grid in all {
            let score = grade(&format!("[{}]", text(grid)), &open);
            assert!(score.solved && score.clues_kept && score.cells == 1.0);
            assert!(score.chance > 0.25 && score.chance < 0.6, "{}", score.chance);
        }
        // another valid grid, but not of this puzzle: the clues are overwritten
        let puzzle = parse("1230341221434321").unwrap();
        let score = grade("[1234341243212143]", &puzzle);
        assert!(!score.solved && !score.clues_kept && score.cells == 1.0);
        let wrong = grade("[1231341221434321]", &puzzle);
        assert!(!wrong.solved && wrong.clues_kept && wrong.cells == 0.0);
        assert!(!grade("no grid", &puzzle).well_formed);
    }

    #[test]
    fn a_puzzle_without_blanks_is_solved_by_its_copy_only() {
        let full = grids()[7];
        assert_eq!(grade(&text(&full), &full).cells, 1.0);
        assert_eq!(grade(&text(&grids()[8]), &full).cells, 0.0);
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
            let score = grade(&t, &made);
            prop_assert!((0.0..=1.0).contains(&score.cells));
            prop_assert!(!score.solved || (score.cells == 1.0 && score.clues_kept));
        }
    }
}
