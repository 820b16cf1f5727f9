//! Small LaTeX expressions: cleaned of layout, and evaluated at given values of their letters.

/// Longest expression that is read, in bytes.
const MAX_BYTES: usize = 2048;
/// Deepest nesting of groups.
const MAX_DEPTH: usize = 48;

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

#[derive(Debug, Clone, Copy, PartialEq)]
enum Token {
    Number { value: f64, whole: bool },
    Letter(char),
    Pi,
    Sign(char),
    Open(char),
    Close(char),
    Frac,
    Sqrt,
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let (mut made, mut rest) = (Vec::new(), text);
    while let Some(c) = rest.chars().next() {
        let mut used = c.len_utf8();
        let token = match c {
            ' ' => None,
            '0'..='9' | '.' => {
                used = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
                let value = rest[..used].parse().ok()?;
                Some(Token::Number { value, whole: !rest[..used].contains('.') })
            }
            '+' | '-' | '*' | '/' | '^' => Some(Token::Sign(c)),
            '(' | '[' | '{' => Some(Token::Open(c)),
            ')' | ']' | '}' => Some(Token::Close(c)),
            '\\' => {
                let known = [("\\frac", Token::Frac), ("\\sqrt", Token::Sqrt), ("\\pi", Token::Pi)];
                let (name, token) = known.into_iter().find(|(name, _)| rest.starts_with(name))?;
                used = name.len();
                Some(token)
            }
            c if c.is_ascii_alphabetic() => Some(Token::Letter(c)),
            _ => return None,
        };
        made.extend(token);
        rest = &rest[used..];
    }
    Some(made)
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    letters: &'a dyn Fn(char) -> f64,
}

impl Parser<'_> {
    fn peek(&self) -> Option<Token> {
        self.tokens.get(self.at).copied()
    }

    fn eat(&mut self, token: Token) -> Option<()> {
        (self.peek()? == token).then(|| self.at += 1)
    }

    fn sum(&mut self) -> Option<f64> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut value = self.product()?;
        while let Some(Token::Sign(sign @ ('+' | '-'))) = self.peek() {
            self.at += 1;
            let next = self.product()?;
            value += if sign == '+' { next } else { -next };
        }
        self.depth -= 1;
        Some(value)
    }

    fn product(&mut self) -> Option<f64> {
        let mut value = self.signed()?;
        loop {
            match self.peek() {
                Some(Token::Sign(sign @ ('*' | '/'))) => {
                    self.at += 1;
                    let next = self.signed()?;
                    value = if sign == '*' { value * next } else { value / next };
                }
                Some(Token::Letter(_) | Token::Pi | Token::Open('(' | '{') | Token::Frac | Token::Sqrt) => {
                    value *= self.power()?;
                }
                _ => return Some(value),
            }
        }
    }

    fn signed(&mut self) -> Option<f64> {
        let mut negative = false;
        while let Some(Token::Sign(sign @ ('+' | '-'))) = self.peek() {
            negative ^= sign == '-';
            self.at += 1;
        }
        let value = self.power()?;
        Some(if negative { -value } else { value })
    }

    fn power(&mut self) -> Option<f64> {
        let base = self.atom()?;
        if self.eat(Token::Sign('^')).is_none() {
            return Some(base);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let exponent = self.signed()?;
        self.depth -= 1;
        Some(base.powf(exponent))
    }

    fn atom(&mut self) -> Option<f64> {
        let token = self.peek()?;
        self.at += 1;
        match token {
            Token::Number { value, whole } => Some(value + self.mixed(whole).unwrap_or(0.0)),
            Token::Letter(letter) => Some((self.letters)(letter)),
            Token::Pi => Some(std::f64::consts::PI),
            Token::Frac => {
                let top = self.group()?;
                Some(top / self.group()?)
            }
            Token::Sqrt => {
                let degree = if self.peek() == Some(Token::Open('[')) { self.bracketed('[')? } else { 2.0 };
                Some(self.group()?.powf(1.0 / degree))
            }
            Token::Open(open) => {
                self.at -= 1;
                self.bracketed(open)
            }
            Token::Sign(_) | Token::Close(_) => None,
        }
    }

    /// The fraction of a mixed number, `3\frac{1}{2}` or `3 1/2`, after its whole part.
    fn mixed(&mut self, whole: bool) -> Option<f64> {
        let number = |token: &Token| match token {
            Token::Number { value, whole: true } => Some(*value),
            _ => None,
        };
        let (top, bottom, used) = match self.tokens.get(self.at..)? {
            [
                Token::Frac,
                Token::Open('{'),
                a,
                Token::Close('}'),
                Token::Open('{'),
                b,
                Token::Close('}'),
                ..,
            ] => (number(a)?, number(b)?, 7),
            [a, Token::Sign('/'), b, ..] => (number(a)?, number(b)?, 3),
            _ => return None,
        };
        if !whole || top >= bottom {
            return None;
        }
        self.at += used;
        Some(top / bottom)
    }

    fn group(&mut self) -> Option<f64> {
        match self.peek()? {
            Token::Open('{') => self.bracketed('{'),
            Token::Pi => self.atom(),
            _ => None,
        }
    }

    fn bracketed(&mut self, open: char) -> Option<f64> {
        self.eat(Token::Open(open))?;
        let value = self.sum()?;
        let close = match open {
            '(' => ')',
            '[' => ']',
            _ => '}',
        };
        self.eat(Token::Close(close))?;
        Some(value)
    }
}

/// The value of a cleaned expression; `None` where it is no expression, or has no finite value there.
#[must_use]
pub fn evaluate(cleaned: &str, letters: &dyn Fn(char) -> f64) -> Option<f64> {
    let tokens = tokens(cleaned)?;
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0, letters };
    let value = parser.sum()?;
    (parser.at == tokens.len() && value.is_finite()).then_some(value)
}

/// The value of a cleaned expression without letters.
#[must_use]
pub fn number(cleaned: &str) -> Option<f64> {
    let value = evaluate(cleaned, &|_| f64::NAN)?;
    Some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp, reason = "the values are exact")]
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

    #[test]
    fn values() {
        for (text, want) in [
            ("1,200", 1200.0),
            ("\\frac{3}{4}", 0.75),
            ("-\\frac12", -0.5),
            ("3\\frac{1}{2}", 3.5),
            ("3 1/2", 3.5),
            ("2\\sqrt{9}", 6.0),
            ("\\sqrt[3]{8}", 2.0),
            ("2(3+4)", 14.0),
            ("2^{10}", 1024.0),
            ("2^3^0", 2.0),
            ("-2^2", -4.0),
            ("3 \\times 6", 18.0),
            ("\\frac{1}{2}\\cdot 4", 2.0),
            (".5", 0.5),
        ] {
            assert_eq!(number(&clean(text)), Some(want), "{text}");
        }
        for text in
            ["", "x", "1,2", "(1", "1)", "2 3", "1/0", "\\frac{1}", "1.2.3", "\\sin 1", "\\sqrt{-1}", "(1]"]
        {
            assert_eq!(number(&clean(text)), None, "{text}");
        }
        assert_eq!(number(&clean("\\pi")), Some(std::f64::consts::PI));
        assert_eq!(evaluate("2x+y", &|c| if c == 'x' { 3.0 } else { 1.0 }), Some(7.0));
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "(\\PC|\\\\frac|\\\\sqrt|\\\\text\\{|[{}()^,0-9]){0,60}") {
            let _ = number(&clean(&text));
        }

        #[test]
        fn deep_nesting_is_refused_not_followed(n in 1usize..2000) {
            let _ = number(&clean(&"(".repeat(n)));
            let _ = number(&clean(&"\\sqrt{".repeat(n)));
            let _ = number(&clean(&"2^".repeat(n)));
            prop_assert_eq!(number(&format!("{}1", "-".repeat(n))).map(f64::abs), Some(1.0));
        }
    }
}
