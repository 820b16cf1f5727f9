//! Where the answer is in a completion: end tokens, tags, boxes.

/// Literal texts that end a completion when a model's special tokens were kept in the stored text.
pub const END_TOKENS: [&str; 8] =
    ["<|endoftext|>", "<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<|eos|>", "<eos>", "</s>", "[EOS]"];

/// Most bytes of a completion that are read: 16,000 tokens or more. Of a longer one the end counts, where answers are.
const MAX_BYTES: usize = 65_536;

/// The last 64 KiB of a completion, all of an ordinary one: what bounds the time of every grader.
#[must_use]
pub fn ending(text: &str) -> &str {
    let mut from = text.len().saturating_sub(MAX_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// The completion up to its first end token.
#[must_use]
pub fn before_end(text: &str) -> &str {
    let text = ending(text);
    let cut = |start: usize| END_TOKENS.iter().any(|token| text[start..].starts_with(token));
    text.char_indices().find(|&(i, c)| (c == '<' || c == '[') && cut(i)).map_or(text, |(i, _)| &text[..i])
}

/// The content of the last `<answer>` that is closed, else of the last one that is open (up to the end).
#[must_use]
pub fn last_answer(text: &str) -> Option<&str> {
    const OPEN: &str = "<answer>";
    const CLOSE: &str = "</answer>";
    if let Some(end) = text.rfind(CLOSE)
        && let Some(start) = text[..end].rfind(OPEN)
    {
        let inner = &text[start + OPEN.len()..end];
        // `<answer>a</answer> b</answer>`: the first closing tag ends it
        return Some(inner.find(CLOSE).map_or(inner, |i| &inner[..i]));
    }
    text.rfind(OPEN).map(|i| &text[i + OPEN.len()..])
}

/// The content of the last `\boxed{...}`, `\fbox{...}` or `\boxed 5` that is closed and holds more than dots or a word for
/// the answer itself. Of two boxes with nothing but "or" or "and" between them both, so that neither is picked.
#[must_use]
pub fn last_boxed(text: &str) -> Option<&str> {
    let last = last_box(text)?;
    let before = text[..last.from].trim_end_matches(|c: char| c.is_whitespace() || "$\\(".contains(c));
    let Some(rest) = ["or", "and", ",", "/"].iter().find_map(|word| before.strip_suffix(word)) else {
        return Some(last.inner);
    };
    let rest = rest.trim_end_matches(|c: char| c.is_whitespace() || "$\\),".contains(c));
    match last_box(rest) {
        Some(other) if other.to == rest.len() => Some(&text[other.from..last.to]),
        _ => Some(last.inner),
    }
}

/// A box: its content, and where it starts and ends.
#[derive(Clone, Copy)]
struct Boxed<'a> {
    from: usize,
    to: usize,
    inner: &'a str,
}

fn last_box(text: &str) -> Option<Boxed<'_>> {
    let last = |tag: &str| {
        // unbalanced and empty boxes are passed over, but not without end
        text.rmatch_indices(tag).take(8).find_map(|(from, _)| {
            let start = from + tag.len();
            let inner = &text[start..start + balanced(&text[start..])?];
            holds_something(inner).then_some(Boxed { from, to: start + inner.len() + 1, inner })
        })
    };
    let found = ["\\boxed{", "\\fbox{", "\\boxed {"].into_iter().filter_map(last);
    found.chain(last_unbraced(text)).max_by_key(|found| found.from)
}

/// Words that stand in a box for the answer, in a completion that talks about its own layout.
const PLACEHOLDERS: [&str; 8] = [
    "answer",
    "your answer",
    "final answer",
    "the answer",
    "your final answer",
    "result",
    "solution",
    "number",
];

fn holds_something(inner: &str) -> bool {
    let words = inner.trim_matches(|c: char| !c.is_alphanumeric()).trim_start_matches("text{");
    inner.contains(|c: char| c != '.' && !c.is_whitespace())
        && !PLACEHOLDERS.contains(&words.to_lowercase().replace('_', " ").as_str())
}

/// The last `\boxed 5`, to the end of its formula or line. It starts like a formula: `the \boxed command` is prose.
fn last_unbraced(text: &str) -> Option<Boxed<'_>> {
    const TAG: &str = "\\boxed ";
    text.rmatch_indices(TAG).take(8).find_map(|(from, _)| {
        let start = from + TAG.len();
        let rest = &text[start..];
        let end = ["$", "\\)", "\\]", "\n", "<"].iter().filter_map(|stop| rest.find(stop)).min();
        let inner = &rest[..end.unwrap_or(rest.len())];
        let mut chars = inner.trim_start().chars();
        let first = chars.next()?;
        let formula = first.is_ascii_digit()
            || "-+.(\\".contains(first)
            || (first.is_alphabetic() && chars.next().is_none_or(|c| !c.is_alphabetic() && c != ' '));
        (formula && holds_something(inner)).then_some(Boxed { from, to: start + inner.len(), inner })
    })
}

/// Length of the text before the brace that closes an already open one.
pub(crate) fn balanced(text: &str) -> Option<usize> {
    let mut depth = 1_usize;
    for (i, b) in text.bytes().enumerate() {
        match b {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(i);
                }
            }
            _ => {}
        }
    }
    None
}

/// The text in which an answer is looked for: the last answer tag, in it (or without it) the last box, else all of it.
#[must_use]
pub fn answer_span(text: &str) -> &str {
    let text = before_end(text);
    let tagged = last_answer(text);
    let span = tagged.unwrap_or(text);
    // inside a tag, a box that is not closed runs to the end of the tag
    let open =
        || tagged?.rsplit_once("\\boxed{").map(|(_, inner)| inner).filter(|inner| !inner.contains('}'));
    let empty = || ["\\boxed{}", "\\boxed{ }"].iter().any(|held| span.contains(held)).then_some("");
    last_boxed(span).or_else(open).or_else(empty).unwrap_or(span).trim()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_answer_and_its_box_win() {
        let text =
            "\\boxed{1}<answer>2</answer> x <answer>\n\\boxed{\\frac{1}{2}}\n</answer><|eot_id|>\\boxed{9}";
        assert_eq!(answer_span(text), "\\frac{1}{2}");
        assert_eq!(answer_span("so <answer> 7"), "7");
        assert_eq!(answer_span("<answer>a</answer> b</answer>"), "a");
        assert_eq!(answer_span("\\boxed{3} then \\boxed{4"), "3");
        assert_eq!(answer_span("\\fbox{3} then \\boxed {4}"), "4");
        assert_eq!(answer_span("$\\boxed{3}$, then $\\boxed \\frac{1}{2}$."), "\\frac{1}{2}");
        assert_eq!(answer_span("\\(\\boxed 5\\) <answer>$\\boxed 7$</answer>"), "7");
        assert_eq!(answer_span("$\\boxed 5$ then \\boxed {4} and \\boxed $"), "4");
        assert_eq!(answer_span("\\boxed{3} then \\boxed{} and \\boxed{...}"), "3");
        assert_eq!(answer_span("  12</s>13"), "12");
        assert_eq!(answer_span("<answer>\\boxed{7</answer>"), "7");
        assert_eq!(answer_span("\\boxed{7"), "\\boxed{7");
        assert_eq!(answer_span("so \\boxed{}"), "");
        assert_eq!(answer_span("\\boxed{72}. I used the \\boxed command, as in \\boxed{answer}."), "72");
        assert_eq!(answer_span("\\boxed{28} or $\\boxed{72}$"), "\\boxed{28} or $\\boxed{72}");
    }

    #[test]
    fn of_a_huge_completion_the_end_is_read() {
        let text = format!("{}<answer>7</answer>", "\u{e9}<".repeat(100_000));
        assert_eq!(answer_span(&text), "7");
        assert!(before_end(&text).len() <= MAX_BYTES);
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "(\\PC|<answer>|</answer>|\\\\boxed\\{|\\}|<\\|eot_id\\|>){0,40}") {
            prop_assert!(text.contains(answer_span(&text)));
        }
    }
}
