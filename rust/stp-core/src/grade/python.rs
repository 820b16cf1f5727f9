//! How Python reads text: white space, digits, `float(...)`, `int(...)`. Published graders are Python programs, and
//! where these rules decide an item, reproducing a published number needs them exactly.

/// The first code point of every run of ten decimal digits (category Nd), as `\d`, `int` and `float` know them.
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50,
    0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40,
    0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066,
    0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950,
    0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6,
    0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// Characters that `str.isdigit` accepts beyond category Nd: superscripts, circled digits and the like.
const MARKED: [(u32, u32); 20] = [
    (0xb2, 0xb3),
    (0xb9, 0xb9),
    (0x1369, 0x1371),
    (0x19da, 0x19da),
    (0x2070, 0x2070),
    (0x2074, 0x2079),
    (0x2080, 0x2089),
    (0x2460, 0x2468),
    (0x2474, 0x247c),
    (0x2488, 0x2490),
    (0x24ea, 0x24ea),
    (0x24f5, 0x24fd),
    (0x24ff, 0x24ff),
    (0x2776, 0x277e),
    (0x2780, 0x2788),
    (0x278a, 0x2792),
    (0x10a40, 0x10a43),
    (0x10e60, 0x10e68),
    (0x11052, 0x1105a),
    (0x1f100, 0x1f10a),
];

/// Most digits that `int(...)` reads from a string before it raises.
const MAX_INT_DIGITS: usize = 4300;

/// `str.isspace` of one character, which is also the regular expression `\s`.
#[must_use]
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip()`.
#[must_use]
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// The value of a decimal digit (the regular expression `\d`).
#[must_use]
pub fn digit(c: char) -> Option<u8> {
    if c.is_ascii() {
        return c.is_ascii_digit().then(|| c as u8 - b'0');
    }
    let code = c as u32;
    let at = ZEROS.partition_point(|&zero| zero <= code);
    let offset = code - ZEROS.get(at.checked_sub(1)?)?;
    (offset < 10).then_some(offset as u8)
}

/// Whether the character is a decimal digit.
#[must_use]
pub fn is_decimal(c: char) -> bool {
    digit(c).is_some()
}

/// `str.isdigit()` of a text.
#[must_use]
pub fn all_digits(text: &str) -> bool {
    let marked = |c: char| MARKED.iter().any(|&(low, high)| (low..=high).contains(&(c as u32)));
    !text.is_empty() && text.chars().all(|c| is_decimal(c) || marked(c))
}

/// The text with every decimal digit as ASCII and the underscores between digits gone; `None` for any other
/// underscore.
fn plain(text: &str) -> Option<String> {
    let mut made = String::with_capacity(text.len());
    let mut chars = strip(text).chars().peekable();
    let mut after_digit = false;
    while let Some(c) = chars.next() {
        if c == '_' {
            if !after_digit || !chars.peek().copied().is_some_and(is_decimal) {
                return None;
            }
            after_digit = false;
        } else if let Some(value) = digit(c) {
            made.push(char::from(b'0' + value));
            after_digit = true;
        } else {
            made.push(c);
            after_digit = false;
        }
    }
    Some(made)
}

/// `float(text)`, or `None` where it raises.
#[must_use]
pub fn float(text: &str) -> Option<f64> {
    // both accept the same spellings of decimals, exponents, infinities and NaN
    plain(text)?.parse().ok()
}

/// Whether `int(text)` succeeds.
#[must_use]
pub fn is_int(text: &str) -> bool {
    let Some(made) = plain(text) else { return false };
    let digits = made.strip_prefix(['+', '-']).unwrap_or(&made);
    !digits.is_empty() && digits.len() <= MAX_INT_DIGITS && digits.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_reads_them() {
        for (text, want) in [
            ("18", 18.0),
            (" 18.50\n", 18.5),
            ("1_000", 1000.0),
            ("1e5", 1e5),
            ("1_0e1_0", 1e11),
            ("+.5", 0.5),
            ("5.", 5.0),
            ("-0", 0.0),
            ("\u{663}\u{664}", 34.0),
            ("\u{ff11}\u{ff12}.5", 12.5),
            ("iNfinity", f64::INFINITY),
            ("-inf", f64::NEG_INFINITY),
        ] {
            assert_eq!(float(text), Some(want), "{text}");
        }
        assert!(float("nan").is_some_and(f64::is_nan));
        for text in
            ["", ".", "1,200", "1__0", "_1", "1_", "1_.5", "0x10", "1e", "5%", "$5", "1 000", "\u{b2}"]
        {
            assert_eq!(float(text), None, "{text}");
        }
    }

    #[test]
    fn ints_and_digits() {
        assert!(is_int("-12") && is_int("+1_2") && is_int(" 7 ") && is_int("007"));
        assert!(!is_int("") && !is_int("-") && !is_int("1.0") && !is_int("x"));
        assert!(is_int(&"9".repeat(4300)) && !is_int(&"9".repeat(4301)));
        assert!(all_digits("12") && all_digits("\u{b2}\u{663}"));
        assert!(!all_digits("") && !all_digits("-1") && !all_digits("1.0") && !all_digits("\u{bd}"));
        assert_eq!(digit('\u{1d7ff}'), Some(9));
        assert_eq!(digit('\u{1d7cd}'), None);
        assert_eq!(digit('/'), None);
    }
}
