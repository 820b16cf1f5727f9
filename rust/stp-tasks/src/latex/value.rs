//! The value of a cleaned LaTeX expression at given values of its letters.

/// Deepest nesting of groups.
const MAX_DEPTH: usize = 48;

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
    use crate::latex::clean;
    use proptest::prelude::*;

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
        fn deep_nesting_is_refused_not_followed(n in 1usize..2000) {
            let _ = number(&clean(&"(".repeat(n)));
            let _ = number(&clean(&"\\sqrt{".repeat(n)));
            let _ = number(&clean(&"2^".repeat(n)));
            prop_assert_eq!(number(&format!("{}1", "-".repeat(n))).map(f64::abs), Some(1.0));
        }
    }
}
