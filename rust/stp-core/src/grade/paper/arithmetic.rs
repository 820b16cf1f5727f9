//! The value that Python's `eval` gives to a text of digits, `+ - * / ( ) .` and white space, without evaluating it as
//! code. Powers and floor divisions are included, because the published graders let them pass.
//!
//! Integers beyond 128 bits go on as floats. Where Python would raise, turn complex or build a number beyond the
//! floats, the value is `None`: no such value equals a target.

use std::iter::Peekable;
use std::str::CharIndices;

/// Deepest nesting that is read; Python itself refuses more than 200 brackets.
const MAX_DEPTH: usize = 200;

/// A Python number.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Number {
    Int(i128),
    Float(f64),
}

use Number::{Float, Int};

impl Number {
    fn float(self) -> f64 {
        match self {
            Int(i) => i as f64,
            Float(f) => f,
        }
    }

    fn is_zero(self) -> bool {
        self.float() == 0.0
    }

    /// A whole exponent that is not negative.
    fn whole(self) -> Result<u32, ()> {
        match self {
            Int(e) => u32::try_from(e).map_err(|_| ()),
            Float(_) => Err(()),
        }
    }

    fn negative(self) -> Option<Self> {
        Some(match self {
            Int(i) => Int(i.checked_neg()?),
            Float(f) => Float(-f),
        })
    }

    fn combine(self, op: Op, other: Self) -> Option<Self> {
        match (op, self, other) {
            (Op::Add, a, b) => Some(exact(a, b, i128::checked_add, a.float() + b.float())),
            (Op::Sub, a, b) => Some(exact(a, b, i128::checked_sub, a.float() - b.float())),
            (Op::Mul, a, b) => Some(exact(a, b, i128::checked_mul, a.float() * b.float())),
            (_, _, b) if b.is_zero() => None,
            (Op::Div, a, b) => Some(Float(a.float() / b.float())),
            (Op::Floor, Int(a), Int(b)) => {
                let quotient = a.checked_div(b)?;
                Some(Int(quotient - i128::from(a % b != 0 && (a < 0) != (b < 0))))
            }
            (Op::Floor, a, b) => Some(Float(floor_divide(a.float(), b.float()))),
        }
    }

    fn power(self, exponent: Self) -> Option<Self> {
        match (self, exponent) {
            (Int(base @ (0 | 1)), Int(e)) if e >= 0 => Some(Int(if e == 0 { 1 } else { base })),
            (Int(-1), Int(e)) if e >= 0 => Some(Int(if e % 2 == 0 { 1 } else { -1 })),
            (base, e) => {
                if let (Int(b), Ok(whole)) = (base, e.whole())
                    && let Some(value) = b.checked_pow(whole)
                {
                    return Some(Int(value));
                }
                let (base, e) = (base.float(), e.float());
                if (base == 0.0 && e < 0.0) || (base < 0.0 && e.fract() != 0.0) {
                    return None;
                }
                let value = base.powf(e);
                value.is_finite().then_some(Float(value))
            }
        }
    }
}

/// The exact result of two integers where it fits, else the float.
fn exact(a: Number, b: Number, op: impl Fn(i128, i128) -> Option<i128>, float: f64) -> Number {
    match (a, b) {
        (Int(a), Int(b)) => op(a, b).map_or(Float(float), Int),
        _ => Float(float),
    }
}

/// Python's `//` of floats, which rounds the exact quotient down.
fn floor_divide(a: f64, b: f64) -> f64 {
    let remainder = a % b;
    let mut quotient = (a - remainder) / b;
    if remainder != 0.0 && (b < 0.0) != (remainder < 0.0) {
        quotient -= 1.0;
    }
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Floor,
}

#[derive(Clone, Copy, PartialEq)]
enum Token {
    Number(Number),
    Op(Op),
    Power,
    Open,
    Close,
}

struct Lexer<'a> {
    text: &'a str,
    chars: Peekable<CharIndices<'a>>,
    /// Open brackets: inside them a line break is white space.
    open: usize,
}

impl Lexer<'_> {
    fn eat(&mut self, c: char) -> bool {
        self.chars.next_if(|&(_, next)| next == c).is_some()
    }

    /// The next token; `Ok(None)` at the end, `Err` where Python's tokenizer or grammar would refuse.
    fn next(&mut self) -> Result<Option<Token>, ()> {
        loop {
            let Some(&(at, c)) = self.chars.peek() else { return Ok(None) };
            if c.is_ascii_digit() || c == '.' {
                return self.number(at).map(|n| Some(Token::Number(n))).ok_or(());
            }
            self.chars.next();
            return Ok(Some(match c {
                ' ' | '\t' | '\x0c' => continue,
                '\n' | '\r' if self.open > 0 => continue,
                '+' => Token::Op(Op::Add),
                '-' => Token::Op(Op::Sub),
                '*' if self.eat('*') => Token::Power,
                '*' => Token::Op(Op::Mul),
                '/' if self.eat('/') => Token::Op(Op::Floor),
                '/' => Token::Op(Op::Div),
                '(' => {
                    self.open += 1;
                    Token::Open
                }
                ')' => {
                    self.open = self.open.checked_sub(1).ok_or(())?;
                    Token::Close
                }
                _ => return Err(()),
            }));
        }
    }

    fn number(&mut self, start: usize) -> Option<Number> {
        let mut end = start;
        while let Some((i, _)) = self.chars.next_if(|(_, c)| c.is_ascii_digit()) {
            end = i + 1;
        }
        let whole = &self.text[start..end];
        if !self.eat('.') {
            let zeros = whole.bytes().all(|b| b == b'0');
            let leading = whole.starts_with('0') && !zeros; // `007` is no Python number
            return if leading { None } else { whole.parse().ok().map(Int) };
        }
        end += 1;
        while let Some((i, _)) = self.chars.next_if(|(_, c)| c.is_ascii_digit()) {
            end = i + 1;
        }
        self.text[start..end].parse().ok().map(Float)
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Option<Token>,
    depth: usize,
}

impl Parser<'_> {
    fn advance(&mut self) -> Option<()> {
        self.token = self.lexer.next().ok()?;
        Some(())
    }

    fn sum(&mut self) -> Option<Number> {
        let mut value = self.product()?;
        while let Some(Token::Op(op @ (Op::Add | Op::Sub))) = self.token {
            self.advance()?;
            value = value.combine(op, self.product()?)?;
        }
        Some(value)
    }

    fn product(&mut self) -> Option<Number> {
        let mut value = self.signed()?;
        while let Some(Token::Op(op @ (Op::Mul | Op::Div | Op::Floor))) = self.token {
            self.advance()?;
            value = value.combine(op, self.signed()?)?;
        }
        Some(value)
    }

    fn signed(&mut self) -> Option<Number> {
        let mut negative = false;
        while let Some(Token::Op(op @ (Op::Add | Op::Sub))) = self.token {
            negative ^= op == Op::Sub;
            self.advance()?;
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let base = self.atom()?;
        let value = if self.token == Some(Token::Power) {
            self.advance()?;
            base.power(self.signed()?)?
        } else {
            base
        };
        self.depth -= 1;
        if negative { value.negative() } else { Some(value) }
    }

    fn atom(&mut self) -> Option<Number> {
        match self.token? {
            Token::Number(number) => {
                self.advance()?;
                Some(number)
            }
            Token::Open => {
                self.advance()?;
                let value = self.sum()?;
                if self.token != Some(Token::Close) {
                    return None;
                }
                self.advance()?;
                Some(value)
            }
            _ => None,
        }
    }
}

/// The value of `text`; `None` where Python would raise, or the value is not a number of ordinary size.
#[must_use]
pub fn evaluate(text: &str) -> Option<f64> {
    let lexer = Lexer { text, chars: text.char_indices().peekable(), open: 0 };
    let mut parser = Parser { lexer, token: None, depth: 0 };
    parser.advance()?;
    let value = parser.sum()?;
    if parser.token.is_none() { Some(value.float()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_as_python_gives_them() {
        for (text, want) in [
            ("1+2*3", 7.0),
            ("(1+2)*3", 9.0),
            ("-2**2", -4.0),
            ("2**-1", 0.5),
            ("2**3**2", 512.0),
            ("(-2)**3", -8.0),
            ("7//2", 3.0),
            ("-7//2", -4.0),
            ("7//-2", -4.0),
            ("7.5//2", 3.0),
            ("-7.5//2", -4.0),
            ("7/2", 3.5),
            ("2*3.4", 6.8),
            ("86 - 36.", 50.0),
            (".5+1", 1.5),
            ("007.5", 7.5),
            ("00", 0.0),
            ("(5\n+6)", 11.0),
            ("- - +3", 3.0),
            ("0**0", 1.0),
            ("1**99999999999", 1.0),
            ("2**202-2**202+3", 3.0),
            ("0*(2-2)", 0.0),
        ] {
            assert_eq!(evaluate(text), Some(want), "{text}");
        }
        for text in [
            "",
            "()",
            "1+",
            "(1",
            "1)",
            "1 2",
            "2(3)",
            "007",
            "1..2",
            "1.2.3",
            ".",
            "5\n+6",
            "1/0",
            "1//0",
            "1.0/0",
            "0**-1",
            "(-8)**(1/3)",
            "88**77**66",
            "10.0**400",
            "\u{663}",
            "1\x0b+2",
            "x",
            "*2",
            "1***2",
        ] {
            assert_eq!(evaluate(text), None, "{text:?}");
        }
        assert_eq!(evaluate(&format!("{}1{}", "(".repeat(150), ")".repeat(150))), Some(1.0));
        assert_eq!(evaluate(&"(".repeat(100_000)), None);
        assert_eq!(evaluate(&format!("{}1", "-".repeat(100_000))), Some(1.0));
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "[0-9+*/(). \n-]{0,80}") {
            let _ = evaluate(&text);
        }
    }
}
