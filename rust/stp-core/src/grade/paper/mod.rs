//! Published graders, quirks included (`paper_compat`): what d1 (arXiv 2504.12216) and its descendants score.
//!
//! The rules are reproduced so that published numbers can be; where they are wrong, the graders beside this module
//! are right. Every difference is listed in `docs/graders.md`.

pub mod arithmetic;
pub mod countdown;
pub mod gsm8k;
pub mod math;
pub mod rewards;
pub mod sudoku;

/// The text of the first `<answer>...</answer>`, across lines; `None` if there is none.
#[must_use]
pub fn first_answer(text: &str) -> Option<&str> {
    let inner = text.split_once("<answer>")?.1;
    Some(inner.split_once("</answer>")?.0)
}

/// The text of the last of the non-overlapping `<answer>...</answer>`, as read from left to right.
#[must_use]
pub fn last_answer(text: &str) -> Option<&str> {
    let (mut rest, mut last) = (text, None);
    while let Some((_, inner)) = rest.split_once("<answer>") {
        let Some((answer, after)) = inner.split_once("</answer>") else { break };
        (last, rest) = (Some(answer), after);
    }
    last
}

/// The content of the last box, as the published graders find it; `None` where they raise.
///
/// The form `\boxed X` (with a space) wins wherever it is and runs to the next `$`. Without any box or `\fbox` the
/// whole text is the content. An unbalanced box raises. A wrapper other than `\boxed{...}` stays on.
#[must_use]
pub fn boxed(text: &str) -> Option<&str> {
    const SPACED: &str = "\\boxed ";
    const OPEN: &str = "\\boxed{";
    if let Some(at) = text.rfind(SPACED) {
        let tail = &text[at + SPACED.len()..];
        return Some(tail.split('$').next().unwrap_or(tail));
    }
    let Some(start) = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox")) else { return Some(text) };
    let whole = &text[start..=closing_brace(text, start)?];
    Some(whole.strip_prefix(OPEN).and_then(|inner| inner.strip_suffix('}')).unwrap_or(whole))
}

/// Index of the brace after `start` at which as many braces have closed as have opened.
fn closing_brace(text: &str, start: usize) -> Option<usize> {
    let mut open = 0_i64;
    for (i, b) in text.bytes().enumerate().skip(start) {
        match b {
            b'{' => open += 1,
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes() {
        assert_eq!(boxed("a \\boxed{1} b \\boxed{\\frac{1}{2}} c"), Some("\\frac{1}{2}"));
        assert_eq!(boxed("$\\boxed 7$ and \\boxed{8}"), Some("7"));
        assert_eq!(boxed("\\fbox{3}"), Some("\\fbox{3}"));
        assert_eq!(boxed("\\boxed3{x}"), Some("\\boxed3{x}"));
        assert_eq!(boxed("no box"), Some("no box"));
        assert_eq!(boxed("\\boxed{1} \\boxed{2"), None);
        assert_eq!(boxed("\\boxed}{1}"), None);
    }

    #[test]
    fn answers() {
        let text = "<answer>1\n</answer> <answer>2</answer></answer> <answer>3";
        assert_eq!(first_answer(text), Some("1\n"));
        assert_eq!(last_answer(text), Some("2"));
        assert_eq!(last_answer("<answer>a<answer>b</answer>"), Some("a<answer>b"));
        assert_eq!(first_answer("</answer><answer>"), None);
    }
}
