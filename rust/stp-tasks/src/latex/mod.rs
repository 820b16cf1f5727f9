//! Small LaTeX expressions: cleaned of layout here, evaluated in `value`.

mod value;

pub use value::{evaluate, number};

/// Longest expression that is read, in bytes.
const MAX_BYTES: usize = 2048;

/// What is read as another text. Layout commands vanish; spellings of one thing become one spelling.
const SWAPS: [(&str, &str); 48] = [
    ("\\left", ""),
    ("\\right", ""),
    ("\\bigl", ""),
    ("\\bigr", ""),
    ("\\big", ""),
    ("\\Big", ""),
    ("\\displaystyle", ""),
    ("\\(", ""),
    ("\\)", ""),
    ("\\[", ""),
    ("\\]", ""),
    ("\\,", ""),
    ("\\!", ""),
    ("\\;", " "),
    ("\\:", " "),
    ("\\ ", " "),
    ("\\quad", " "),
    ("~", " "),
    ("\\dfrac", "\\frac"),
    ("\\tfrac", "\\frac"),
    ("\\cfrac", "\\frac"),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\circ", ""),
    ("\\degree", ""),
    ("\u{b0}", ""),
    ("\\$", ""),
    ("$", ""),
    ("\\%", ""),
    ("%", ""),
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\div", "/"),
    ("\u{d7}", "*"),
    ("\u{b7}", "*"),
    ("\u{f7}", "/"),
    ("\u{2212}", "-"),
    ("\u{3c0}", "\\pi "),
    ("{,}", ","),
    ("\\lbrace", "\\{"),
    ("\\rbrace", "\\}"),
    ("\\leq", "\\le"),
    ("\\geq", "\\ge"),
    ("\\le ", "\\le"),
    ("\\ge ", "\\ge"),
    ("\\infty ", "\\infty"),
    ("\\cup ", "\\cup"),
    ("\n", " "),
];

/// Commands whose content is plain text.
const TEXT: [&str; 7] =
    ["\\text{", "\\textbf{", "\\textit{", "\\mathrm{", "\\mathbf{", "\\mbox{", "\\operatorname{"];

/// The expression without layout: one spelling of fractions and operators, no currency, percent or degree signs, no
/// thousands separators, no unit in `\text{...}` at the end, no full stop.
#[must_use]
pub fn clean(text: &str) -> String {
    let mut s = head(text.trim()).to_string();
    for (from, to) in SWAPS {
        if s.contains(from) {
            s = s.replace(from, to);
        }
    }
    for command in TEXT {
        if s.contains(command) {
            s = without_command(&s, command);
        }
    }
    let s = s.trim().trim_end_matches('.').trim();
    brace_arguments(&join_thousands(s))
}

/// At most [`MAX_BYTES`] of the text, cut at a character.
fn head(text: &str) -> &str {
    let mut end = text.len().min(MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Replaces `command...}` by its content, or by nothing where it ends the text after something else: a unit.
fn without_command(text: &str, command: &str) -> String {
    let (mut made, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(command) {
        made.push_str(&rest[..at]);
        let inner = &rest[at + command.len()..];
        let end = inner.find('}').unwrap_or(inner.len());
        let after = inner.get(end + 1..).unwrap_or("");
        let unit = after.trim_matches(|c: char| c.is_whitespace() || "^{}.23".contains(c)).is_empty();
        if unit && !made.trim().is_empty() {
            return made;
        }
        made.push_str(inner[..end].trim());
        rest = after;
    }
    made.push_str(rest);
    made
}

/// `1,234,567` becomes `1234567` where it is outside brackets and groups of three follow.
fn join_thousands(text: &str) -> String {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let (mut made, mut depth, mut lead) = (String::with_capacity(text.len()), 0_i32, 0_usize);
    for (i, c) in text.char_indices() {
        depth += match c {
            '(' | '[' => 1,
            ')' | ']' => -1,
            _ => 0,
        };
        let three = digit(i + 1) && digit(i + 2) && digit(i + 3) && !digit(i + 4);
        if c == ',' && depth == 0 && (1..=3).contains(&lead) && three {
            continue; // the digits after it are a group of three, so `lead` may run on to the next comma
        }
        lead = match c {
            '0'..='9' if i > 0 && bytes[i - 1] == b',' => 1,
            '0'..='9' => lead + 1,
            '.' => 9, // no separators after the decimal point
            _ => 0,
        };
        made.push(c);
    }
    made
}

/// `\frac12`, `\frac{1}2` and `\sqrt3` get the braces that they stand for.
fn brace_arguments(text: &str) -> String {
    let mut made = String::with_capacity(text.len() + 8);
    let (mut depth, mut waiting): (usize, Vec<usize>) = (0, Vec::new()); // depths at which a second argument is due
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("\\frac") {
            made.push_str("\\frac");
            rest = after.trim_start();
            if rest.starts_with('{') {
                waiting.push(depth);
            } else {
                rest = brace_one(rest, &mut made);
                rest = brace_one(rest, &mut made);
            }
            continue;
        }
        if let Some(after) = rest.strip_prefix("\\sqrt") {
            made.push_str("\\sqrt");
            rest = after.trim_start();
            if !rest.starts_with('[') {
                rest = brace_one(rest, &mut made);
            }
            continue;
        }
        made.push(c);
        rest = &rest[c.len_utf8()..];
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if waiting.last() == Some(&depth) {
                    waiting.pop();
                    rest = brace_one(rest.trim_start(), &mut made);
                }
            }
            _ => {}
        }
    }
    made
}

/// Puts braces around the next character unless it is a brace or starts a command.
fn brace_one<'a>(rest: &'a str, made: &mut String) -> &'a str {
    match rest.chars().next() {
        Some(c) if !"{}\\".contains(c) => {
            made.extend(['{', c, '}']);
            &rest[c.len_utf8()..]
        }
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cleaning() {
        for (text, want) in [
            ("$\\dfrac12$", "\\frac{1}{2}"),
            ("\\frac1{72}", "\\frac{1}{72}"),
            ("\\frac{72}1", "\\frac{72}{1}"),
            ("\\frac{\\sqrt3}2", "\\frac{\\sqrt{3}}{2}"),
            ("\\frac{\\frac12}3", "\\frac{\\frac{1}{2}}{3}"),
            ("\\left(1,234\\right)", "(1,234)"),
            ("1,234,567.89", "1234567.89"),
            ("1{,}200", "1200"),
            ("1,23", "1,23"),
            ("1,2345", "1,2345"),
            ("12,345,67", "12345,67"),
            ("5\\text{ cm}^2", "5"),
            ("\\text{Evelyn}", "Evelyn"),
            ("50\\%", "50"),
            ("\\$18.50.", "18.50"),
            ("90^\\circ", "90"),
        ] {
            assert_eq!(clean(text), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "(\\PC|\\\\frac|\\\\sqrt|\\\\text\\{|[{}()^,0-9]){0,60}") {
            let _ = number(&clean(&text));
        }
    }
}
