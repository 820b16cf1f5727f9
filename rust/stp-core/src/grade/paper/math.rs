//! MATH as d1 evaluates it: the last box against the ground truth, both through the normaliser of the MATH benchmark
//! (Hendrycks et al., arXiv 2103.03874).

use std::borrow::Cow;

use crate::grade::paper::{boxed, first_answer};
use crate::grade::python;

/// The answer of a completion: the last box; if that raises or is empty, the first answer tag.
#[must_use]
pub fn read(text: &str) -> Option<&str> {
    match boxed(text) {
        Some("") => Some(first_answer(text).map_or("", python::strip)),
        None => first_answer(text).map(python::strip),
        found => found,
    }
}

/// Whether an answer equals the ground truth: equal after normalisation; where that raises, equal as they are.
#[must_use]
pub fn equivalent(answer: &str, truth: &str) -> bool {
    match (normalise(answer), normalise(truth)) {
        (Some(a), Some(b)) => a == b,
        _ => answer == truth,
    }
}

/// Whether an answer is a number within 1e-6 of the ground truth.
#[must_use]
pub fn close(answer: &str, truth: f64) -> bool {
    python::float(answer).is_some_and(|value| (value - truth).abs() < 1e-6)
}

/// The normalised form; `None` where the published normaliser raises.
#[must_use]
pub fn normalise(text: &str) -> Option<String> {
    let mut s = Cow::Borrowed(text);
    for (from, to) in [
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        swap(&mut s, from, to);
    }
    let mut s = Cow::Owned(without_units(&s)?.to_string());
    for (from, to) in [("\\%", ""), (" .", " 0."), ("{.", "{0.")] {
        swap(&mut s, from, to);
    }
    if s.is_empty() {
        return Some(String::new());
    }
    if s.starts_with('.') {
        s.to_mut().insert(0, '0');
    }
    let s = right_side(&s);
    let s = braced_roots(s)?.replace(' ', "");
    let s = braced_fractions(&s)?;
    let s = if s == "0.5" { "\\frac{1}{2}".to_string() } else { s };
    slash_to_fraction(s)
}

fn swap(text: &mut Cow<'_, str>, from: &str, to: &str) {
    if text.contains(from) {
        *text = Cow::Owned(text.replace(from, to));
    }
}

/// Units follow `\text{ `; more than one of them raises.
fn without_units(text: &str) -> Option<&str> {
    let mut parts = text.split("\\text{ ");
    let first = parts.next()?;
    match (parts.next(), parts.next()) {
        (_, None) => Some(first),
        _ => None,
    }
}

/// Keeps the right side of a single equals sign whose left side has at most two characters.
fn right_side(text: &str) -> &str {
    match text.split_once('=') {
        Some((left, right)) if !right.contains('=') && left.chars().count() <= 2 => right,
        _ => text,
    }
}

/// `\sqrt3` becomes `\sqrt{3}`; a root at the end of the text raises.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut made = parts.next()?.to_string();
    for part in parts {
        let first = part.chars().next()?;
        made.push_str("\\sqrt");
        if first == '{' {
            made.push_str(part);
        } else {
            made.push('{');
            made.push(first);
            made.push('}');
            made.push_str(&part[first.len_utf8()..]);
        }
    }
    Some(made)
}

/// `\frac12` becomes `\frac{1}{2}`, `\frac1{72}` likewise; a fraction at the end raises, one with a single character
/// after it leaves the whole text as it was.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut made = parts.next()?.to_string();
    for part in parts {
        let mut chars = part.chars();
        let a = chars.next()?;
        made.push_str("\\frac");
        if a == '{' {
            made.push_str(part);
            continue;
        }
        let Some(b) = chars.next() else { return Some(text.to_string()) };
        made.extend(['{', a, '}']);
        if b == '{' {
            made.push(b);
        } else {
            made.extend(['{', b, '}']);
        }
        made.push_str(chars.as_str());
    }
    Some(made)
}

/// `3/4` becomes `\frac{3}{4}`; one slash between anything but integers raises, odd spellings of integers stay.
fn slash_to_fraction(text: String) -> Option<String> {
    let Some((a, b)) = text.split_once('/') else { return Some(text) };
    if b.contains('/') {
        return Some(text);
    }
    if !python::is_int(a) || !python::is_int(b) {
        return None;
    }
    if canonical(a) && canonical(b) { Some(format!("\\frac{{{a}}}{{{b}}}")) } else { Some(text) }
}

/// Whether an integer is spelt as Python prints it.
fn canonical(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !digits.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn form(text: &str) -> Option<String> {
        normalise(text)
    }

    #[test]
    fn normal_forms() {
        for (text, want) in [
            ("\\dfrac{1}{2}", "\\frac{1}{2}"),
            ("\\tfrac12", "\\frac{1}{2}"),
            ("\\frac1{72}", "\\frac{1}{72}"),
            ("\\frac{72}1", "\\frac{72}1"),
            ("0.5", "\\frac{1}{2}"),
            (".5", "\\frac{1}{2}"),
            ("3/4", "\\frac{3}{4}"),
            ("-3/4", "\\frac{-3}{4}"),
            ("03/4", "03/4"),
            ("-0/4", "-0/4"),
            ("1/2/3", "1/2/3"),
            ("x=5", "5"),
            ("x =5", "5"),
            ("abc=5", "abc=5"),
            ("a=b=c", "a=b=c"),
            ("\\sqrt3 + \\sqrt{2}", "\\sqrt{3}+\\sqrt{2}"),
            ("12\\text{ cm}", "12"),
            ("50\\%", "50"),
            ("90^\\circ", "90"),
            ("90^{\\circ}", "90"),
            ("\\left( 1,\\! 2 \\right)", "(1,2)"),
            ("\\$ .25", "0.25"),
            ("{.5}", "{0.5}"),
            ("a\\\\b", "a\\b"),
            ("\\frac3", "\\frac3"),
            ("", ""),
        ] {
            assert_eq!(form(text).as_deref(), Some(want), "{text}");
        }
        for text in ["a/b", "1/x", "\\sqrt", "\\frac", "1\\text{ cm} 2\\text{ m}", "1/2 km"] {
            assert_eq!(form(text), None, "{text}");
        }
    }

    #[test]
    fn equivalence_and_reading() {
        assert!(equivalent("\\frac12", "0.5"));
        assert!(equivalent("a/b", "a/b"));
        assert!(!equivalent("a/b", "a / b"));
        assert!(!equivalent("2", "2.0"));
        assert!(close("2", 2.000_000_5) && !close("2", 2.000_002) && !close("x", 2.0));
        assert_eq!(read("\\boxed{} <answer> 7 </answer>"), Some("7"));
        assert_eq!(read("\\boxed{}"), Some(""));
        assert_eq!(read("\\boxed{1 <answer>2</answer>"), Some("2"));
        assert_eq!(read("\\boxed{1"), None);
        assert_eq!(read("<answer>7</answer>"), Some("<answer>7</answer>"));
    }

    proptest! {
        #[test]
        fn total_on_any_text(a in "(\\PC|\\\\frac|\\\\sqrt|\\{|\\}|/|=|\\\\text\\{ ){0,30}", b in "\\PC{0,10}") {
            let _ = equivalent(&a, &b);
            prop_assert!(equivalent(&a, &a));
        }
    }
}
