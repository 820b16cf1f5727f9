//! MATH answers: equal as text, as numbers, as lists, or as expressions at sample points.

use crate::extract::answer_span;
use crate::latex::{clean, evaluate, number};

/// The text that a completion gives as its answer.
#[must_use]
pub fn read(completion: &str) -> &str {
    answer_span(completion)
}

/// How two answers were found equal, or that they were not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The same text after cleaning.
    Text,
    /// The same number.
    Number,
    /// The same elements.
    List,
    /// The same value at every sample point: equal expressions.
    Expression,
    /// Not found equal.
    No,
}

/// Compares an answer with the truth.
#[must_use]
pub fn compare(answer: &str, truth: &str) -> Match {
    let (a, b) = (clean(answer), clean(truth));
    compare_cleaned(&a, &b, 0)
}

fn compare_cleaned(a: &str, b: &str, depth: usize) -> Match {
    let (a, b) = (bare(a), bare(b));
    if b.is_empty() || depth > 2 {
        return Match::No;
    }
    let (x, y) = (squeeze(a), squeeze(b));
    let word = y.len() > 1 && y.bytes().all(|c| c.is_ascii_alphabetic());
    if x == y || (word && x.eq_ignore_ascii_case(&y)) {
        return Match::Text;
    }
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return if (x - y).abs() <= 1e-9 * y.abs().max(1.0) { Match::Number } else { Match::No };
    }
    if let Some(same) = lists(a, b, depth) {
        return if same { Match::List } else { Match::No };
    }
    match (a.split_once('='), b.split_once('=')) {
        (Some((left, right)), None) if is_name(left) => compare_cleaned(right, b, depth + 1),
        (None, Some((left, right))) if is_name(left) => compare_cleaned(a, right, depth + 1),
        (Some((p, q)), Some((r, s))) => {
            let same = |x: &str, y: &str| compare_cleaned(x, y, depth + 1) != Match::No;
            if (same(p, r) && same(q, s)) || (same(p, s) && same(q, r)) {
                Match::Expression
            } else {
                Match::No
            }
        }
        (None, None) if same_expression(a, b) => Match::Expression,
        _ => Match::No,
    }
}

/// Without white space at the ends, or brackets around a single letter (a choice).
fn bare(text: &str) -> &str {
    let text = text.trim();
    match text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
        Some(choice) if choice.len() == 1 && choice.starts_with(|c: char| c.is_ascii_uppercase()) => choice,
        _ => text,
    }
}

fn squeeze(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// A name that may stand before an equals sign: a letter or `f(x)`.
fn is_name(text: &str) -> bool {
    let text = text.trim();
    let mut chars = text.chars();
    chars.next().is_some_and(char::is_alphabetic)
        && matches!(chars.as_str().as_bytes(), [] | [b'(', _, b')'] | [b'_', _])
}

/// The elements of a list and its brackets; `None` where there is no comma outside brackets.
fn elements(text: &str) -> Option<(&str, Vec<&str>, &str)> {
    let brackets = [("\\{", "\\}"), ("(", ")"), ("[", "]"), ("(", "]"), ("[", ")"), ("", "")];
    let (open, close) = brackets
        .into_iter()
        .find(|(o, c)| text.len() >= o.len() + c.len() && text.starts_with(o) && text.ends_with(c))?;
    let inner = &text[open.len()..text.len() - close.len()];
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (i, c) in inner.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[from..i]);
                from = i + 1;
            }
            _ => {}
        }
        if depth < 0 {
            return None; // `(1,2),(3,4)` is a list of pairs, not a pair
        }
    }
    if parts.is_empty() {
        return None;
    }
    parts.push(&inner[from..]);
    Some((open, parts, close))
}

/// Whether two lists are the same: in order inside brackets, in any order in braces or bare.
fn lists(a: &str, b: &str, depth: usize) -> Option<bool> {
    let strip = |text| elements(text).or_else(|| bare_list(text));
    let ((open, xs, close), (open_b, ys, close_b)) = (strip(a)?, strip(b)?);
    let unordered = |open: &str| open.is_empty() || open == "\\{";
    if (open, close) != (open_b, close_b) && !(unordered(open) && unordered(open_b)) {
        return Some(false);
    }
    if xs.len() != ys.len() || xs.len() > 16 {
        return Some(false);
    }
    let same = |x: &str, y: &str| compare_cleaned(x, y, depth + 1) != Match::No;
    if !unordered(open) {
        return Some(xs.iter().zip(&ys).all(|(x, y)| same(x, y)));
    }
    let mut left = ys;
    Some(xs.iter().all(|x| left.iter().position(|y| same(x, y)).map(|i| left.swap_remove(i)).is_some()))
}

/// A list whose first and last characters are brackets of different elements, such as `(1,2),(3,4)`.
fn bare_list(text: &str) -> Option<(&str, Vec<&str>, &str)> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    if parts.is_empty() {
        return None;
    }
    parts.push(&text[from..]);
    Some(("", parts, ""))
}

/// Whether two expressions in letters agree at six fixed points. Texts of words do not parse, or agree only if equal.
fn same_expression(a: &str, b: &str) -> bool {
    const POINTS: [f64; 6] = [0.318_7, 1.234_5, 2.718_1, 0.577_2, 3.301_9, 1.902_3];
    // a product of letters is the same in any order, a word is not
    let words = |t: &str| {
        t.replace("\\frac", " ")
            .replace("\\sqrt", " ")
            .split(|c: char| !c.is_alphabetic())
            .any(|w| w.len() > 2)
    };
    if words(a) || words(b) {
        return false;
    }
    let mut agreed = 0;
    for (k, base) in POINTS.iter().enumerate() {
        let letter = |c: char| base + f64::from(c as u32 % 97) * 0.061_3 * (k + 1) as f64;
        match (evaluate(a, &letter), evaluate(b, &letter)) {
            (Some(x), Some(y)) if (x - y).abs() <= 1e-9 * x.abs().max(y.abs()).max(1.0) => agreed += 1,
            (None, None) => {}
            _ => return false,
        }
    }
    agreed >= 3
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_answers() {
        for (a, b) in [
            ("\\frac12", "0.5"),
            (".5", "\\dfrac{1}{2}"),
            ("18.0", "18"),
            ("1,200", "1200"),
            ("x=5", "5"),
            ("5", "x = 5"),
            ("f(x)=2x", "2x"),
            ("2\\sqrt{3}", "\\sqrt{12}"),
            ("\\frac{\\pi}{2}", "0.5\\pi"),
            ("x^2+2x+1", "(x+1)^2"),
            ("y = 2x + 1", "2x+1=y"),
            ("\\text{Evelyn}", "Evelyn"),
            ("(B)", "\\text{B}"),
            ("\\text{Even}", "even"),
            ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
            ("(0.5, 2)", "\\left(\\frac{1}{2},2\\right)"),
            ("1, 2, 3", "3,1,2"),
            ("\\{1, 2\\}", "2, 1"),
            ("(1,2),(3,4)", "(3,4), (1,2)"),
            ("90^\\circ", "90"),
            ("12\\text{ cm}", "12"),
            ("5\\%", "5"),
            ("[0, \\infty)", "[0,\\infty)"),
            ("3\\frac12", "\\frac{7}{2}"),
            ("10", "10.0"),
        ] {
            assert_ne!(compare(a, b), Match::No, "{a} and {b}");
        }
    }

    #[test]
    fn different_answers() {
        for (a, b) in [
            ("5", "6"),
            ("", "5"),
            ("5", ""),
            ("", ""),
            ("(1,2)", "(2,1)"),
            ("(1,2)", "[1,2]"),
            ("(1,2]", "[1,2]"),
            ("1, 2", "1, 2, 3"),
            ("x", "y"),
            ("x^2", "2x"),
            ("0.33", "\\frac{1}{3}"),
            ("\\text{Evelyn}", "Debra"),
            ("3x", "3"),
            ("a/b", "b/a"),
            ("\\text{odd}", "\\text{even}"),
            ("x=5", "x=6"),
            ("listen", "silent"),
            ("X", "x"),
        ] {
            assert_eq!(compare(a, b), Match::No, "{a} and {b}");
        }
    }

    proptest! {
        #[test]
        fn total_symmetric_on_numbers(text in "(\\PC|\\\\frac|[{}(),=^]|[0-9x]){0,40}", n in -99i64..99) {
            let _ = compare(&text, "(1,2)");
            let (a, b) = (format!("\\frac{{{n}}}{{7}}"), format!("{n}/7"));
            prop_assert_eq!(compare(&a, &b), compare(&b, &a));
            prop_assert_ne!(compare(&a, &b), Match::No);
        }
    }
}
