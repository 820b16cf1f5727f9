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

/// The content of the last `\boxed{...}`, `\fbox{...}` or `\boxed 5` that is closed and holds more than dots.
#[must_use]
pub fn last_boxed(text: &str) -> Option<&str> {
    let last = |tag: &str| {
        // unbalanced and empty boxes are passed over, but not without end
        text.rmatch_indices(tag).take(8).find_map(|(at, _)| {
            let start = at + tag.len();
            let inner = &text[start..start + balanced(&text[start..])?];
            holds_something(inner).then_some((start, inner))
        })
    };
    let found = ["\\boxed{", "\\fbox{", "\\boxed {"].into_iter().filter_map(last);
    found.chain(last_unbraced(text)).max_by_key(|&(start, _)| start).map(|(_, inner)| inner)
}

fn holds_something(inner: &str) -> bool {
    inner.contains(|c: char| c != '.' && !c.is_whitespace())
}

/// The last `\boxed 5`, to the end of its formula or line, and where it starts.
fn last_unbraced(text: &str) -> Option<(usize, &str)> {
    const TAG: &str = "\\boxed ";
    text.rmatch_indices(TAG).take(8).find_map(|(at, _)| {
        let start = at + TAG.len();
        let rest = &text[start..];
        let end = ["$", "\\)", "\\]", "\n", "<"].iter().filter_map(|stop| rest.find(stop)).min();
        let inner = &rest[..end.unwrap_or(rest.len())];
        (!inner.trim_start().starts_with('{') && holds_something(inner)).then_some((start, inner))
    })
}

/// Length of the text before the brace that closes an already open one.
fn balanced(text: &str) -> Option<usize> {
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
    last_boxed(span).or_else(open).unwrap_or(span).trim()
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
        assert_eq!(answer_span("$\\boxed{3}$, or $\\boxed \\frac{1}{2}$."), "\\frac{1}{2}");
        assert_eq!(answer_span("\\(\\boxed 5\\) <answer>$\\boxed 7$</answer>"), "7");
        assert_eq!(answer_span("$\\boxed 5$ then \\boxed {4} and \\boxed $"), "4");
        assert_eq!(answer_span("\\boxed{3} then \\boxed{} and \\boxed{...}"), "3");
        assert_eq!(answer_span("  12</s>13"), "12");
        assert_eq!(answer_span("<answer>\\boxed{7</answer>"), "7");
        assert_eq!(answer_span("\\boxed{7"), "\\boxed{7");
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
