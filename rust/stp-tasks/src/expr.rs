//! The Countdown expression language: digits, `+ - * /`, brackets, the Unicode and LaTeX spellings of the operators,
//! and an optional `= value`. No powers, no names, no decimals, no implicit products. Evaluated exactly while it is
//! read, on fixed stacks: time is linear, memory constant.

use crate::ratio::Ratio;

/// Most numbers an expression may have.
pub const MAX_NUMBERS: usize = 32;
/// Most operators and open brackets waiting at once.
const MAX_DEPTH: usize = 64;
/// Longest expression in bytes; a longer one is no answer to any problem.
const MAX_BYTES: usize = 2048;

/// Why a text is not an expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// There is nothing to read.
    Empty,
    /// A character that is not part of the language.
    Character,
    /// Operators, numbers and brackets do not fit together.
    Syntax,
    /// Too long, too deep or too many numbers.
    TooLarge,
    /// A division by zero, or a value beyond 128 bits.
    Undefined,
}

/// A well-formed expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed {
    /// Its value.
    pub value: Ratio,
    /// The value after the equals sign, if there is one.
    pub stated: Option<Ratio>,
    numbers: [i64; MAX_NUMBERS],
    count: usize,
}

impl Parsed {
    /// The numbers, in order of appearance.
    #[must_use]
    pub fn numbers(&self) -> &[i64] {
        &self.numbers[..self.count]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Neg,
    Open(char),
}

impl Op {
    fn power(self) -> u8 {
        match self {
            Op::Add | Op::Sub => 1,
            Op::Mul | Op::Div => 2,
            Op::Neg => 3,
            Op::Open(_) => 0,
        }
    }
}

enum Token {
    Number(i64),
    Op(Op),
    Close(char),
    Equals,
    End,
}

struct Lexer<'a> {
    rest: &'a str,
}

/// Spellings that are read as another text.
const WORDS: [(&str, &str); 13] = [
    ("\\times", "*"),
    ("\\cdot", "*"),
    ("\\ast", "*"),
    ("\\div", "/"),
    ("\\left", ""),
    ("\\right", ""),
    ("\\(", ""),
    ("\\)", ""),
    ("\\[", ""),
    ("\\]", ""),
    ("\\,", ""),
    ("\\;", ""),
    ("\\ ", ""),
];

impl Lexer<'_> {
    fn next(&mut self) -> Result<Token, Fault> {
        loop {
            let Some(c) = self.rest.chars().next() else { return Ok(Token::End) };
            if c.is_ascii_digit() {
                return self.number();
            }
            if c == '\\' {
                match self.word() {
                    Some("*") => return Ok(Token::Op(Op::Mul)),
                    Some("/") => return Ok(Token::Op(Op::Div)),
                    Some(_) => continue,
                    None => return Err(Fault::Character),
                }
            }
            self.rest = &self.rest[c.len_utf8()..];
            return Ok(match c {
                '+' | '\u{ff0b}' => Token::Op(Op::Add),
                '-' | '\u{2212}' | '\u{2010}'..='\u{2015}' | '\u{ff0d}' => Token::Op(Op::Sub),
                '*' | '\u{d7}' | '\u{b7}' | '\u{22c5}' | '\u{2217}' | '\u{2219}' | '\u{ff0a}' => {
                    Token::Op(Op::Mul)
                }
                '/' | '\u{f7}' | '\u{2215}' | '\u{2044}' | '\u{ff0f}' => Token::Op(Op::Div),
                '(' | '\u{ff08}' => Token::Op(Op::Open(')')),
                '[' => Token::Op(Op::Open(']')),
                '{' => Token::Op(Op::Open('}')),
                ')' | ']' | '}' => Token::Close(c),
                '\u{ff09}' => Token::Close(')'),
                '=' | '\u{ff1d}' => Token::Equals,
                c if c.is_whitespace() => continue,
                _ => return Err(Fault::Character),
            });
        }
    }

    fn number(&mut self) -> Result<Token, Fault> {
        let len = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at(len);
        self.rest = rest;
        digits.parse().map(Token::Number).map_err(|_| Fault::TooLarge)
    }

    fn word(&mut self) -> Option<&'static str> {
        let (from, to) = WORDS.iter().find(|(from, _)| self.rest.starts_with(from))?;
        self.rest = &self.rest[from.len()..];
        Some(to)
    }
}

struct Machine {
    values: [Ratio; MAX_NUMBERS],
    depth: usize,
    ops: [Op; MAX_DEPTH],
    pending: usize,
    numbers: [i64; MAX_NUMBERS],
    count: usize,
}

impl Machine {
    fn new() -> Self {
        Self {
            values: [Ratio::int(0); MAX_NUMBERS],
            depth: 0,
            ops: [Op::Add; MAX_DEPTH],
            pending: 0,
            numbers: [0; MAX_NUMBERS],
            count: 0,
        }
    }

    fn number(&mut self, value: i64) -> Result<(), Fault> {
        if self.count == MAX_NUMBERS {
            return Err(Fault::TooLarge);
        }
        self.numbers[self.count] = value;
        self.count += 1;
        self.values[self.depth] = Ratio::int(value);
        self.depth += 1; // at most one value per number, so it fits
        Ok(())
    }

    fn push(&mut self, op: Op) -> Result<(), Fault> {
        if self.pending == MAX_DEPTH {
            return Err(Fault::TooLarge);
        }
        self.ops[self.pending] = op;
        self.pending += 1;
        Ok(())
    }

    fn top(&self) -> Option<Op> {
        self.pending.checked_sub(1).map(|i| self.ops[i])
    }

    fn pop_value(&mut self) -> Result<Ratio, Fault> {
        self.depth = self.depth.checked_sub(1).ok_or(Fault::Syntax)?;
        Ok(self.values[self.depth])
    }

    fn apply(&mut self) -> Result<(), Fault> {
        let op = self.top().ok_or(Fault::Syntax)?;
        self.pending -= 1;
        let b = self.pop_value()?;
        let made = if op == Op::Neg {
            b.checked_neg()
        } else {
            let a = self.pop_value()?;
            match op {
                Op::Add => a.checked_add(b),
                Op::Sub => a.checked_sub(b),
                Op::Mul => a.checked_mul(b),
                Op::Div => a.checked_div(b),
                Op::Neg | Op::Open(_) => return Err(Fault::Syntax),
            }
        };
        self.values[self.depth] = made.ok_or(Fault::Undefined)?;
        self.depth += 1;
        Ok(())
    }

    fn binary(&mut self, op: Op) -> Result<(), Fault> {
        while self.top().is_some_and(|t| t.power() >= op.power()) {
            self.apply()?;
        }
        self.push(op)
    }

    fn close(&mut self, bracket: char) -> Result<(), Fault> {
        while let Some(top) = self.top() {
            if let Op::Open(need) = top {
                self.pending -= 1;
                return if need == bracket { Ok(()) } else { Err(Fault::Syntax) };
            }
            self.apply()?;
        }
        Err(Fault::Syntax)
    }

    fn finish(mut self) -> Result<(Ratio, Self), Fault> {
        while self.pending > 0 {
            self.apply()?;
        }
        let value = self.pop_value()?;
        if self.depth == 0 { Ok((value, self)) } else { Err(Fault::Syntax) }
    }
}

/// Strips what people put around an expression: white space, `$`, back-ticks, a full stop at the end.
fn unwrap(text: &str) -> &str {
    let around = |c: char| c.is_whitespace() || c == '$' || c == '`';
    let text = text.trim_matches(around);
    text.strip_suffix('.').map_or(text, |rest| rest.trim_end_matches(around))
}

/// Reads an expression, and the value stated after an equals sign.
pub fn parse(text: &str) -> Result<Parsed, Fault> {
    let text = unwrap(text);
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    if text.len() > MAX_BYTES {
        return Err(Fault::TooLarge);
    }
    let mut lexer = Lexer { rest: text };
    let mut machine = Machine::new();
    let mut operand = true; // an operand comes next
    let stated = loop {
        match (lexer.next()?, operand) {
            (Token::Number(n), true) => {
                machine.number(n)?;
                operand = false;
            }
            (Token::Op(Op::Add), true) => {}
            (Token::Op(Op::Sub), true) => machine.push(Op::Neg)?,
            (Token::Op(op @ Op::Open(_)), true) => machine.push(op)?,
            (Token::Op(Op::Open(_)), false) => return Err(Fault::Syntax),
            (Token::Op(op), false) => {
                machine.binary(op)?;
                operand = true;
            }
            (Token::Close(c), false) => machine.close(c)?,
            (Token::Equals, false) => break Some(stated(lexer.rest)?),
            (Token::End, false) => break None,
            _ => return Err(Fault::Syntax),
        }
    };
    let (value, machine) = machine.finish()?;
    Ok(Parsed { value, stated, numbers: machine.numbers, count: machine.count })
}

/// The number after the equals sign: sign, digits, decimals, or a fraction of two whole numbers.
fn stated(text: &str) -> Result<Ratio, Fault> {
    let text = unwrap(text);
    let (negative, body) = match text.chars().next() {
        Some(c @ ('-' | '\u{2212}')) => (true, text[c.len_utf8()..].trim_start()),
        Some('+') => (false, text[1..].trim_start()),
        _ => (false, text),
    };
    let value = match body.split_once('/') {
        Some((a, b)) => {
            Ratio::decimal(a.trim()).zip(Ratio::decimal(b.trim())).and_then(|(a, b)| a.checked_div(b))
        }
        None => Ratio::decimal(body),
    };
    let value = value.and_then(|v| if negative { v.checked_neg() } else { Some(v) });
    value.ok_or(Fault::Syntax)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use proptest::prelude::*;

    fn value(text: &str) -> Result<f64, Fault> {
        parse(text).map(|p| p.value.to_f64())
    }

    #[test]
    fn precedence_association_and_brackets() {
        for (text, want) in [
            ("2+3*4", 14.0),
            ("(2+3)*4", 20.0),
            ("20-5-3", 12.0),
            ("24/4/2", 3.0),
            ("-3+10", 7.0),
            ("--3", 3.0),
            ("2*-3", -6.0),
            ("-(2+3)*4", -20.0),
            ("{[ (1) ]}", 1.0),
            ("7/2", 3.5),
            ("6 \u{d7} 2 \u{2212} 4 \u{f7} 2", 10.0),
            ("\\left(6 \\times 2\\right) \\div 3 \\cdot 1", 4.0),
            ("$3+4$.", 7.0),
        ] {
            assert_eq!(value(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn powers_names_decimals_and_bad_brackets_are_refused() {
        for text in
            ["88**77**66", "2^3", "2//3", "abs(3)", "2*3.4", "2(3)", "(2)(3)", "3 4", "(2]", "(2", "2)"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["", "  ", "$$", "+", "()", "2+", "*2", "=5", "2=", "2==2", "2=3=4"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(value("1/(2-2)"), Err(Fault::Undefined));
        assert_eq!(value("99999999999999999999"), Err(Fault::TooLarge));
        assert_eq!(value(&"(".repeat(3000)), Err(Fault::TooLarge));
        assert_eq!(value(&"(".repeat(1000)), Err(Fault::TooLarge));
        assert_eq!(value(&"1+".repeat(1000)), Err(Fault::TooLarge));
        let big = ["9223372036854775807"; 4].join("*");
        assert_eq!(value(&big), Err(Fault::Undefined));
    }

    #[test]
    fn numbers_and_stated_values_are_kept() {
        let parsed = parse("(12 - 3) * 4 = 36.0").unwrap();
        assert_eq!(parsed.numbers(), [12, 3, 4]);
        assert_eq!(parsed.stated, Some(Ratio::int(36)));
        assert_eq!(parse("7/2 = 7/2").unwrap().stated, Ratio::new(7, 2));
        assert_eq!(parse("2-5 = \u{2212}3").unwrap().stated, Some(Ratio::int(-3)));
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "\\PC{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn total_on_expression_like_text(text in "[0-9+*/()\\[\\]={} .\u{2212}\u{d7}-]{0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn sums_agree_with_i64(terms in prop::collection::vec(-999i64..999, 1..30)) {
            let text = terms.iter().map(|t| format!("({t})")).collect::<Vec<_>>().join("+");
            prop_assert_eq!(parse(&text).unwrap().value, Ratio::int(terms.iter().sum()));
        }
    }
}
