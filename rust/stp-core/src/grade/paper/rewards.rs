//! Published training rewards beyond correctness: tag layout, formats, and where ESPO looks for a number.

use crate::grade::paper::boxed;
use crate::grade::paper::math;
use crate::grade::python;

/// The parts of d1's GSM8K reward; their sum is the reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gsm8k {
    /// Layout count: 0.125 for each tag that occurs exactly once, less 0.001 per character after the end.
    pub layout: f64,
    /// 0.5 if the text starts with both tags, each on one line.
    pub soft: f64,
    /// 0.5 if the whole text is the layout of six lines.
    pub strict: f64,
    /// 0.5 if the answer is digits only.
    pub digits: f64,
    /// 2.0 if the answer is the truth, as text.
    pub correct: f64,
}

/// d1's GSM8K reward.
#[must_use]
pub fn gsm8k(text: &str, truth: &str) -> Gsm8k {
    let answer = tail_answer(text);
    let half = |yes: bool| if yes { 0.5 } else { 0.0 };
    Gsm8k {
        layout: layout(text),
        soft: half(soft(text)),
        strict: half(strict(text)),
        digits: half(python::all_digits(answer)),
        correct: if answer == truth { 2.0 } else { 0.0 },
    }
}

/// The text after the last opening tag (or all of it) up to the next closing tag, stripped.
fn tail_answer(text: &str) -> &str {
    let tail = text.rsplit("<answer>").next().unwrap_or(text);
    python::strip(tail.split("</answer>").next().unwrap_or(tail))
}

fn layout(text: &str) -> f64 {
    let once = |tag: &str| {
        let mut found = text.matches(tag);
        found.next().is_some() && found.next().is_none()
    };
    let after = |tag: &str| text.rsplit(tag).next().unwrap_or(text).chars().count() as f64;
    let mut score = 0.0;
    if once("<reasoning>\n") {
        score += 0.125;
    }
    if once("\n</reasoning>\n") {
        score += 0.125;
    }
    if once("\n<answer>\n") {
        score += 0.125;
        score -= after("\n</answer>\n") * 0.001;
    }
    if once("\n</answer>") {
        score += 0.125;
        score -= (after("\n</answer>") - 1.0) * 0.001;
    }
    score
}

/// Both tags at the start, nothing but white space between them, no line break inside either.
fn soft(text: &str) -> bool {
    const BETWEEN: &str = "</reasoning>";
    let Some(rest) = text.strip_prefix("<reasoning>") else { return false };
    let first_line = rest.split('\n').next().unwrap_or(rest);
    let mut checked = 0; // no closing tag comes before this point on the line that it is on
    for (at, _) in first_line.match_indices(BETWEEN) {
        let after = rest[at + BETWEEN.len()..].trim_start_matches(python::is_space);
        let Some(answer) = after.strip_prefix("<answer>") else { continue };
        let start = rest.len() - answer.len();
        if start < checked {
            continue;
        }
        let line = answer.split('\n').next().unwrap_or(answer);
        if line.contains("</answer>") {
            return true;
        }
        checked = start + line.len();
    }
    false
}

/// Exactly the six lines of the layout and a line break; `$` also matches before one more.
fn strict(text: &str) -> bool {
    let lines: Vec<&str> = text.splitn(9, '\n').collect();
    matches!(
        lines.as_slice(),
        ["<reasoning>", _, "</reasoning>", "<answer>", _, "</answer>", ""]
            | ["<reasoning>", _, "</reasoning>", "<answer>", _, "</answer>", "", ""]
    )
}

/// d1's MATH reward: correctness (2.0 or 0) and format.
///
/// The format looks for a backspace followed by `oxed`, a misspelling of `\boxed`, so 0.75 (with an answer tag) and
/// 0.25 (without) are what ordinary text earns.
#[must_use]
pub fn math(text: &str, truth: &str) -> (f64, f64) {
    let answer = boxed(text).unwrap_or(text);
    let truth = boxed(truth).unwrap_or(truth);
    let correct = if math::equivalent(answer, truth) { 2.0 } else { 0.0 };
    let tagged = text.split("<answer>").nth(1).map(|rest| rest.split("</answer>").next().unwrap_or(rest));
    let (tag, body) = tagged.map_or((0.0, text), |inner| (1.0, inner));
    let misspelt = if body.contains("\u{8}oxed") { 1.0 } else { 0.5 };
    (correct, (tag + misspelt) * 0.5)
}

/// The text that ESPO takes for the answer of a GSM8K completion; empty where it finds none.
#[must_use]
pub fn espo_number(text: &str) -> &str {
    says(text).or_else(|| hashed(text)).or_else(|| last_integer(text)).unwrap_or("")
}

/// Length of a minus sign (if any) and of the run of digits, points and commas after it.
fn run(text: &str) -> (usize, usize) {
    let sign = usize::from(text.starts_with('-'));
    let body = text[sign..].bytes().take_while(|b| b.is_ascii_digit() || matches!(b, b'.' | b',')).count();
    (sign, body)
}

/// The number after "The answer is ", which one more character must follow: at the end of a line the number itself
/// gives up its last character for that.
fn says(text: &str) -> Option<&str> {
    const LEAD: &str = "The answer is ";
    text.match_indices(LEAD).find_map(|(at, _)| {
        let rest = &text[at + LEAD.len()..];
        let (sign, body) = run(rest);
        let followed = rest[sign + body..].chars().next().is_some_and(|c| c != '\n');
        let body = if followed { body } else { body.saturating_sub(1) };
        (body > 0).then(|| &rest[..sign + body])
    })
}

fn hashed(text: &str) -> Option<&str> {
    const LEAD: &str = "#### ";
    text.match_indices(LEAD).find_map(|(at, _)| {
        let rest = &text[at + LEAD.len()..];
        let (sign, body) = run(rest);
        (body > 0).then(|| &rest[..sign + body])
    })
}

fn last_integer(text: &str) -> Option<&str> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let head = text[..end].trim_end_matches(|c: char| c.is_ascii_digit());
    let sign = usize::from(head.ends_with('-'));
    Some(&text[head.len() - sign..end])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "the parts are sums of eighths and halves")]
    use super::*;
    use proptest::prelude::*;

    const FULL: &str = "<reasoning>\nthink\n</reasoning>\n<answer>\n18\n</answer>\n";

    #[test]
    fn gsm8k_parts() {
        let got = gsm8k(FULL, "18");
        assert_eq!((got.layout, got.strict, got.digits, got.correct), (0.5, 0.5, 0.5, 2.0));
        assert_eq!(got.soft, 0.0, "a dot does not match a line break");
        let line = "<reasoning>a</reasoning></reasoning>\n <answer>1,200</answer>";
        let got = gsm8k(line, "1,200");
        assert_eq!((got.soft, got.strict, got.digits, got.correct), (0.5, 0.0, 0.0, 2.0));
        assert!(
            strict(&format!("{FULL}\n"))
                && !strict(&format!("{FULL}\n\n"))
                && !strict(&FULL[..FULL.len() - 1])
        );
        assert!(!soft("<reasoning>\n</reasoning><answer></answer>"));
        assert!(!soft("<reasoning></reasoning><answer>\n</answer>"));
        assert!(!soft(" <reasoning></reasoning><answer></answer>"));
        assert!(soft("<reasoning></reasoning>x</reasoning><answer></answer>"));
        assert_eq!(gsm8k("18", "18").correct, 2.0, "no tag is needed");
        assert_eq!(gsm8k("\u{b2}", "2").digits, 0.5, "a superscript is a digit");
    }

    #[test]
    fn the_layout_count_charges_for_what_follows() {
        assert_eq!(layout(&format!("{FULL}abc")), 0.5 - 0.003 - 0.003);
        assert_eq!(layout("<reasoning>\n<reasoning>\n"), 0.0);
        let unfinished = "\n<answer>\n18";
        assert_eq!(layout(unfinished), 0.125 - unfinished.len() as f64 * 0.001);
    }

    #[test]
    fn math_format_has_the_published_misspelling() {
        assert_eq!(math("<answer>\\boxed{2}</answer>", "\\boxed{2}"), (2.0, 0.75));
        assert_eq!(math("\\boxed{3}", "2"), (0.0, 0.25));
        assert_eq!(math("<answer>\u{8}oxed</answer>", "2"), (0.0, 1.0));
        assert_eq!(math("\u{8}oxed", "2"), (0.0, 0.5));
        assert_eq!(math("x^2", "x^2"), (2.0, 0.25), "without a box the whole text is the answer");
    }

    #[test]
    fn espo_looks_in_three_places() {
        for (text, want) in [
            ("The answer is 42.", "42"),
            ("The answer is 42. So", "42."),
            ("The answer is 42", "4"),
            ("The answer is 42\n#### 7", "4"),
            ("The answer is 4", "4"),
            ("The answer is 1,200 eggs", "1,200"),
            ("The answer is x. The answer is -3!", "-3"),
            ("#### 1,200", "1,200"),
            ("#### -7.5.", "-7.5."),
            ("12 and 5-3 apples", "-3"),
            ("1.5", "5"),
            ("none", ""),
        ] {
            assert_eq!(espo_number(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "(\\PC|</?reasoning>|</?answer>|\\n|The answer is |#### |-|[0-9]){0,40}") {
            let _ = (gsm8k(&text, "1"), math(&text, "1"), espo_number(&text));
        }
    }
}
