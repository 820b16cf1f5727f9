//! Small LaTeX expressions as tokens: read without layout, written in one way, and valued exactly where that is certain.

use crate::notation::{self, RANGE};
use crate::ratio::Ratio;

/// Longest expression that is read, in bytes.
pub const MAX_BYTES: usize = 2048;
/// Deepest nesting of groups.
const MAX_DEPTH: usize = 48;
/// Largest exponent.
const MAX_POWER: u32 = 1024;

/// A part of an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// Digits with at most one point; without thousands separators.
    Number(String),
    /// A letter.
    Letter(char),
    /// A command with its name, and the argument that belongs to its name: `frac`, `begin{cases}`, `\`.
    Command(String),
    /// The words of `\text{...}`.
    Text(String),
    /// Any other character.
    Sign(char),
    /// White space between two numbers or words, which it keeps apart.
    Gap,
}

use Token::{Command, Gap, Letter, Number, Sign, Text};

/// Commands that only lay out.
const LAYOUT: [&str; 20] = [
    "left",
    "right",
    "big",
    "Big",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "bigg",
    "Bigg",
    "displaystyle",
    "textstyle",
    "limits",
    "(",
    ")",
    "[",
    "]",
    "!",
    "boxed",
    "fbox",
];
/// Commands that are white space.
const SPACE: [&str; 7] = [",", ";", ":", " ", "quad", "qquad", "\n"];
/// Commands with several names, and the one that is kept.
const RENAMED: [(&str, &str); 22] = [
    ("dfrac", "frac"),
    ("tfrac", "frac"),
    ("cfrac", "frac"),
    ("dbinom", "binom"),
    ("tbinom", "binom"),
    ("leq", "le"),
    ("leqslant", "le"),
    ("geq", "ge"),
    ("geqslant", "ge"),
    ("neq", "ne"),
    ("varnothing", "emptyset"),
    ("dots", "ldots"),
    ("cdots", "ldots"),
    ("rightarrow", "to"),
    ("land", "wedge"),
    ("lor", "vee"),
    ("lbrace", "{"),
    ("rbrace", "}"),
    ("degree", "circ"),
    ("arcsin", "sin^{-1}"),
    ("arccos", "cos^{-1}"),
    ("arctan", "tan^{-1}"),
];
/// Commands that are a sign.
const SIGNS: [(&str, char); 12] = [
    ("times", '*'),
    ("cdot", '*'),
    ("ast", '*'),
    ("div", '/'),
    ("lt", '<'),
    ("gt", '>'),
    ("lbrack", '['),
    ("rbrack", ']'),
    ("langle", '('),
    ("rangle", ')'),
    ("vert", '|'),
    ("mid", '|'),
];
/// Commands whose argument is words.
const WORDS: [&str; 11] = [
    "text",
    "textbf",
    "textit",
    "textrm",
    "texttt",
    "mathrm",
    "mathbf",
    "mathit",
    "mbox",
    "operatorname",
    "emph",
];
/// Commands whose argument is part of their name.
const NAMED: [&str; 5] = ["begin", "end", "mathbb", "mathcal", "mathfrak"];

/// The tokens of a text; `None` where it is longer than [`MAX_BYTES`].
#[must_use]
pub fn tokens(text: &str) -> Option<Vec<Token>> {
    if text.len() > MAX_BYTES {
        return None;
    }
    let text = notation::ascii(text);
    let mut reader = Reader { rest: text.trim(), made: Vec::new(), depth: 0 };
    while !reader.rest.is_empty() {
        reader.step();
    }
    let mut made = braced(reader.made);
    while matches!(made.last(), Some(Gap | Sign('.' | ';'))) {
        made.pop();
    }
    Some(made)
}

struct Reader<'a> {
    rest: &'a str,
    made: Vec<Token>,
    /// Open round and square brackets: inside them a comma separates.
    depth: i32,
}

impl<'a> Reader<'a> {
    fn step(&mut self) {
        let Some(c) = self.rest.chars().next() else { return };
        let point = c == '.' && self.rest[1..].starts_with(|c: char| c.is_ascii_digit());
        if c.is_ascii_digit() || point {
            return self.number();
        }
        if c == '\\' {
            return self.command();
        }
        self.rest = &self.rest[c.len_utf8()..];
        self.depth += i32::from(matches!(c, '(' | '[')) - i32::from(matches!(c, ')' | ']'));
        match c {
            '$' | '`' => {}
            '~' => self.gap(),
            c if c.is_whitespace() => self.gap(),
            '*' if self.rest.starts_with('*') => self.rest = &self.rest[1..], // markdown
            c if c.is_alphabetic() => self.made.push(Letter(c)),
            c => self.sign(c),
        }
    }

    fn gap(&mut self) {
        if !matches!(self.made.last(), None | Some(Gap | Sign(_) | Command(_))) {
            self.made.push(Gap);
        }
    }

    /// A sign. White space around it means nothing, nor does a plus with nothing before it.
    fn sign(&mut self, c: char) {
        if self.made.last() == Some(&Gap) {
            self.made.pop();
        }
        let unary = match self.made.last() {
            None => true,
            Some(Sign(before)) => "([{,=<>".contains(*before),
            Some(Command(name)) => ["le", "ge", "in", "ne", "{", "approx"].contains(&name.as_str()),
            _ => false,
        };
        if c == '+' && unary {
            return;
        }
        self.made.push(Sign(c));
    }

    /// A number, its thousands separators left out: commas, `{,}`, blanks or apostrophes before groups of three.
    fn number(&mut self) {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let len = digits(self.rest);
        let mut made = self.rest[..len].to_string();
        self.rest = &self.rest[len..];
        let separators = ["{,}", ",", " ", "\\,", "\\ ", "'", "\\!", ",\\!"];
        let follows = |text: &str, by: &str| text.strip_prefix(by).is_some_and(|rest| digits(rest) == 3);
        let found = separators.into_iter().find(|by| follows(self.rest, by));
        if let Some(by) =
            found.filter(|by| (1..=3).contains(&len) && (self.depth == 0 || !by.starts_with(',')))
        {
            while follows(self.rest, by) {
                made.push_str(&self.rest[by.len()..by.len() + 3]);
                self.rest = &self.rest[by.len() + 3..];
            }
        }
        if let Some(part) = self.rest.strip_prefix('.') {
            let len = digits(part);
            if len > 0 || !part.starts_with('.') {
                made.push('.');
                made.push_str(&part[..len]);
                self.rest = &part[len..];
            }
        }
        let exponent = self.rest.strip_prefix(['e', 'E']).map_or("", |rest| {
            let sign = usize::from(rest.starts_with(['+', '-']));
            let len = digits(&rest[sign..]);
            let ends = !rest[sign + len..].starts_with(|c: char| c.is_alphanumeric());
            if len > 0 && ends { &self.rest[..1 + sign + len] } else { "" }
        });
        made.push_str(exponent);
        self.rest = &self.rest[exponent.len()..];
        let made = made.strip_suffix('.').map_or(made.clone(), str::to_string);
        self.made.push(Number(if made.starts_with('.') { format!("0{made}") } else { made }));
    }

    fn command(&mut self) {
        let body = &self.rest[1..];
        let letters = body.bytes().take_while(u8::is_ascii_alphabetic).count();
        let len = if letters > 0 { letters } else { body.chars().next().map_or(0, char::len_utf8) };
        let name = &body[..len];
        self.rest = &body[len..];
        if LAYOUT.contains(&name) {
            // a box or `\left.` leaves its content
            self.rest = if name.starts_with(['l', 'r']) {
                self.rest.strip_prefix('.').unwrap_or(self.rest)
            } else {
                self.rest
            };
        } else if SPACE.contains(&name) {
            self.gap();
        } else if WORDS.contains(&name) {
            let words = self.argument().trim().to_string();
            self.made.push(Text(words));
        } else if NAMED.contains(&name) {
            let whole = format!("{name}{{{}}}", self.argument().trim());
            self.made.push(Command(whole));
        } else if let Some((_, sign)) = SIGNS.iter().find(|(from, _)| *from == name) {
            self.rest = self.rest.trim_start();
            self.sign(*sign);
        } else if name == "%" || name == "$" || name == "#" || name == "&" || name == "_" {
            self.made.push(Command(name.to_string()));
        } else {
            let kept = RENAMED.iter().find(|(from, _)| *from == name).map_or(name, |(_, to)| to);
            self.rest = self.rest.trim_start();
            if self.made.last() == Some(&Gap) {
                self.made.pop();
            }
            self.made.push(Command(kept.to_string()));
        }
    }

    /// The content of the braces that come next, or the next character.
    fn argument(&mut self) -> &'a str {
        let rest = self.rest.trim_start();
        let Some(inner) = rest.strip_prefix('{') else {
            let len = rest.chars().next().map_or(0, char::len_utf8);
            self.rest = &rest[len..];
            return &rest[..len];
        };
        let end = crate::extract::balanced(inner).unwrap_or(inner.len());
        self.rest = inner.get(end + 1..).unwrap_or("");
        &inner[..end]
    }
}

/// `\frac12`, `\sqrt3` and `x^{2}` with the braces that they stand for: arguments of commands have them, indices and
/// powers of one token do not.
fn braced(tokens: Vec<Token>) -> Vec<Token> {
    let mut made: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut rest = tokens.into_iter().peekable();
    let mut split = std::collections::VecDeque::new(); // tokens put back
    let mut due = Vec::new(); // (depth, arguments) of commands that wait for theirs
    let mut depth = 0_usize;
    while let Some(token) = split.pop_front().or_else(|| rest.next()) {
        if due.last().is_some_and(|&(at, n)| at == depth && n > 0) && !matches!(token, Gap | Sign('[')) {
            if let Some((_, n)) = due.last_mut() {
                *n -= 1;
            }
            match token {
                Sign('{') => {
                    depth += 1;
                    made.push(token);
                }
                Number(ref digits) if digits.len() > 1 && digits.bytes().all(|b| b.is_ascii_digit()) => {
                    let (first, others) = digits.split_at(1);
                    made.extend([Sign('{'), Number(first.to_string()), Sign('}')]);
                    split.push_front(Number(others.to_string()));
                }
                Number(_) | Letter(_) => made.extend([Sign('{'), token, Sign('}')]),
                Command(ref name) => {
                    due.extend(arguments(name).map(|n| (depth, n)));
                    made.push(token);
                }
                other => made.push(other),
            }
            continue;
        }
        due.retain(|&(at, n)| n > 0 && at <= depth);
        match &token {
            Sign('{') => depth += 1,
            Sign('}') => depth = depth.saturating_sub(1),
            Command(name) => due.extend(arguments(name).map(|n| (depth, n))),
            _ => {}
        }
        made.push(token);
    }
    bare_indices(&made)
}

fn arguments(command: &str) -> Option<usize> {
    match command {
        "frac" | "binom" => Some(2),
        "sqrt" => Some(1),
        _ => None,
    }
}

fn bare_indices(tokens: &[Token]) -> Vec<Token> {
    let mut made: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        if let [Sign(sign @ ('^' | '_')), Sign('{'), inner, Sign('}'), ..] = &tokens[at..]
            && !matches!(inner, Sign(_))
        {
            made.extend([Sign(*sign), inner.clone()]);
            at += 4;
            if matches!((inner, tokens.get(at)), (Number(_), Some(Number(_)))) {
                made.push(Gap);
            }
        } else {
            made.push(tokens[at].clone());
            at += 1;
        }
    }
    made
}

/// One spelling of the tokens; two texts with the same spelling are the same expression.
#[must_use]
pub fn written(tokens: &[Token]) -> String {
    let mut made = String::new();
    for (i, token) in tokens.iter().enumerate() {
        let before = i.checked_sub(1).and_then(|i| tokens.get(i));
        match token {
            Number(digits) => made.push_str(digits),
            Letter(letter) => {
                if matches!(before, Some(Command(_))) {
                    made.push(' ');
                }
                made.push(*letter);
            }
            Command(name) => {
                made.push('\\');
                made.push_str(name);
            }
            Text(words) => {
                made.push_str("\\text{");
                made.push_str(words);
                made.push('}');
            }
            Sign(sign) => made.push(*sign),
            // what white space keeps apart: two numbers; letters and numbers stand together anyway
            Gap => {
                if matches!((before, tokens.get(i + 1)), (Some(Number(_)), Some(Number(_)))) {
                    made.push(' ');
                }
            }
        }
    }
    made
}

/// The tokens as a computer algebra system reads them: as [`written`], and decimals as fractions, which are exact.
#[must_use]
pub fn algebra(tokens: &[Token]) -> String {
    let exact = |token: &Token| match token {
        Number(digits) if digits.contains(['.', 'e', 'E']) => literal(digits),
        _ => None,
    };
    let mut made = Vec::with_capacity(tokens.len());
    for token in tokens {
        match exact(token) {
            None => made.push(token.clone()),
            Some(value) if value.den() == 1 => made.push(Number(value.num().to_string())),
            Some(value) => {
                let part = |n: i128| [Sign('{'), Number(n.to_string()), Sign('}')];
                made.extend([Sign('{'), Command("frac".to_string())]);
                made.extend(part(value.num()));
                made.extend(part(value.den()));
                made.push(Sign('}'));
            }
        }
    }
    written(&made)
}

/// The exact value of tokens that are a number: integers, decimals, fractions, mixed numbers, whole powers, and sums and
/// products of these. `None` where they are anything else, or do not fit into 128 bits.
#[must_use]
pub fn value(tokens: &[Token]) -> Option<Ratio> {
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let value = parser.sum()?;
    if parser.at == tokens.len() { Some(value) } else { None }
}

/// Decimals of tokens that are one decimal number, with a sign or without: `-3.140` has three.
#[must_use]
pub fn decimals(tokens: &[Token]) -> Option<usize> {
    match tokens {
        [Number(digits)] | [Sign('-'), Number(digits)] if !digits.contains(['e', 'E']) => {
            digits.split_once('.').map(|(_, part)| part.len())
        }
        _ => None,
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, sign: char) -> Option<()> {
        (self.peek()? == &Sign(sign)).then(|| self.at += 1)
    }

    fn sum(&mut self) -> Option<Ratio> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let mut value = self.product()?;
        while let Some(&Sign(sign @ ('+' | '-'))) = self.peek() {
            self.at += 1;
            let next = self.product()?;
            value = if sign == '+' { value.checked_add(next)? } else { value.checked_sub(next)? };
        }
        self.depth -= 1;
        Some(value)
    }

    fn product(&mut self) -> Option<Ratio> {
        let mut value = self.signed()?;
        loop {
            match self.peek() {
                Some(&Sign(sign @ ('*' | '/'))) => {
                    self.at += 1;
                    let next = self.signed()?;
                    value = if sign == '*' { value.checked_mul(next)? } else { value.checked_div(next)? };
                }
                Some(Sign('(')) => value = value.checked_mul(self.power()?)?,
                _ => return Some(value),
            }
        }
    }

    fn signed(&mut self) -> Option<Ratio> {
        let mut negative = false;
        while let Some(&Sign(sign @ ('+' | '-'))) = self.peek() {
            negative ^= sign == '-';
            self.at += 1;
        }
        let value = self.power()?;
        if negative { value.checked_neg() } else { Some(value) }
    }

    fn power(&mut self) -> Option<Ratio> {
        let base = self.atom()?;
        if self.eat('^').is_none() {
            return Some(base);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let exponent = if self.peek() == Some(&Sign('-')) { self.signed()? } else { self.power()? };
        self.depth -= 1;
        power(base, exponent)
    }

    fn atom(&mut self) -> Option<Ratio> {
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            Number(digits) => {
                let whole = literal(&digits)?;
                let mixed = if digits.contains(['.', 'e', 'E']) { None } else { self.mixed()? };
                mixed.map_or(Some(whole), |part| whole.checked_add(part))
            }
            Command(name) if name == "frac" => {
                let top = self.group('{')?;
                top.checked_div(self.group('{')?)
            }
            Sign(open @ ('(' | '{')) => {
                self.at -= 1;
                self.group(open)
            }
            _ => None,
        }
    }

    /// The fraction after a whole number, `3\frac{1}{2}` or `3 1/2`; `Some(None)` where there is none, and `None` where what
    /// follows is not certainly a mixed number.
    #[expect(clippy::option_option, reason = "none at all, and none that can be trusted, are two answers")]
    fn mixed(&mut self) -> Option<Option<Ratio>> {
        let spaced = self.peek() == Some(&Gap);
        let rest = self.tokens.get(self.at + usize::from(spaced)..)?;
        let (top, bottom, used) = match rest {
            [Command(frac), Sign('{'), Number(a), Sign('}'), Sign('{'), Number(b), Sign('}'), ..]
                if frac == "frac" =>
            {
                (a, b, 7)
            }
            [Number(a), Sign('/'), Number(b), ..] if spaced => (a, b, 3),
            [Command(_), ..] => return None,
            _ => return if spaced { None } else { Some(None) },
        };
        let (top, bottom) = (literal(top)?, literal(bottom)?);
        let proper = top.den() == 1 && bottom.den() == 1 && top.num() < bottom.num();
        self.at += used + usize::from(spaced);
        if proper { top.checked_div(bottom).map(Some) } else { None }
    }

    fn group(&mut self, open: char) -> Option<Ratio> {
        self.eat(open)?;
        let value = self.sum()?;
        self.eat(if open == '(' { ')' } else { '}' })?;
        Some(value)
    }
}

/// The value of a number token.
fn literal(digits: &str) -> Option<Ratio> {
    let (body, exponent) = match digits.split_once(['e', 'E']) {
        Some((body, exponent)) => (body, exponent.trim_start_matches('+').parse::<i64>().ok()?),
        None => (digits, 0),
    };
    Ratio::decimal(body)?.checked_mul(power(Ratio::int(10), Ratio::int(exponent))?)
}

fn power(base: Ratio, exponent: Ratio) -> Option<Ratio> {
    let size = u32::try_from(exponent.num().unsigned_abs())
        .ok()
        .filter(|&n| exponent.den() == 1 && n <= MAX_POWER)?;
    let mut value = Ratio::int(1);
    for _ in 0..size {
        value = value.checked_mul(base)?;
    }
    if exponent.num() < 0 { Ratio::int(1).checked_div(value) } else { Some(value) }
}

/// Whether the tokens hold a dash between two numbers.
#[must_use]
pub fn has_range(tokens: &[Token]) -> bool {
    tokens.contains(&Sign(RANGE))
}
