//! 9x9 Sudoku: a grader that accepts any valid solution, and a bounded solver for the share of cells.

use crate::cells;
use crate::sudoku::Score;
use stp_core::error::{Error, Result};

/// Cells of a 9x9 grid.
pub const CELLS: usize = 81;
/// Most digits that the solver tries before it gives up; puzzles with 17 clues need about a hundred.
const MAX_TRIES: usize = 1000;

/// A 9x9 grid, row by row; 0 is a blank.
pub type Grid = [u8; CELLS];

fn units(cell: usize) -> (usize, usize, usize) {
    let (row, column) = (cell / 9, cell % 9);
    (row, column, row / 3 * 3 + column / 3)
}

/// The digits taken in each row, column and square, as bit sets.
#[derive(Clone, Copy)]
struct Taken {
    rows: [u16; 9],
    columns: [u16; 9],
    squares: [u16; 9],
}

impl Taken {
    /// Reads a grid; `None` if a digit is above 9 or twice in a unit.
    fn of(grid: &Grid) -> Option<Self> {
        let mut taken = Self { rows: [0; 9], columns: [0; 9], squares: [0; 9] };
        for (cell, &digit) in grid.iter().enumerate().filter(|&(_, &digit)| digit != 0) {
            if digit > 9 || taken.at(cell) & (1 << digit) != 0 {
                return None;
            }
            taken.flip(cell, digit);
        }
        Some(taken)
    }

    fn at(&self, cell: usize) -> u16 {
        let (row, column, square) = units(cell);
        self.rows[row] | self.columns[column] | self.squares[square]
    }

    fn flip(&mut self, cell: usize, digit: u8) {
        let (row, column, square) = units(cell);
        self.rows[row] ^= 1 << digit;
        self.columns[column] ^= 1 << digit;
        self.squares[square] ^= 1 << digit;
    }
}

/// Whether a grid is complete and breaks no rule.
#[must_use]
pub fn is_solution(grid: &Grid) -> bool {
    grid.iter().all(|&digit| digit != 0) && Taken::of(grid).is_some()
}

/// A solution of the puzzle; `None` if it has none, or none was found within the bound.
#[must_use]
pub fn solve(puzzle: &Grid) -> Option<Grid> {
    let mut grid = *puzzle;
    let mut taken = Taken::of(puzzle)?;
    let mut tries = MAX_TRIES;
    search(&mut grid, &mut taken, &mut tries).then_some(grid)
}

/// The next cell to fill, and the digits to try in it: the blank with the fewest digits left, or a blank that is the
/// last place of a digit in one of its units.
fn next(grid: &Grid, taken: &Taken) -> Option<(usize, u16)> {
    const ALL: u16 = 0x3fe;
    let blanks = || (0..CELLS).filter(|&cell| grid[cell] == 0);
    let free = |cell: usize| ALL & !taken.at(cell);
    let best = blanks().min_by_key(|&cell| free(cell).count_ones())?;
    if free(best).count_ones() < 2 {
        return Some((best, free(best)));
    }
    // digits that have been seen once, and more than once, among the free digits of each unit
    let (mut once, mut more) = ([0_u16; 27], [0_u16; 27]);
    for cell in blanks() {
        let (row, column, square) = units(cell);
        for unit in [row, 9 + column, 18 + square] {
            more[unit] |= once[unit] & free(cell);
            once[unit] |= free(cell);
        }
    }
    let only = |cell: usize| {
        let (row, column, square) = units(cell);
        let single = [row, 9 + column, 18 + square].iter().map(|&u| once[u] & !more[u]).fold(0, |a, b| a | b);
        free(cell) & single
    };
    // a cell that is the last place of two digits at once is a dead end, which trying either of them shows
    Some(
        blanks()
            .find_map(|cell| (only(cell) != 0).then_some((cell, only(cell))))
            .unwrap_or((best, free(best))),
    )
}

/// Depth is at most the number of blanks.
fn search(grid: &mut Grid, taken: &mut Taken, tries: &mut usize) -> bool {
    let Some((cell, digits)) = next(grid, taken) else { return true };
    for digit in (1..=9).filter(|digit| digits & (1 << digit) != 0) {
        let Some(left) = tries.checked_sub(1) else { return false };
        *tries = left;
        grid[cell] = digit;
        taken.flip(cell, digit);
        if search(grid, taken, tries) {
            return true;
        }
        taken.flip(cell, digit);
        grid[cell] = 0;
    }
    false
}

/// Reads a puzzle: 81 digits; `.`, `_` and `0` are blanks, white space is skipped.
pub fn parse(puzzle: &str) -> Result<Grid> {
    let bad = |why: &str| {
        let shown: String = puzzle.chars().take(100).collect();
        Error::value("puzzle", format!("'{shown}' ({why})"), "81 digits 0 to 9, row by row, 0 for a blank")
    };
    let mut grid = [0; CELLS];
    let mut count = 0;
    for c in puzzle.chars().filter(|c| !c.is_whitespace()) {
        let digit = match c {
            '.' | '_' => 0,
            '0'..='9' => c as u8 - b'0',
            _ => return Err(bad("a character that is neither a digit from 0 to 9 nor a blank")),
        };
        *grid.get_mut(count).ok_or_else(|| bad("more than 81 cells"))? = digit;
        count += 1;
    }
    if count < CELLS {
        return Err(bad("fewer than 81 cells"));
    }
    if Taken::of(&grid).is_none() {
        return Err(bad("two equal clues in a row, column or square"));
    }
    Ok(grid)
}

/// Grades a completion. `solved` needs the rules and the clues only; `cells` is the share of blank cells that agree
/// with `solution`, or with the completion itself where that is a valid solution.
#[must_use]
pub fn grade(completion: &str, puzzle: &Grid, solution: &Grid) -> Score {
    let chance = 1.0 / 9.0;
    let Some(answer) = cells::read(completion, CELLS) else {
        return Score { solved: false, cells: 0.0, clues_kept: false, well_formed: false, chance };
    };
    let clues_kept = puzzle.iter().zip(&answer).all(|(&clue, &digit)| clue == 0 || clue == digit);
    let solved = clues_kept && is_solution(&answer);
    let blanks: usize = puzzle.iter().map(|&clue| usize::from(clue == 0)).sum();
    let agree = (0..CELLS).filter(|&i| puzzle[i] == 0 && answer[i] == solution[i]).count();
    let cells = match (solved, blanks) {
        (true, _) => 1.0,
        (false, 0) => 0.0,
        (false, _) => agree as f32 / blanks as f32,
    };
    Score { solved, cells, clues_kept, well_formed: true, chance }
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

    /// The pattern grid: row r is 1..9 shifted by 3r + r / 3.
    fn pattern() -> Grid {
        std::array::from_fn(|i| ((i / 9 * 3 + i / 27 + i % 9) % 9) as u8 + 1)
    }

    fn text(grid: &Grid) -> String {
        grid.iter().map(|d| char::from(b'0' + d)).collect()
    }

    #[test]
    fn solves_and_grades() {
        let solution = pattern();
        assert!(is_solution(&solution));
        let mut puzzle = solution;
        for cell in (0..CELLS).step_by(2) {
            puzzle[cell] = 0;
        }
        assert!(is_solution(&solve(&puzzle).unwrap()));
        let score = grade(&format!("<answer>{}</answer>", text(&solution)), &puzzle, &solution);
        assert!(score.solved && score.cells == 1.0);
        let mut wrong = solution;
        wrong[0] = wrong[0] % 9 + 1;
        let score = grade(&text(&wrong), &puzzle, &solution);
        assert!(!score.solved && score.clues_kept && (score.cells - 40.0 / 41.0).abs() < 1e-6);
        wrong.swap(1, 3);
        assert!(!grade(&text(&wrong), &puzzle, &solution).clues_kept);
        assert!(!grade("1234", &puzzle, &solution).well_formed);
    }

    #[test]
    fn a_17_clue_puzzle_is_solved_within_the_bound() {
        let puzzle = "000000010400000000020000000000050407008000300001090000300400200050100000000806000";
        let solution = solve(&parse(puzzle).unwrap());
        assert_eq!(
            solution.map(|s| text(&s)).as_deref(),
            Some("693784512487512936125963874932651487568247391741398625319475268856129743274836159")
        );
    }

    #[test]
    fn an_empty_or_contradictory_grid_ends_quickly() {
        assert!(is_solution(&solve(&[0; CELLS]).unwrap()));
        let mut hopeless = [0; CELLS];
        hopeless[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
        hopeless[17] = 9;
        assert_eq!(solve(&hopeless), None);
        for bad in ["", "1", &"0".repeat(82), &"1".repeat(81), &"x".repeat(81)] {
            assert!(parse(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn total_on_any_text(t in "([0-9]{81}|[0-9]{9}\\n|\\PC){0,10}") {
            let score = grade(&t, &[0; CELLS], &pattern());
            prop_assert!((0.0..=1.0).contains(&score.cells));
        }
    }
}
