//! Countdown as d1 evaluates it: the last box (else the whole text), Python arithmetic, one use of each digit run.

use crate::grade::paper::{arithmetic, boxed, first_answer};
use crate::grade::python;

/// The expression that is graded: the content of the last box; where that raises, of the first answer tag or all of
/// the text. LaTeX operators are replaced, and of `expression = number` the expression is kept.
#[must_use]
pub fn expression(text: &str) -> String {
    let found = boxed(text).or_else(|| first_answer(text).map(python::strip)).unwrap_or(text);
    let plain = found.replace("\\div", "/").replace("\\times", "*").replace("\\cdot", "*");
    match before_equals(&plain) {
        Some(run) => python::strip(run).to_string(),
        None => plain,
    }
}

/// The first run of digits, `+ - * / ( )` and spaces that is followed by `=` and a digit, point or space.
fn before_equals(text: &str) -> Option<&str> {
    let in_run = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '*' | '/' | '(' | ')' | ' ');
    text.match_indices('=').find_map(|(at, _)| {
        let number = text[at + 1..].starts_with(|c: char| c.is_ascii_digit() || c == '.' || c == ' ');
        let start = text[..at].rfind(|c| !in_run(c)).map_or(0, |i| i + char_len(text, i));
        (number && start < at).then(|| &text[start..at])
    })
}

fn char_len(text: &str, at: usize) -> usize {
    text[at..].chars().next().map_or(1, char::len_utf8)
}

/// Whether an expression uses exactly the given numbers and its value is within 1e-5 of the target.
#[must_use]
pub fn correct(expression: &str, numbers: &[i64], target: f64) -> bool {
    uses(expression, numbers)
        && allowed(expression)
        && arithmetic::evaluate(python::strip(expression)).is_some_and(|v| (v - target).abs() < 1e-5)
}

/// Whether the digit runs of the text, sorted, equal the given numbers, sorted: `3.4` counts as 3 and 4.
fn uses(text: &str, numbers: &[i64]) -> bool {
    let mut runs = Vec::with_capacity(numbers.len());
    for run in text.split(|c| !python::is_decimal(c)).filter(|run| !run.is_empty()) {
        let value = run.chars().filter_map(python::digit).try_fold(0_i64, |sum, digit| {
            sum.checked_mul(10).and_then(|tens| tens.checked_add(i64::from(digit)))
        });
        match value {
            Some(value) if runs.len() < numbers.len() => runs.push(value),
            _ => return false,
        }
    }
    let mut given = numbers.to_vec();
    runs.sort_unstable();
    given.sort_unstable();
    runs == given
}

fn allowed(text: &str) -> bool {
    let ok = |c| python::is_decimal(c) || python::is_space(c) || "+-*/().".contains(c);
    !text.is_empty() && text.chars().all(ok)
}

/// Countdown as a training reward: the last answer tag earns 1.0 if right, 0.1 in any case; no tag earns 0.
#[must_use]
pub fn reward(text: &str, numbers: &[i64], target: f64) -> f64 {
    match crate::grade::paper::last_answer(text) {
        None => 0.0,
        Some(answer) if correct(python::strip(answer), numbers, target) => 1.0,
        Some(_) => 0.1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn graded(text: &str) -> bool {
        correct(&expression(text), &[2, 3, 4], 10.0)
    }

    #[test]
    fn what_is_graded() {
        for (text, want) in [
            ("\\boxed{2*3+4}", "2*3+4"),
            ("\\boxed{2 \\times 3 + 4 = 10}", "2 * 3 + 4"),
            ("\\boxed{2*3+4=x}", "2*3+4=x"),
            ("\\boxed{2*3+4= x}", "2*3+4"),
            ("so 3 + 4 = 7, and 2*3+4 = 10.", "3 + 4"),
            ("<answer>2*3+4</answer>", "<answer>2*3+4</answer>"),
            ("\\boxed{2 <answer> 2*3+4 </answer>", "2*3+4"),
            ("x\u{e9}=1 (2)=3", "1 (2)"),
        ] {
            assert_eq!(expression(text), want, "{text}");
        }
    }

    #[test]
    fn what_is_correct() {
        assert!(graded("\\boxed{2*3+4}") && graded("\\boxed{\n2*3+4 = 11}"));
        assert!(graded("2*3+4 = 10"));
        assert!(!graded("<answer>2*3+4</answer>"));
        assert!(!graded("\\boxed{2*3+4.0}"));
        assert!(!graded("\\boxed{2*3+4}\\boxed{7}"));
        assert!(correct("2*3.4", &[2, 3, 4], 6.8), "a decimal counts as two numbers");
        assert!(correct("2**3+4", &[2, 3, 4], 12.0), "powers pass");
        assert!(!correct("88**77**66", &[88, 77, 66], 1.0));
        assert!(
            !correct("\u{662}*3+4", &[2, 3, 4], 10.0),
            "other scripts' digits pass the checks, not the evaluation"
        );
        assert!(!correct("02*3+4", &[2, 3, 4], 10.0));
        assert_eq!(expression("\\boxed{\\frac{1}{2} \\div 3}"), "\\frac{1}{2} / 3");
    }

    #[test]
    fn rewards() {
        assert_eq!(reward("<answer>2*3+4</answer>", &[2, 3, 4], 10.0).to_bits(), 1.0_f64.to_bits());
        assert_eq!(reward("<answer></answer>", &[2, 3, 4], 10.0).to_bits(), 0.1_f64.to_bits());
        assert_eq!(reward("2*3+4", &[2, 3, 4], 10.0).to_bits(), 0.0_f64.to_bits());
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "(\\PC|=|\\\\boxed\\{|[0-9+*/() -]){0,60}") {
            let _ = graded(&text);
        }
    }
}
