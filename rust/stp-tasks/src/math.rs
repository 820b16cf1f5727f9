//! MATH answers: what is certain about two of them. The same expression, the same or another exact number, or a reason
//! why they cannot be the same answer; all else is for a computer algebra system to judge.

use crate::extract::answer_span;
use crate::latex::{self, Token};
use crate::number;

use Token::{Command, Gap, Letter, Number, Sign, Text};

/// The text that a completion gives as its answer.
#[must_use]
pub fn read(completion: &str) -> &str {
    answer_span(completion)
}

/// What is certain about an answer and the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// The same expression, spelt in one way.
    Text,
    /// The same number.
    Number,
    /// Another answer.
    No,
    /// Neither is certain.
    Unsure,
}

/// A comparison, and the two expressions without layout and units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// What is certain.
    pub found: Match,
    /// The answer as a computer algebra system reads it.
    pub answer: String,
    /// The truth likewise.
    pub truth: String,
    /// Decimals to which the truth is given, where it is one decimal number that may be rounded.
    pub decimals: Option<usize>,
}

/// Compares an answer with the truth.
#[must_use]
pub fn compare(answer: &str, truth: &str) -> Compared {
    let nothing = |found| Compared { found, answer: String::new(), truth: String::new(), decimals: None };
    let (Some(a), Some(b)) = (latex::tokens(answer), latex::tokens(truth)) else {
        return nothing(if !truth.is_empty() && answer == truth { Match::Text } else { Match::No });
    };
    let (a, b) = (Answer::of(&a), Answer::of(&b));
    if a.body.is_empty() || b.body.is_empty() {
        return nothing(if !b.unit.is_empty() && a == b { Match::Text } else { Match::No });
    }
    let found = judge(&a, &b);
    let decimals = number::rounded(&b.body);
    Compared {
        found,
        answer: latex::algebra(&a.body),
        truth: if decimals.is_some() { latex::written(&b.body) } else { latex::algebra(&b.body) },
        decimals,
    }
}

/// An expression and its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    body: Vec<Token>,
    unit: String,
}

impl Answer {
    fn of(tokens: &[Token]) -> Self {
        let tokens = connected(bare(tokens));
        let (body, unit) = number::split_unit(bare(&tokens));
        Self { body: bare(body).to_vec(), unit }
    }
}

fn judge(a: &Answer, b: &Answer) -> Match {
    let (x, y) = (latex::written(&a.body), latex::written(&b.body));
    if !a.unit.is_empty() && !b.unit.is_empty() && a.unit != b.unit {
        return Match::No;
    }
    let percent = (a.unit == "%") != (b.unit == "%");
    if x == y && !percent {
        return Match::Text;
    }
    if let (Some(p), Some(q)) = (latex::value(&a.body), latex::value(&b.body)) {
        let same = if percent {
            number::same_percent((p, &a.unit), (q, &b.unit))
        } else {
            number::same(p, q, &b.body)
        };
        return if same { Match::Number } else { Match::No };
    }
    if let Some(found) = words(&a.body, &b.body) {
        return found;
    }
    if x.eq_ignore_ascii_case(&y)
        || number_base(&a.body)
        || number_base(&b.body)
        || odd(&a.body)
        || odd(&b.body)
    {
        return Match::No; // x is not X; 204 in base 5 is not 204; `1 2`, `10-12` and `3:45` are no answers to anything else
    }
    if let ([Letter(_)], [Letter(_)]) = (a.body.as_slice(), b.body.as_slice()) {
        return Match::No;
    }
    match relation(&a.body, &b.body).or_else(|| lists(&a.body, &b.body)) {
        Some(found) => found,
        None if !kinds_agree(&a.body, &b.body) => Match::No,
        None => Match::Unsure,
    }
}

/// Without white space at the ends, braces around everything, or brackets around a single letter (a choice).
fn bare(mut tokens: &[Token]) -> &[Token] {
    loop {
        tokens = match tokens {
            [Gap, rest @ ..] | [rest @ .., Gap | Sign('.')] => rest,
            [Sign('{'), rest @ .., Sign('}')] if closes(tokens) => rest,
            [Sign('('), choice @ Letter('A'..='Z'), Sign(')')] => std::slice::from_ref(choice),
            [Text(words)] | [Sign('('), Text(words), Sign(')')] if choice(words).is_some() => return tokens,
            _ => return tokens,
        };
    }
}

/// The letter of a choice such as `B` or `(B)`.
fn choice(words: &str) -> Option<char> {
    let inner = words.trim().trim_start_matches('(').trim_end_matches([')', '.']);
    let mut chars = inner.chars();
    chars.next().filter(|c| c.is_ascii_uppercase() && chars.next().is_none())
}

/// Whether the bracket at the start is closed by the one at the end.
fn closes(tokens: &[Token]) -> bool {
    let mut depth = 0_i32;
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Sign('{' | '(' | '[') => depth += 1,
            Sign('}' | ')' | ']') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1 == tokens.len();
        }
    }
    false
}

/// `and` and `or` between elements as commas, and a choice in words as its letter.
fn connected(tokens: &[Token]) -> Vec<Token> {
    let mut made: Vec<Token> = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let joins =
            |words: &str| matches!(words.trim().trim_start_matches(','), "and" | "or" | " and" | " or");
        let used = match &tokens[at..] {
            [Text(words), ..] if joins(words) => 1,
            [Letter('a'), Letter('n'), Letter('d'), ..] => 3,
            [Letter('o'), Letter('r'), ..] => 2,
            _ => 0,
        };
        let alone = !matches!(tokens.get(at + used), Some(Letter(_)))
            && !matches!(at.checked_sub(1).map(|i| &tokens[i]), Some(Letter(_)) if !matches!(tokens[at], Text(_)));
        if used > 0 && alone && !made.is_empty() && at + used < tokens.len() {
            while matches!(made.last(), Some(Gap | Sign(','))) {
                made.pop();
            }
            made.push(Sign(','));
            at += used;
            at += usize::from(matches!(tokens.get(at), Some(Gap)));
            continue;
        }
        match &tokens[at] {
            Text(words) => made.extend(choice(words).map(Letter).or(Some(Text(words.clone())))),
            token => made.push(token.clone()),
        }
        at += 1;
    }
    made
}

/// Names of functions that may be written without a backslash.
const FUNCTIONS: [&str; 14] =
    ["sin", "cos", "tan", "cot", "sec", "csc", "log", "exp", "gcd", "lcm", "max", "min", "mod", "abs"];

/// The runs of three letters or more, and what stands in `\text`: words, in which letters are no factors.
fn has_words(tokens: &[Token]) -> bool {
    let mut run = String::new();
    for token in tokens.iter().chain([&Gap]) {
        match token {
            Text(_) => return true,
            Letter(c) => run.push(*c),
            _ => {
                if run.chars().count() > 2 && !FUNCTIONS.contains(&run.to_ascii_lowercase().as_str()) {
                    return true;
                }
                run.clear();
            }
        }
    }
    false
}

/// Words are compared as they are, letter case and white space aside.
fn words(a: &[Token], b: &[Token]) -> Option<Match> {
    if !has_words(a) && !has_words(b) {
        return None;
    }
    let plain = |tokens: &[Token]| {
        let mut made = String::new();
        for token in tokens {
            match token {
                Text(words) => made.push_str(words),
                token => made.push_str(&latex::written(std::slice::from_ref(token))),
            }
        }
        made.retain(|c| !c.is_whitespace() && !"\"'".contains(c));
        made.to_lowercase()
    };
    let (a, b) = (plain(a), plain(b));
    Some(if a == b && !a.is_empty() { Match::Text } else { Match::No })
}

/// A number with the base that it is written in, such as `204_5`.
fn number_base(tokens: &[Token]) -> bool {
    matches!(tokens, [Number(_), Sign('_'), _] | [Sign('('), Number(_), Sign(')'), Sign('_'), _])
}

/// Two numbers side by side, a dash between numbers, and times or ratios.
fn odd(tokens: &[Token]) -> bool {
    let side_by_side = (0..tokens.len()).any(|i| {
        let index = matches!(i.checked_sub(1).map(|i| &tokens[i]), Some(Sign('_' | '^')));
        !index && matches!(&tokens[i..], [Number(_), Gap, Number(_), ..] | [Number(_), Number(_), ..])
    });
    let colon = tokens.windows(3).any(|w| matches!(w, [Number(_), Sign(':'), Number(_)]));
    side_by_side || colon || latex::has_range(tokens)
}

/// The parts between signs outside brackets.
fn parts(tokens: &[Token], by: char) -> Vec<&[Token]> {
    let (mut found, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Sign('{' | '(' | '[') => depth += 1,
            Sign('}' | ')' | ']') => depth -= 1,
            Sign(c) if *c == by && depth == 0 => {
                found.push(&tokens[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    found.push(&tokens[from..]);
    found
}

fn related(tokens: &[Token]) -> bool {
    let by_name = |name: &String| ["le", "ge", "ne", "in", "equiv", "approx", "sim"].contains(&name.as_str());
    tokens.iter().any(|token| match token {
        Sign('=' | '<' | '>') => true,
        Command(name) => by_name(name),
        _ => false,
    })
}

/// A name that may stand before an equals sign: `x`, `x_1`, `x'`, `f(x)`, `\theta`, `(x,y)`.
fn is_name(tokens: &[Token]) -> bool {
    match tokens {
        [Letter(_), Sign('\'')]
        | [Letter(_), Sign('_'), _]
        | [Letter(_), Sign('('), Letter(_), Sign(')')]
        | [Sign('('), Letter(_), Sign(','), Letter(_), Sign(')')]
        | [Letter(_)] => true,
        [Command(name)] => name.bytes().all(|b| b.is_ascii_alphabetic()) && name != "infty" && name != "pi",
        _ => false,
    }
}

/// What follows from an equals sign: a name may stand before an answer, another equation is none.
fn relation(a: &[Token], b: &[Token]) -> Option<Match> {
    let again = |a: &[Token], b: &[Token]| judge(&Answer::of(a), &Answer::of(b));
    let (sides_a, sides_b) = (parts(a, '='), parts(b, '='));
    if parts(a, ',').len() > 1 || parts(b, ',').len() > 1 {
        return None; // a list: its elements may have names of their own
    }
    match (sides_a.as_slice(), sides_b.as_slice()) {
        ([name, value] | [value, name], [_]) if is_name(name) && !related(b) => Some(again(value, b)),
        ([name, steps @ .., last], [_]) if is_name(name) && !related(b) && agree(steps, last) => {
            Some(again(last, b))
        }
        ([first, steps @ .., last], [_]) if !related(b) && latex::value(first).is_some() => {
            Some(if agree(&[&[*first], steps].concat(), last) { again(last, b) } else { Match::No })
        }
        ([_, _, ..], [_]) if !related(b) => Some(Match::No),
        ([_], [name, value]) if is_name(name) && !related(a) => Some(again(a, value)),
        _ => None,
    }
}

/// Whether all sides of a chain of equations are the same number.
fn agree(sides: &[&[Token]], last: &[Token]) -> bool {
    let value = latex::value(last);
    value.is_some() && sides.iter().all(|side| latex::value(side) == value)
}

/// The outermost brackets of a list.
fn brackets(tokens: &[Token]) -> Option<(&Token, &Token)> {
    let (first, last) = (tokens.first()?, tokens.last()?);
    let open = matches!(first, Sign('(' | '['));
    let close = matches!(last, Sign(')' | ']'));
    let listed = tokens.len() > 2 && parts(&tokens[1..tokens.len() - 1], ',').len() > 1;
    (open && close && listed && closes(tokens)).then_some((first, last))
}

fn is_set(tokens: &[Token]) -> bool {
    matches!(tokens.first(), Some(Command(name)) if name == "{")
}

/// What is certain about lists: their numbers one by one, in order inside brackets; and how many there are.
fn lists(a: &[Token], b: &[Token]) -> Option<Match> {
    let open = |tokens: &[Token]| {
        related(tokens) || tokens.iter().any(|t| matches!(t, Command(name) if name == "pm" || name == "mp"))
    };
    if open(a) || open(b) || is_set(a) || is_set(b) {
        return None; // sets may name an element twice
    }
    let elements = |tokens| match brackets(tokens) {
        Some(kind) => (Some(kind), parts(&tokens[1..tokens.len() - 1], ',')),
        None => (None, parts(tokens, ',')),
    };
    let ((kind_a, xs), (kind_b, ys)) = (elements(a), elements(b));
    if kind_a != kind_b || xs.len().max(ys.len()) < 2 {
        return None;
    }
    if xs.len() != ys.len() {
        return Some(Match::No);
    }
    let values =
        |parts: &[&[Token]]| parts.iter().map(|part| latex::value(bare(part))).collect::<Option<Vec<_>>>();
    let (xs, mut left) = (values(&xs)?, values(&ys)?);
    let same = if kind_a.is_some() {
        xs == left
    } else {
        xs.iter().all(|x| left.iter().position(|y| x == y).map(|i| left.swap_remove(i)).is_some())
    };
    Some(if same { Match::Number } else { Match::No })
}

/// Whether brackets mean the same: a pair or an interval is no set, no bare list, and has its own ends.
fn kinds_agree(a: &[Token], b: &[Token]) -> bool {
    let strip = |tokens: &'_ [Token]| match tokens {
        [Letter(_), Command(name), rest @ ..] if name == "in" => rest.to_vec(),
        _ => tokens.to_vec(),
    };
    let (a, b) = (strip(a), strip(b));
    if related(&a) || related(&b) {
        return true;
    }
    let bare_list = |tokens: &[Token]| parts(tokens, ',').len() > 1;
    match (brackets(&a), brackets(&b)) {
        (Some(x), Some(y)) => x == y,
        (Some(_), None) => !is_set(&b) && !bare_list(&b),
        (None, Some(_)) => !is_set(&a) && !bare_list(&a),
        (None, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(answer: &str, truth: &str) -> Match {
        compare(answer, truth).found
    }

    #[test]
    fn the_same_text() {
        let cases = [
            ("\\dfrac12", "\\frac{1}{2}"),
            ("\\frac1{72}", "\\frac{1}{72}"),
            ("\\frac{\\sqrt3}2", "\\frac{\\sqrt{3}}{2}"),
            ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
            ("204_{5}", "204_5"),
            ("\\log_{2} 3", "\\log_2 3"),
            ("x \\neq 3", "x\\ne3"),
            ("x \\leqslant 3", "x \\leq 3"),
            ("x \u{2264} 3", "x \\le 3"),
            ("+\\infty", "\\infty"),
            ("(-\\infty, +\\infty)", "(-\\infty,\\infty)"),
            ("\u{221a}2", "\\sqrt{2}"),
            ("x\u{b2}", "x^2"),
            ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\frac{\\pi}{2})"),
            ("10 cm", "10"),
            ("10\\text{ cm}", "10"),
            ("10\\text{ centimeters}", "10 \\mathrm{cm}"),
            ("90 degrees", "90^\\circ"),
            ("90\u{b0}", "90"),
            ("\\$18", "18 dollars"),
            ("\\text{Evelyn}", "Evelyn"),
            ("(B)", "\\text{B}"),
            ("\\text{(B)}", "B"),
            ("\\text{Even}", "even"),
            ("x=5", "5"),
            ("5", "x = 5"),
            ("f(x)=2x", "2x"),
            ("1 \\pm \\sqrt{2}", "1\\pm\\sqrt2"),
            ("1 \u{b1} \u{221a}2", "1\\pm\\sqrt2"),
            ("2, 3", "2,3"),
            ("19, 46 and 82", "19,46,82"),
            ("2 \\text{ or } 3", "2,3"),
            ("\\mathbb{R}", "\u{211d}"),
            ("{72}", "72"),
        ];
        let failed: Vec<_> = cases.iter().filter(|(a, b)| found(a, b) != Match::Text).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    #[test]
    fn the_same_number() {
        let cases = [
            ("0.5", "\\frac12"),
            (".5", "\\frac12"),
            ("18.0", "18"),
            ("18.", "18"),
            ("1,200", "1200"),
            ("1{,}200", "1200"),
            ("1\\,200", "1200"),
            ("10 000", "10000"),
            ("1\u{202f}234\u{202f}567", "1234567"),
            ("3\\frac12", "\\frac72"),
            ("3 1/2", "7/2"),
            ("3\u{bd}", "3.5"),
            ("-3\\frac12", "-\\frac72"),
            ("1e4", "10^4"),
            ("1.5\\times10^3", "1500"),
            ("10^{-2}", "0.01"),
            ("50\\%", "0.5"),
            ("50", "50\\%"),
            ("\u{2212}5", "-5"),
            ("2, 1", "1,2"),
            ("(0.5, 2)", "(\\frac12, 2)"),
            ("3, 1 and 2", "1,2,3"),
            ("x = 10/2", "5"),
            ("2+3=5", "5"),
            ("2/3", "0.67"),
            ("0.6667", "0.67"),
            ("3.14159", "3.14"),
            ("1234567890123456789012345", "1234567890123456789012345.0"),
        ];
        let failed: Vec<_> =
            cases.iter().filter(|(a, b)| !matches!(found(a, b), Match::Number | Match::Text)).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    #[test]
    fn other_answers() {
        let cases = [
            ("\\frac1{40001}", "\\frac1{40000}"),
            ("10^{-10}", "0"),
            ("1234567891", "1234567890"),
            ("31/2", "3 1/2"),
            ("12", "1 2"),
            ("1 2", "12"),
            ("1 2", "3"),
            ("0.67", "2/3"),
            ("0.66", "0.67"),
            ("0.333333", "1/3"),
            ("0.5004", "0.5"),
            ("204", "204_5"),
            ("204_6", "204_5"),
            ("6=5", "5"),
            ("5=6", "5"),
            ("2+2=5", "5"),
            ("x+y=3", "3"),
            ("X", "x"),
            ("2X+1", "2x+1"),
            ("10:45", "3:45"),
            ("3/4", "3:4"),
            ("10\u{2013}12", "-2"),
            ("5 m", "5 cm"),
            ("5\\text{ m}", "5\\text{ cm}"),
            ("0.5\\%", "0.5"),
            ("not 72", "72"),
            ("\\text{not }72", "72"),
            ("about seven", "7"),
            ("\\text{listen}", "\\text{silent}"),
            ("listen", "silent"),
            ("\\{1,2\\}", "(1,2)"),
            ("[1,2]", "(1,2)"),
            ("1,2", "(1,2)"),
            ("(1,2)", "1,2"),
            ("", "5"),
            ("5", ""),
            ("", ""),
            ("5 + 5", "5"),
            ("28 or 72", "72"),
            ("72, 28", "72"),
            ("2,1,1", "1,2"),
            ("1,2,2", "1,1,2"),
            ("(2,1)", "(1,2)"),
            ("1,2,3,4", "1,2,3"),
            ("A", "B"),
        ];
        let failed: Vec<_> = cases.iter().filter(|(a, b)| found(a, b) != Match::No).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    #[test]
    fn what_is_left_to_algebra() {
        let cases = [
            ("x < 3", "(-\\infty,3)"),
            ("(3,4)\\cup(1,2)", "(1,2)\\cup(3,4)"),
            ("2x+4y=6", "x+2y=3"),
            ("5!", "120"),
            ("(x+1)^2", "x^2+2x+1"),
            ("\\sqrt2, 1", "1,\\sqrt2"),
            ("\\{2, 1\\}", "1,2"),
            ("2\\sqrt{3}", "\\sqrt{12}"),
            ("x \\in (2,5)", "(2,5)"),
            ("1+\\sqrt2, 1-\\sqrt2", "1\\pm\\sqrt2"),
            ("a/b", "b/a"),
            ("x/2^{41}", "x/2^{40}"),
        ];
        let failed: Vec<_> = cases.iter().filter(|(a, b)| found(a, b) != Match::Unsure).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        assert_eq!(compare("\\pi cm", "3.14 cm").decimals, Some(2));
        assert_eq!(compare("120\\text{ m}", "5! m").truth, "5!");
    }

    proptest! {
        #[test]
        fn total_and_symmetric_on_numbers(text in "(\\PC|\\\\frac|\\\\sqrt|\\\\text\\{|and|[{}(),=^_]|[0-9x .]){0,60}", n in -99i64..99) {
            let _ = compare(&text, "(1,2)");
            let (a, b) = (format!("\\frac{{{n}}}{{7}}"), format!("{n}/7"));
            prop_assert_eq!(found(&a, &b), found(&b, &a));
            prop_assert_ne!(found(&a, &b), Match::No);
        }

        #[test]
        fn other_integers_are_other_answers(a in any::<i64>(), b in any::<i64>()) {
            prop_assert_eq!(found(&a.to_string(), &b.to_string()) == Match::No, a != b);
        }
    }
}
