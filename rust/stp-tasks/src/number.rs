//! Numbers as people write final answers: commas, currency, percent, fractions, signs, decimals, units.

use crate::extract::{before_end, last_answer, last_boxed};
use crate::latex;

/// A final answer and the text that it was read from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer<'a> {
    /// The value.
    pub value: f64,
    /// The text.
    pub text: &'a str,
}

/// Currency signs, which carry no value.
const CURRENCY: [char; 5] = ['\u{20ac}', '\u{a3}', '\u{a5}', '\u{20b9}', '\u{a2}'];

/// The number that a final answer states: its value as a whole, else what follows the last equals sign, else its last
/// number.
///
/// A percent sign, currency and units carry no value, as in the data sets: `5%` is 5.
#[must_use]
pub fn read(text: &str) -> Option<f64> {
    let plain = latex::clean(tail(text)).replace(CURRENCY, "").replace("**", "");
    let right = plain.rsplit(['=', '\u{2248}']).next().unwrap_or(&plain).trim();
    [plain.as_str(), right].iter().find_map(|part| stated(part)).or_else(|| last_number(right))
}

/// The end of a long text: final answers are last, and reading stays bounded.
fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(1024);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The value of a text that is an expression with at most a unit of words after it.
fn stated(text: &str) -> Option<f64> {
    latex::number(text).or_else(|| {
        let unit =
            text.find(|c: char| c.is_alphabetic() && c != 'e').filter(|&i| !text[..i].contains('\\'))?;
        let words = text[unit..].chars().all(|c| c.is_alphabetic() || " .'/-".contains(c));
        if words { latex::number(text[..unit].trim()) } else { None }
    })
}

/// The last number in prose, with its sign and its fraction.
fn last_number(text: &str) -> Option<f64> {
    let bytes = text.as_bytes();
    let part = |b: u8| b.is_ascii_digit() || b == b'.' || b == b'/';
    let mut end = text.len();
    loop {
        end = text[..end].rfind(|c: char| c.is_ascii_digit())? + 1;
        let mut start = end;
        while start > 0 && part(bytes[start - 1]) {
            start -= 1;
        }
        let word = text[start..end].trim_start_matches('/');
        let start = end - word.len();
        let glued = start > 0 && bytes[start - 1].is_ascii_alphabetic(); // as in `x2`
        let signed = start > 0 && bytes[start - 1] == b'-' && (start == 1 || !part(bytes[start - 2]));
        if let Some(value) = latex::number(word).filter(|_| !glued) {
            return Some(if signed { -value } else { value });
        }
        end = start;
    }
}

/// The final answer of a completion: the answer tag (in it, the box), else the last box, else what follows `####` or
/// "answer is" on the same line. Nothing is guessed from the last number of unfinished reasoning.
#[must_use]
pub fn answer(completion: &str) -> Option<Answer<'_>> {
    let text = before_end(completion);
    let tagged = last_answer(text).map(|span| last_boxed(span).unwrap_or(span));
    let places =
        [tagged, last_boxed(text), after(text, "####"), after(text, "answer is"), after(text, "Answer:")];
    places.into_iter().flatten().find_map(|place| {
        let text = place.trim();
        read(text).map(|value| Answer { value, text })
    })
}

/// The rest of the line after the last `mark`, up to the end of its sentence.
fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let rest = &text[text.rfind(mark)? + mark.len()..];
    let line = rest.lines().next().unwrap_or(rest);
    Some(line.split(". ").next().unwrap_or(line).trim_start_matches(':'))
}

/// Whether two values are the same answer: within one part in a million.
#[must_use]
pub fn equal(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-6 * b.abs().max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ways_to_write_a_number() {
        for (text, want) in [
            ("18", 18.0),
            ("18.0", 18.0),
            ("1,200", 1200.0),
            ("$1,200.50", 1200.5),
            ("\\$18", 18.0),
            ("\u{20ac}18", 18.0),
            ("-5", -5.0),
            ("\u{2212}5", -5.0),
            ("50%", 50.0),
            ("50\\%", 50.0),
            ("1/4", 0.25),
            (".25", 0.25),
            ("\\frac{1}{4}", 0.25),
            ("2 1/2 hours", 2.5),
            ("120 minutes", 120.0),
            ("120\\text{ minutes}", 120.0),
            ("18 dollars per day.", 18.0),
            ("x = 18", 18.0),
            ("3 + 15 = 18", 18.0),
            ("3 + 15", 18.0),
            ("9 \\times 2 = $18", 18.0),
            ("She makes 18 dollars", 18.0),
            ("**18**", 18.0),
            ("from 9 to -3", -3.0),
            ("room x2 has 7", 7.0),
            ("total: 1,000,000", 1e6),
        ] {
            assert_eq!(read(text), Some(want), "{text}");
        }
        assert_eq!(read(&format!("{}so 18 eggs", "\u{e9} ".repeat(5000))), Some(18.0));
        for text in ["", "none", "x", "x2", "..."] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn where_the_answer_is() {
        for (text, want) in [
            ("\\boxed{3} <answer>\\boxed{18}</answer>", Some(18.0)),
            ("\\boxed{3} and \\boxed{18}<|eot_id|>\\boxed{4}", Some(18.0)),
            ("<answer></answer> \\boxed{18}", Some(18.0)),
            ("\\boxed{\n18\n}", Some(18.0)),
            ("so\n#### 18\n", Some(18.0)),
            ("The answer is 18. It was 9 eggs.", Some(18.0)),
            ("9 eggs at 2 dollars make 18", None),
        ] {
            assert_eq!(answer(text).map(|a| a.value), want, "{text}");
        }
        assert!(equal(1.0 / 3.0, 0.333_333_3) && !equal(0.333, 1.0 / 3.0));
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "(\\PC|[0-9]{1,3}|,|\\.|/|-|\\\\boxed\\{|\\}|<answer>|####){0,40}") {
            let _ = answer(&text);
        }

        #[test]
        fn integers_survive_every_dress(n in -999_999i64..999_999) {
            let digits = n.abs().to_string();
            let mut grouped = String::new();
            for (i, c) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(c);
            }
            let sign = if n < 0 { "-" } else { "" };
            for text in [format!("{n}"), format!("{sign}{grouped}"), format!("{sign}{grouped}.00 eggs"), format!("x = {n}")] {
                prop_assert_eq!(read(&text), Some(n as f64), "{}", text);
            }
        }
    }
}
