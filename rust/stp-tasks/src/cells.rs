//! Reading a grid of digits out of free text.

use crate::extract::answer_span;

/// Most cells of a supported grid (9x9).
pub const MAX_CELLS: usize = 81;

/// A grid as read: 0 for a blank or a character that is no digit.
pub type Cells = [u8; MAX_CELLS];

/// The cells of the frame `[` + exactly `n` characters + `]` at the start of a completion of our own format.
fn framed(text: &str, n: usize) -> Option<Cells> {
    let mut chars = text.strip_prefix('[')?.chars();
    let mut cells = [0; MAX_CELLS];
    for cell in cells.iter_mut().take(n) {
        let c = chars.next()?;
        *cell = c.to_digit(10).unwrap_or(0) as u8;
    }
    (chars.next()? == ']').then_some(cells)
}

/// Characters that may stand between the cells of one grid.
fn separates(c: char) -> bool {
    c.is_whitespace()
        || matches!(c, ',' | ';' | '|' | '-' | '+' | '=' | '[' | ']' | '(' | ')' | '{' | '}' | '&' | '\\')
        || matches!(c, '*' | '`' | '$' | '\u{2500}'..='\u{257f}')
}

/// Whether a character beside a digit makes another thing of the digits: a name, a power, a share.
fn joins(c: char) -> bool {
    c.is_ascii_alphabetic() || c.is_numeric() || c == '%'
}

/// The last run of exactly `n` cells (digits, `_` for a blank) with nothing but separators between them. Digits that
/// touch a letter, a superscript or a decimal point are no cells: `1234341221434321.5` is a number.
fn run(text: &str, n: usize) -> Option<Cells> {
    let (mut best, mut cells, mut count) = (None, [0; MAX_CELLS], 0_usize);
    let (mut before, mut joined) = (' ', false);
    let mut chars = text.chars().chain(std::iter::once('\0')).peekable();
    while let Some(c) = chars.next() {
        if let Some(digit) = c.to_digit(10).or((c == '_').then_some(0)) {
            if count == 0 {
                joined = before == '.' || joins(before);
            }
            if let Some(cell) = cells.get_mut(count) {
                *cell = digit as u8;
            }
            count = count.saturating_add(1);
        } else if !separates(c) {
            let digits_follow = c == '.' && chars.peek().is_some_and(char::is_ascii_digit);
            let touches = digits_follow || joins(c) && !separates(before);
            if count == n && !joined && !touches {
                best = Some(cells);
            }
            count = 0;
        }
        before = c;
    }
    best
}

/// The `n` cells that a completion gives as its answer; `None` if it gives no grid of that size.
///
/// A completion in our own format `[...]` is read by position. Otherwise the answer (see
/// [`answer_span`]) must contain a run of exactly `n` digits, laid out in any usual way; prose digits, short and long
/// runs are no grid.
#[must_use]
pub fn read(completion: &str, n: usize) -> Option<Cells> {
    framed(completion, n).or_else(|| run(answer_span(completion), n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(completion: &str) -> Option<String> {
        read(completion, 16).map(|c| c[..16].iter().map(|d| char::from(b'0' + d)).collect())
    }

    #[test]
    fn layouts_of_a_grid() {
        let want = Some("1234341221434321".to_string());
        for completion in [
            "[1234341221434321]",
            "[1234341221434321]]]",
            "<answer>\n1234\n3412\n2143\n4321\n</answer>",
            "<answer>1 2 3 4 | 3 4 1 2 | 2 1 4 3 | 4 3 2 1</answer><|eot_id|>",
            "Row 1 is done. <answer>```\n[[1,2,3,4],[3,4,1,2],[2,1,4,3],[4,3,2,1]]\n```</answer>",
            "First 1234123412341234, no: 1234341221434321.",
            "1234-3412-2143-4321",
            "1-2-3-4-3-4-1-2-2-1-4-3-4-3-2-1",
            "1234 3412 2143 4321 is it",
            "\u{7b54}\u{6848}1234341221434321\u{3002}",
        ] {
            assert_eq!(text(completion), want, "{completion}");
        }
    }

    #[test]
    fn what_is_no_grid() {
        for completion in [
            "",
            "[123434122143432]",
            "[12343412214343211",
            "<answer>12343412214343211</answer>",
            "<answer>1 row of 4: 234341221434321</answer>",
            "1234341221434321<answer></answer>",
            "1234341221434321.5",
            "1234341221434321 .5",
            "<answer>1234341221434321.5</answer>",
            "0.1234341221434321",
            ".1234341221434321",
            "1234341221434321e5",
            "1234341221434321\u{b2}",
            "1234341221434321%",
            "x1234341221434321",
        ] {
            assert_eq!(text(completion), None, "{completion}");
        }
        assert_eq!(text("[12x4341221434321]").as_deref(), Some("1204341221434321"));
    }

    proptest! {
        #[test]
        fn total_on_any_text(t in "[\\[\\]0-9 ,|x\u{2502}_]{0,120}", n in 0usize..=81) {
            let _ = read(&t, n);
        }
    }
}
