//! Format rewards: tags in order, each once, well formed.

use crate::extract::before_end;

/// How well a completion keeps to a layout of tags.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layout {
    /// Share of the opening and closing tags that occur exactly once and in their order.
    pub share: f32,
    /// Every tag in order, and nothing but white space outside them.
    pub strict: bool,
}

/// Checks the layout `<a>...</a> <b>...</b>` for the tag names in order. With `prefilled`, the first opening tag was
/// part of the prompt, so the completion must not repeat it.
#[must_use]
pub fn layout(completion: &str, tags: &[&str], prefilled: bool) -> Layout {
    let text = before_end(completion);
    let marks = tags.iter().flat_map(|tag| [format!("<{tag}>"), format!("</{tag}>")]);
    let marks: Vec<String> = marks.skip(usize::from(prefilled)).collect();
    let (mut kept, mut from) = (0_usize, 0);
    let mut outside = prefilled; // whether the text before the first mark may hold anything
    let mut strict = true;
    for (i, mark) in marks.iter().enumerate() {
        let once = text.matches(mark.as_str()).take(2).count() == 1;
        let Some(at) = text.find(mark.as_str()).filter(|&at| once && at >= from) else {
            strict = false;
            continue;
        };
        let opening = (i + usize::from(prefilled)).is_multiple_of(2);
        strict &= !opening || outside || text[from..at].trim().is_empty();
        outside = false;
        kept += 1;
        from = at + mark.len();
    }
    strict &= text[from..].trim().is_empty() && !repeats(text, tags, prefilled);
    let share = if marks.is_empty() { 1.0 } else { kept as f32 / marks.len() as f32 };
    Layout { share, strict }
}

/// Whether a completion opens a tag that its prompt has already opened.
fn repeats(text: &str, tags: &[&str], prefilled: bool) -> bool {
    prefilled && tags.first().is_some_and(|tag| text.contains(&format!("<{tag}>")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "shares of four are exact")]
    use super::*;
    use proptest::prelude::*;

    const TAGS: [&str; 2] = ["reasoning", "answer"];

    #[test]
    fn layouts() {
        for (text, share, strict) in [
            ("<reasoning>\na\n</reasoning>\n<answer>\n1\n</answer>\n<|eot_id|>x", 1.0, true),
            ("<reasoning>a</reasoning> so <answer>1</answer>", 1.0, false),
            ("<reasoning>a</reasoning><answer>1</answer>!", 1.0, false),
            ("hm <reasoning>a</reasoning><answer>1</answer>", 1.0, false),
            ("<reasoning>a</reasoning><answer>1", 0.75, false),
            ("<answer>1</answer><reasoning>a</reasoning>", 0.5, false),
            ("<reasoning>a</reasoning><answer>1</answer><answer>2</answer>", 0.5, false),
            ("a", 0.0, false),
        ] {
            assert_eq!(layout(text, &TAGS, false), Layout { share, strict }, "{text}");
        }
        let got = layout("a\n</reasoning>\n<answer>1</answer>", &TAGS, true);
        assert_eq!(got, Layout { share: 1.0, strict: true });
        assert!(!layout("<reasoning>a</reasoning><answer>1</answer>", &TAGS, true).strict);
        assert_eq!(layout("", &[], false), Layout { share: 1.0, strict: true });
    }

    proptest! {
        #[test]
        fn total_and_in_range(text in "(\\PC|</?reasoning>|</?answer>){0,20}", prefilled: bool) {
            let got = layout(&text, &TAGS, prefilled);
            prop_assert!((0.0..=1.0).contains(&got.share));
            prop_assert!(!got.strict || got.share == 1.0);
        }
    }
}
