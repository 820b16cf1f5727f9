//! GSM8K as d1 evaluates it: the first usable box, else the last number of the first answer tag.

use crate::grade::paper::first_answer;
use crate::grade::python;

/// The value that is read, and the text that it is read from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading<'a> {
    /// The value, compared with the ground truth for equality.
    pub value: f64,
    /// The content of the box or tag.
    pub text: &'a str,
}

/// Reads the answer of a completion; `None` where the published grader finds none.
#[must_use]
pub fn read(text: &str) -> Option<Reading<'_>> {
    from_boxes(text).or_else(|| from_answer(text))
}

fn from_boxes(text: &str) -> Option<Reading<'_>> {
    let mut rest = text;
    while let Some((_, inner)) = rest.split_once("\\boxed{") {
        // shortest content on one line: an inner brace closes it
        let Some(end) = inner.find(['}', '\n']) else { break };
        if inner.as_bytes()[end] == b'\n' {
            rest = inner;
            continue;
        }
        let content = python::strip(&inner[..end]);
        rest = &inner[end + 1..];
        if content.chars().all(|c| c == '.') {
            continue; // empty, or a placeholder of dots
        }
        if let Some(value) = python::float(content).or_else(|| numbers(content).next()) {
            return Some(Reading { value, text: content });
        }
    }
    None
}

fn from_answer(text: &str) -> Option<Reading<'_>> {
    let content = python::strip(first_answer(text)?);
    let value = python::float(content).or_else(|| numbers(content).last())?;
    Some(Reading { value, text: content })
}

/// The numbers in a text: an optional minus, digits, an optional point and digits. A comma ends a number.
fn numbers(text: &str) -> impl Iterator<Item = f64> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (start, _) = rest.char_indices().find(|&(i, c)| {
            python::is_decimal(c)
                || (c == '-' && rest[i + 1..].chars().next().is_some_and(python::is_decimal))
        })?;
        let tail = &rest[start..];
        let mut end = usize::from(tail.starts_with('-'));
        end += digits(&tail[end..]);
        if tail[end..].starts_with('.') {
            end += 1;
            end += digits(&tail[end..]);
        }
        rest = &tail[end..];
        Some(python::float(&tail[..end]).unwrap_or(f64::NAN))
    })
}

fn digits(text: &str) -> usize {
    text.find(|c| !python::is_decimal(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<f64> {
        read(text).map(|r| r.value)
    }

    #[test]
    fn boxes_come_first_and_in_order() {
        for (text, want) in [
            ("\\boxed{18}", Some(18.0)),
            ("\\boxed{3} then \\boxed{18}", Some(3.0)),
            ("\\boxed{...} \\boxed{} \\boxed{x} \\boxed{18}", Some(18.0)),
            ("\\boxed{1,200}", Some(1.0)),
            ("\\boxed{1_200}", Some(1200.0)),
            ("\\boxed{\\$18.50}", Some(18.5)),
            ("\\boxed{120\\text{ minutes}}", Some(120.0)),
            ("\\boxed{\\frac{1}{2}} \\boxed{4}", Some(1.0)),
            ("\\boxed{x-3}", Some(-3.0)),
            ("\\boxed{1e2}", Some(100.0)),
            ("\\boxed{\n18\n}", None),
            ("\\boxed{\n\\boxed{18}", Some(18.0)),
            ("\\boxed {18}", None),
            ("<answer>18</answer>", Some(18.0)),
            ("<answer>5 + 13 = 18 dollars.</answer>", Some(18.0)),
            ("<answer>\n18\n</answer> <answer>19</answer>", Some(18.0)),
            ("<answer>18", None),
            ("\\boxed{x} <answer>7</answer>", Some(7.0)),
            ("18", None),
        ] {
            assert_eq!(value(text), want, "{text}");
        }
    }

    #[test]
    fn numbers_in_prose() {
        assert_eq!(numbers("5-3, 2.-7.5x1,200").collect::<Vec<_>>(), [5.0, -3.0, 2.0, -7.5, 1.0, 200.0]);
        assert_eq!(numbers("\u{663}.\u{664} - a-").collect::<Vec<_>>(), [3.4]);
    }
}
