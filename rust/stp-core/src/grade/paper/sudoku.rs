//! 4x4 Sudoku as d1 evaluates it: five ways to find digits, blank cells against the one stored solution.

use crate::grade::paper::last_answer;
use crate::grade::python;

const CELLS: usize = 16;
const OPEN: &str = "<answer>";
const CLOSE: &str = "</answer>";
const ENDS: [&str; 2] = ["<|eot_id|>", "<|endoftext|>"];

/// The text that is graded: the first of five patterns that gives anything, without white space.
#[must_use]
pub fn answer(text: &str) -> String {
    let found = [fenced, tagged, after_tag, before_close, stand_alone]
        .iter()
        .find_map(|pattern| pattern(text).map(python::strip).filter(|found| !found.is_empty()));
    found.unwrap_or("").chars().filter(|&c| !python::is_space(c)).collect()
}

/// A fence of nothing but digits and white space, anywhere after the first opening tag.
fn fenced(text: &str) -> Option<&str> {
    let inner = text.split_once(OPEN)?.1;
    let mut from = 0;
    // fences may overlap, and a search that is set up anew for each of them takes most of the time
    while let Some(at) = inner.as_bytes()[from..].windows(3).position(|three| three == b"```") {
        let start = from + at + 3;
        let body = &inner[start..];
        let end = body.find(|c| !python::is_decimal(c) && !python::is_space(c)).unwrap_or(body.len());
        if end > 0 && body[end..].starts_with("```") {
            return Some(&body[..end]);
        }
        from = start - 2;
    }
    None
}

/// From the first opening tag to the first closing tag or end token.
fn tagged(text: &str) -> Option<&str> {
    let inner = text.split_once(OPEN)?.1;
    let end = ENDS.iter().chain([&CLOSE]).filter_map(|token| inner.find(token)).min()?;
    Some(&inner[..end])
}

/// From the first closing tag to an end token or the end.
fn after_tag(text: &str) -> Option<&str> {
    let inner = text.split_once(CLOSE)?.1;
    let end = ENDS.iter().filter_map(|token| inner.find(token)).min().unwrap_or(inner.len());
    Some(&inner[..end])
}

/// Sixteen digits just before a closing tag.
fn before_close(text: &str) -> Option<&str> {
    text.match_indices(CLOSE).find_map(|(at, _)| {
        let before = text[..at].trim_end_matches(python::is_space);
        let mut digits = before.char_indices().rev().take_while(|&(_, c)| python::is_decimal(c));
        digits.nth(CELLS - 1).map(|(start, _)| &before[start..])
    })
}

/// A word of exactly sixteen digits. (Marks count as letters here, which Python's `\w` leaves out.)
fn stand_alone(text: &str) -> Option<&str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .find(|word| word.chars().count() == CELLS && word.chars().all(python::is_decimal))
}

/// Blank cells that are right, and blank cells in all. Clue cells are not looked at; a short answer is padded with
/// zeros, a long one cut.
#[must_use]
pub fn cells(answer: &str, puzzle: &str, solution: &str) -> (usize, usize) {
    let blanks = puzzle.chars().take(CELLS).filter(|&c| c == '0').count();
    if answer.is_empty() {
        return (0, blanks);
    }
    let given = answer.chars().chain(std::iter::repeat('0'));
    let right = puzzle
        .chars()
        .take(CELLS)
        .zip(given)
        .zip(solution.chars())
        .filter(|&((clue, cell), truth)| clue == '0' && cell == truth)
        .count();
    (right, blanks)
}

/// Sudoku as a training reward: the digits of the last answer tag, share of blank cells right.
#[must_use]
pub fn reward(text: &str, puzzle: &str, solution: &str) -> f64 {
    let Some(answer) = last_answer(text) else { return 0.0 };
    let digits: String = answer.chars().filter(|&c| python::all_digits(c.encode_utf8(&mut [0; 4]))).collect();
    let (right, blanks) = cells(&digits, puzzle, solution);
    if blanks == 0 { 0.0 } else { right as f64 / blanks as f64 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "shares of four are exact")]
    use super::*;
    use proptest::prelude::*;

    const SOLUTION: &str = "1234341221434321";

    #[test]
    fn the_five_patterns_in_order() {
        for (text, want) in [
            ("<answer>x```\n1234\n3412\n```</answer>", "12343412"),
            ("<answer>1 2 3 4</answer> ```5```", "5"),
            ("<answer>\n12 34<|eot_id|></answer>", "1234"),
            ("<answer> </answer> 1234 <|endoftext|>9", "1234"),
            ("no tag 1234341221434321\n</answer>", "1234341221434321"),
            ("0001234341221434321</answer>", "1234341221434321"),
            ("a 1234341221434321.", "1234341221434321"),
            ("a_1234341221434321", ""),
            ("12343412214343211", ""),
            ("<answer>```  ```</answer>", "``````"),
            ("<answer>````12```", "12"),
        ] {
            assert_eq!(answer(text), want, "{text}");
        }
    }

    #[test]
    fn scores() {
        let puzzle = "1230341221434020";
        assert_eq!(cells(SOLUTION, puzzle, SOLUTION), (3, 3));
        assert_eq!(cells("0004", puzzle, SOLUTION), (1, 3));
        assert_eq!(cells("", puzzle, SOLUTION), (0, 3));
        assert_eq!(cells(&format!("{SOLUTION}99"), puzzle, SOLUTION), (3, 3));
        assert_eq!(reward(&format!("<answer>it is {SOLUTION}</answer>"), puzzle, SOLUTION), 1.0);
        assert!(reward(&format!("<answer>a 4x4: {SOLUTION}</answer>"), puzzle, SOLUTION) < 0.5);
        assert_eq!(reward(SOLUTION, puzzle, SOLUTION), 0.0);
        assert_eq!(reward("<answer>1</answer>", SOLUTION, SOLUTION), 0.0);
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "(\\PC|[0-9]{4}|```|<answer>|</answer>|\\n){0,40}") {
            let _ = cells(&answer(&text), "0000000000000000", SOLUTION);
            let _ = reward(&text, "0000000000000000", SOLUTION);
        }
    }
}
