//! Numbers as people write final answers: separators, currency, percent, fractions, signs, decimals, units, prose.
//!
//! An answer states one number. A text that offers several, a range, a comparison or a denial states none.

use crate::extract::{before_end, last_answer, last_boxed};
use crate::latex::{self, Token};
use crate::notation::{self, RANGE};
use crate::ratio::Ratio;

use Token::{Command, Gap, Letter, Number, Sign, Text};

/// A final answer and the text that it was read from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answer<'a> {
    /// The value.
    pub value: Ratio,
    /// The text.
    pub text: &'a str,
}

/// What a completion is worth against a truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The number of the truth.
    Right,
    /// Another number, or none.
    Wrong,
    /// The truth states no number.
    NoTruth,
}

/// Grades the final answer of a completion against the number that a truth states (after `####`, where it has that).
#[must_use]
pub fn grade(found: Option<Answer<'_>>, truth: &str) -> Verdict {
    let stated = truth.rsplit("####").next().unwrap_or(truth);
    let Some(want) = read(stated) else { return Verdict::NoTruth };
    let tokens = latex::tokens(stated).unwrap_or_default();
    let body = split_unit(&tokens).0;
    match found {
        Some(answer) if same(answer.value, want, body) => Verdict::Right,
        _ => Verdict::Wrong,
    }
}

/// Whether a number is the truth: equal, or rounded to it where the truth is a decimal number that may be rounded.
#[must_use]
pub fn same(answer: Ratio, truth: Ratio, written: &[Token]) -> bool {
    if answer == truth {
        return true;
    }
    let Some(decimals) = rounded(written) else { return false };
    let finer = (0..=decimals).fold(1_i128, |by, _| by.saturating_mul(10)); // ten times as fine as the truth
    let exact_to = |value: Ratio| finer % value.den() == 0 && finer / 10 % value.den() == 0;
    if exact_to(answer) {
        return false; // as coarse as the truth, and another number
    }
    let error = answer.checked_sub(truth).and_then(|e| e.checked_mul(Ratio::new(2 * finer / 10, 1)?));
    error.is_some_and(|e| e.num().abs() < e.den())
}

/// The decimals of a truth that may be a rounded number: at least two, and two digits that count.
#[must_use]
pub fn rounded(written: &[Token]) -> Option<usize> {
    let decimals = latex::decimals(written).filter(|&n| (2..=20).contains(&n))?;
    let digits = written.iter().find_map(|token| match token {
        Number(digits) => Some(digits.replace('.', "")),
        _ => None,
    })?;
    (digits.trim_start_matches('0').len() >= 2).then_some(decimals)
}

/// Whether two numbers, one of them in percent, are the same: 50 % is one half; beside a whole number the sign says
/// only what is counted.
#[must_use]
pub fn same_percent((a, unit_a): (Ratio, &str), (b, unit_b): (Ratio, &str)) -> bool {
    let (percent, plain) = if unit_a == "%" { (a, b) } else { (b, a) };
    let share = percent.checked_div(Ratio::int(100));
    let counted = percent == plain && (plain.num().abs() >= plain.den() || unit_b == "%");
    share == Some(plain) || counted
}

/// Currency signs.
const CURRENCY: [char; 5] = ['\u{20ac}', '\u{a3}', '\u{a5}', '\u{20b9}', '\u{a2}'];

/// An expression without its unit, and the unit's name: what stands in `\text` or in letters after it, a percent,
/// degree or currency sign.
#[must_use]
pub fn split_unit(tokens: &[Token]) -> (&[Token], String) {
    let money = |c: &char| CURRENCY.contains(c);
    match tokens {
        [Command(sign), rest @ ..] if sign == "$" && !rest.is_empty() => return (rest, "dollar".to_string()),
        [Sign('-'), Command(sign), ..] if sign == "$" => {} // the sign stays with the number
        [Sign(sign), rest @ ..] if money(sign) && !rest.is_empty() => return (rest, sign.to_string()),
        _ => {}
    }
    match tokens {
        [rest @ .., Command(sign)] if sign == "%" && !rest.is_empty() => {
            return (trim(rest), "%".to_string());
        }
        [rest @ .., Sign('%')] if !rest.is_empty() => return (trim(rest), "%".to_string()),
        [rest @ .., Sign('^'), Command(sign)] if sign == "circ" && !rest.is_empty() => {
            return (rest, "degree".to_string());
        }
        [rest @ .., Command(sign)] if sign == "$" && !rest.is_empty() => {
            return (trim(rest), "dollar".to_string());
        }
        [rest @ .., Sign(sign)] if money(sign) && !rest.is_empty() => return (trim(rest), sign.to_string()),
        _ => {}
    }
    let spelt = unit_start(tokens);
    match spelt {
        Some(at) => (trim(&tokens[..at]), unit_name(&tokens[at..])),
        None => (tokens, String::new()),
    }
}

fn trim(tokens: &[Token]) -> &[Token] {
    match tokens {
        [rest @ .., Gap] => rest,
        _ => tokens,
    }
}

/// Where the unit in words starts: after an expression without words, letters or commands to the end.
fn unit_start(tokens: &[Token]) -> Option<usize> {
    if let Some(at) = tokens.iter().position(|token| matches!(token, Text(_))) {
        let after = tokens[at + 1..]
            .iter()
            .all(|t| matches!(t, Gap | Text(_) | Number(_) | Sign('^' | '/' | '{' | '}')));
        return (at > 0 && after && !denies(&unit_name(&tokens[at..]))).then_some(at);
    }
    let at = tokens.iter().position(|token| matches!(token, Letter(_)))?;
    let known = latex::value(trim(&tokens[..at])).is_some() || matches!(&tokens[..at], [.., Sign('!')]);
    let rest = &tokens[at..];
    let words = rest.iter().all(|t| matches!(t, Letter(_) | Gap | Sign('.' | '/' | '-' | '^') | Number(_)));
    let spaced = matches!(tokens[at - usize::from(at > 0)], Gap | Sign('!'));
    let name = unit_name(rest);
    // `5m` and `2ab` are products; `5 m` and `5 cm` are not, nor are two letters that are a usual unit
    let stem = name.trim_start_matches("square ").trim_end_matches(|c: char| "^23".contains(c));
    let usual = USUAL.contains(&stem);
    let unit = usual || known && spaced && (rest.len() > 1 || UNITS.contains(&stem));
    (at > 0 && words && unit && !denies(&name)).then_some(at)
}

/// Single letters that are a unit after a blank.
const UNITS: [&str; 6] = ["m", "g", "s", "h", "l", "L"];
/// Units that may follow any expression, with a blank or without.
const USUAL: [&str; 24] = [
    "cm", "mm", "km", "kg", "mg", "ml", "mL", "second", "minute", "hour", "day", "week", "month", "year",
    "degree", "dollar", "cent", "foot", "inch", "mile", "yard", "unit", "meter", "%",
];

/// Whether a text after a number takes it back or adds another answer: then it is no unit.
fn denies(name: &str) -> bool {
    let mut words = name.split(|c: char| !c.is_alphabetic() && c != '\'');
    words.any(|word| DENIALS.contains(&word) || HEDGES.contains(&word))
}

/// One name of a unit: lower case, singular, long names as their short ones.
fn unit_name(tokens: &[Token]) -> String {
    let mut name = String::new();
    for token in tokens {
        match token {
            Gap => name.push(' '),
            Text(words) => name.push_str(words.trim()),
            token => name.push_str(&latex::written(std::slice::from_ref(token))),
        }
    }
    let name = name.trim().trim_end_matches('.').replace("^{", "^").replace('}', "");
    let short = [
        ("centimeter", "cm"),
        ("centimetre", "cm"),
        ("millimeter", "mm"),
        ("kilometer", "km"),
        ("kilometre", "km"),
        ("meter", "m"),
        ("metre", "m"),
        ("kilogram", "kg"),
        ("gram", "g"),
        ("hr", "hour"),
        ("mins", "minute"),
        ("min", "minute"),
        ("sec", "second"),
        ("feet", "foot"),
        ("ft", "foot"),
        ("inches", "inch"),
        ("in", "inch"),
        ("deg", "degree"),
        ("percent", "%"),
        ("per cent", "%"),
        ("cents", "cent"),
        ("euro", "\u{20ac}"),
    ];
    let singular = name.strip_suffix('s').filter(|stem| stem.chars().count() > 1).unwrap_or(&name);
    short
        .iter()
        .find(|(long, _)| *long == name || *long == singular)
        .map_or(singular, |(_, to)| to)
        .to_string()
}

/// Words that take an answer back.
const DENIALS: [&str; 14] = [
    "not",
    "no",
    "never",
    "neither",
    "nor",
    "cannot",
    "wrong",
    "incorrect",
    "false",
    "unknown",
    "except",
    "isn't",
    "wasn't",
    "can't",
];
/// Words that make several answers, a range or a comparison of a number, or another number.
const HEDGES: [&str; 19] = [
    "or",
    "than",
    "between",
    "either",
    "versus",
    "vs",
    "maybe",
    "perhaps",
    "half",
    "twice",
    "double",
    "triple",
    "quarter",
    "thirds",
    "times",
    "plus",
    "so",
    "remainder",
    "to",
];
/// Words that make a bound of a number.
const BOUNDS: [&str; 4] = [" at least ", " at most ", " up to ", " or more "];
/// Commands that compare.
const COMPARISONS: [&str; 8] = ["le", "ge", "leq", "geq", "lt", "gt", "leqslant", "geqslant"];
/// Words after a number that multiply it.
const SCALES: [(&str, i64); 6] = [
    ("dozen", 12),
    ("hundred", 100),
    ("thousand", 1000),
    ("million", 1_000_000),
    ("billion", 1_000_000_000),
    ("trillion", 1_000_000_000_000),
];
/// What starts an explanation after an answer.
const CLAUSES: [&str; 6] = [" which ", " because ", " since ", ", as ", " that is ", ", where "];
/// Words between a number and one that it is counted by: "18 dollars per 3 days".
const RATES: [&str; 3] = [" per ", " every ", " each "];
/// Most numbers of a text that are looked at.
const MAX_NUMBERS: usize = 32;

/// The number that a final answer states: its value as a whole, else what follows the last equals sign, else the one
/// number of its prose. `None` where it states none, or not one.
///
/// A percent sign, currency and units carry no value, as in the data sets: `5%` is 5.
#[must_use]
pub fn read(text: &str) -> Option<Ratio> {
    let plain = notation::ascii(tail(text)).replace("\\boxed", "").replace("**", "");
    let plain =
        plain.replace("\\text", "").replace("\\mathrm", "").replace("\\$", "").replace(['$', '`'], "");
    let plain = plain.replace("\\approx", "=").replace("\\ne", " not ").replace(CURRENCY, "");
    if let Some(value) = whole(&plain) {
        return Some(value);
    }
    let lower = format!(" {} ", plain.to_lowercase());
    let words = || lower.split(|c: char| !c.is_alphabetic() && c != '\'').filter(|word| !word.is_empty());
    if words().any(|word| DENIALS.contains(&word) || word.ends_with("n't")) || lower.contains("\\pm") {
        return None;
    }
    if bounds(&lower) {
        return None;
    }
    let head = explained(&plain);
    let sides: Vec<&str> = head.split('=').collect();
    match sides.as_slice() {
        [.., left, right] => {
            let named = sides.iter().filter(|side| ends_with_name(side)).count();
            let right_is_name = !right.contains(|c: char| c.is_ascii_digit());
            let side = if right_is_name { left } else { right };
            if named > 1 { None } else { whole(side).or_else(|| stated(side)) }
        }
        _ => stated(head),
    }
}

/// Whether a text states a bound in place of a number: `> 72`, `\ge 72`, `at least 72`.
fn bounds(lower: &str) -> bool {
    if BOUNDS.iter().any(|words| lower.contains(words)) {
        return true;
    }
    let command = |part: &str| {
        let name = &part[..part.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(part.len())];
        COMPARISONS.contains(&name)
    };
    if lower.split('\\').skip(1).any(command) || lower.contains(['\u{2264}', '\u{2265}']) {
        return true;
    }
    // not the marks of a calculator, `<<48+24=72>>72`, and not those of a tag, `</s>`
    let tag = |before: &str| before.rfind('<').is_some_and(|at| !before[at..].starts_with("< "));
    lower.match_indices(['<', '>']).any(|(at, sign)| {
        let (before, after) = (&lower[..at], lower[at + 1..].trim_end());
        let single = !before.ends_with(sign) && !after.starts_with(sign);
        let compared = after.starts_with(|c: char| c.is_ascii_digit() || " =-.".contains(c));
        single && compared && !(sign == ">" && tag(before))
    })
}

/// The value of a text that is an expression, with a unit or without.
fn whole(text: &str) -> Option<Ratio> {
    let tokens = latex::tokens(text.trim())?;
    let difference = tokens.windows(3).any(|w| matches!(w, [Number(_), Sign('-'), Number(_)]));
    if difference && !text.contains(" - ") {
        return None; // `10-12` is a range more often than a difference
    }
    let (body, unit) = split_unit(&tokens);
    let scaled = SCALES.iter().any(|(word, _)| unit.contains(word)) || denies(&unit);
    let counted = unit.contains(|c: char| c.is_ascii_digit()) && !unit.contains('^'); // `18 dollars for 3 days`
    if scaled || counted { None } else { latex::value(body) }
}

/// Whether a side of an equation ends with a letter alone: `x` in `5, x`.
fn ends_with_name(side: &str) -> bool {
    let mut back = side.trim_end().chars().rev();
    back.next().is_some_and(char::is_alphabetic) && back.next().is_none_or(|c| !c.is_alphanumeric())
}

/// The text before its explanation: before brackets and clauses that follow a number.
fn explained(text: &str) -> &str {
    let Some(first) = text.find(|c: char| c.is_ascii_digit()) else { return text };
    let cut = |mark: &str| text[first..].find(mark).map(|at| first + at);
    let bracket = cut(" (").filter(|&at| !text[at..].starts_with(" (+")).or_else(|| cut(" ["));
    let clause = CLAUSES.iter().filter_map(|mark| cut(mark)).min();
    let end = [bracket, clause].into_iter().flatten().min().unwrap_or(text.len());
    &text[..end]
}

/// The end of a long text: final answers are last, and reading stays bounded.
fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(1024);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

/// The one number of a prose.
fn stated(text: &str) -> Option<Ratio> {
    let lower = format!(" {} ", text.to_lowercase());
    let hedged = lower.split(|c: char| !c.is_alphabetic()).any(|word| HEDGES.contains(&word));
    let found = numbers(text)?;
    let (value, end) = *found.first()?;
    if found.iter().all(|(other, _)| *other == value) {
        let only = found.len() == 1 || !lower.contains(" to ");
        return (only && !(hedged && refuses(&lower))).then_some(value);
    }
    let gap = text.get(end..)?.to_lowercase();
    let gap = &gap[..gap.find(|c: char| c.is_ascii_digit()).unwrap_or(gap.len())];
    let plain = gap.chars().all(|c| c.is_alphabetic() || c == ' ');
    (!hedged && plain && RATES.iter().any(|rate| gap.contains(rate))).then_some(value)
}

/// Whether a hedge beside a single number makes it another number, a comparison or a range.
fn refuses(lower: &str) -> bool {
    let harmless = ["so", "to", "or", "either", "times"];
    let mut words = lower.split(|c: char| !c.is_alphabetic());
    words.any(|word| HEDGES.contains(&word) && !harmless.contains(&word)) || lower.contains(" or so")
}

/// Whether what follows a number makes it a factor, a base or another name: `72x`, `72 x`, `72\\pi`, `72*x`, `72^x`, `72x^2`.
///
/// A unit may touch its number (`72kg`, `72m`, `72apples`), and so may the ending of an ordinal.
fn raised_or_multiplied(rest: &str) -> bool {
    let name = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(text.len());
        text[..end].to_string()
    };
    let apart = rest.trim_start();
    if apart.starts_with('_') {
        return true;
    }
    if let Some(power) = apart.strip_prefix('^') {
        return !power.trim_start_matches('{').starts_with("\\circ");
    }
    if let Some(command) = apart.strip_prefix('\\') {
        return FACTORS.contains(&name(command).as_str());
    }
    if let Some(factor) = apart.strip_prefix('*') {
        return factor.trim_start().starts_with(|c: char| c.is_ascii_alphanumeric());
    }
    let word = name(apart);
    let after = &apart[word.len()..];
    if rest.len() > apart.len() {
        let ends = !after.starts_with(|c: char| c.is_alphanumeric() || c == '\'');
        return ends && UNKNOWNS.contains(&word.as_str());
    }
    let unit = UNITS.contains(&word.as_str()) || TOUCHING.contains(&word.to_lowercase().as_str());
    match word.len() {
        0 => false,
        1 | 2 => !unit,
        _ => after.starts_with(|c: char| c.is_ascii_digit()),
    }
}

/// Letters that are an unknown also after a blank.
const UNKNOWNS: [&str; 4] = ["x", "y", "z", "n"];
/// Commands that multiply what stands before them.
const FACTORS: [&str; 16] = [
    "pi", "alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "rho", "sigma", "phi", "omega", "sqrt",
    "cdot", "times", "log",
];
/// Units of one and two letters, and endings of ordinals, that touch their number.
const TOUCHING: [&str; 34] = [
    "c", "f", "cm", "mm", "km", "kg", "mg", "ml", "cl", "dl", "hr", "ft", "in", "lb", "oz", "yd", "mi", "pt",
    "qt", "am", "pm", "st", "nd", "rd", "th", "gb", "mb", "kb", "tb", "kw", "hp", "cc", "ms", "gm",
];

/// The numbers of a prose and where each ends; `None` where one of them is a time, a range or has a letter for a factor.
fn numbers(text: &str) -> Option<Vec<(Ratio, usize)>> {
    let (mut found, mut at) = (Vec::new(), 0);
    let bytes = text.as_bytes();
    while found.len() < MAX_NUMBERS {
        let Some(start) = text[at..].find(|c: char| c.is_ascii_digit()).map(|i| at + i) else { break };
        let len = number_length(&text[start..]);
        let mut end = start + len;
        at = end;
        if start > 0 && bytes[start - 1].is_ascii_alphabetic() {
            continue; // part of a name, as in `x2`
        }
        if let Some(base) = text[..start].trim_end_matches('{').strip_suffix(['^', '_']) {
            if base.ends_with(char::is_alphabetic) {
                continue; // of a unit or a name, as in `cm^2` and `x^{2}`: no number of its own
            }
            return None;
        }
        let before = text[..start].trim_end();
        let mut from = start;
        if start > 0
            && bytes[start - 1] == b'.'
            && !text[..start - 1].ends_with(|c: char| c.is_alphanumeric())
        {
            from -= 1; // `.25`
        }
        let rest = &text[end..];
        let joined = |c: char, text: &str| {
            text.strip_prefix(c)
                .is_some_and(|rest| rest.trim_start().starts_with(|c: char| c.is_ascii_digit()))
        };
        let scale =
            rest.starts_with(['k', 'K', 'M', 'B']) && !rest[1..].starts_with(|c: char| c.is_alphanumeric());
        let fraction = rest.trim_start().starts_with("\\frac");
        if joined(':', rest)
            || joined(RANGE, rest.trim_start())
            || joined('-', rest)
            || raised_or_multiplied(rest)
            || scale
            || fraction
        {
            return None;
        }
        let mut value = latex::value(&latex::tokens(&text[from..end])?)?;
        if let Some((word, by)) =
            SCALES.iter().find(|(word, _)| rest.trim_start().to_lowercase().starts_with(word))
        {
            value = value.checked_mul(Ratio::int(*by))?;
            end += rest.len() - rest.trim_start().len() + word.len();
            at = end;
        }
        let before = if from < start { text[..from].trim_end() } else { before };
        let spelt = before.to_lowercase();
        let dash = before.ends_with('-')
            && !before[..before.len() - 1].trim_end().ends_with(|c: char| c.is_ascii_digit());
        if dash || spelt.ends_with("minus") || spelt.ends_with("negative") {
            value = value.checked_neg()?;
        }
        found.push((value, end));
    }
    Some(found)
}

/// Bytes of the number at the start of a text: groups of three, a fraction, a mixed number, an exponent.
fn number_length(text: &str) -> usize {
    let digits =
        |at: usize| text.as_bytes()[at.min(text.len())..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = digits(0);
    let separators = ["{,}", ",\\!", ",", "\\,", " ", "'"];
    let follows = |end: usize, by: &str| text[end..].starts_with(by) && digits(end + by.len()) == 3;
    if let Some(by) = separators.into_iter().find(|by| end <= 3 && follows(end, by)) {
        while follows(end, by) {
            end += by.len() + 3;
        }
    }
    if text[end..].starts_with('.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    let slash = |end: usize| if text[end..].starts_with('/') { digits(end + 1) } else { 0 };
    if slash(end) > 0 {
        end += 1 + slash(end);
    } else if text[end..].starts_with(' ') {
        let part = digits(end + 1);
        if part > 0 && slash(end + 1 + part) > 0 {
            end += 2 + part + slash(end + 1 + part);
        }
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['-', '+']));
        let part = digits(end + 1 + sign);
        if part > 0 {
            end += 1 + sign + part;
        }
    }
    end
}

/// The final answer of a completion: the answer tag (in it, the box), else the last box, else what follows `####`, else
/// what follows "answer is" or "answer:". A place that holds a number but states none ends the search, and nothing is
/// guessed from the last number of unfinished reasoning.
#[must_use]
pub fn answer(completion: &str) -> Option<Answer<'_>> {
    let text = before_end(completion);
    let tagged = last_answer(text).map(|span| last_boxed(span).unwrap_or(span));
    let hashed = text.rfind("####").map(|at| sentence(&text[at + 4..]));
    for place in [tagged, last_boxed(text), hashed, said(text)].into_iter().flatten() {
        let text = place.trim();
        if let Some(value) = read(text) {
            return Some(Answer { value, text });
        }
        if text.contains(|c: char| c.is_ascii_digit()) {
            return None;
        }
    }
    None
}

/// What follows the last "answer" that is said to be something: `The answer is 7`, `Final answer: 7`, `ANSWER = 7`.
fn said(text: &str) -> Option<&str> {
    let lower = text.to_ascii_lowercase();
    lower.rmatch_indices("answer").take(8).find_map(|(at, word)| {
        let rest = &text[at + word.len()..];
        let marks = [" is", ":", "=", "\u{ff1a}"];
        let (gap, mark) = marks.iter().filter_map(|mark| Some((rest.find(mark)?, mark))).min()?;
        let quiet = gap <= 40 && !rest[..gap].contains(|c: char| c.is_ascii_digit() || ".\n<>".contains(c));
        let rest = &rest[gap + mark.len()..];
        (quiet && !rest.starts_with(|c: char| c.is_alphabetic() || c == '\'')).then(|| sentence(rest))
    })
}

/// The first sentence of a text, on its first line that holds anything.
fn sentence(text: &str) -> &str {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || ":*_".contains(c));
    let line = text.lines().next().unwrap_or(text);
    line.split(". ").next().unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ratio(value: f64) -> Option<Ratio> {
        Ratio::new((value * 100.0).round() as i128, 100)
    }

    #[test]
    fn ways_to_write_a_number() {
        let cases = [
            ("18", 18.0),
            ("18.0", 18.0),
            ("1,200", 1200.0),
            ("$1,200.50", 1200.5),
            ("\\$18", 18.0),
            ("-$18", -18.0),
            ("$-18", -18.0),
            ("\u{20ac}18", 18.0),
            ("18\u{20ac}", 18.0),
            ("-5", -5.0),
            ("\u{2212}5", -5.0),
            ("\u{2010}5", -5.0),
            ("\u{2013}5", -5.0),
            ("\u{2014}5", -5.0),
            ("\u{fe63}5", -5.0),
            ("\u{ff0d}5", -5.0),
            ("minus 5", -5.0),
            ("it is negative 5", -5.0),
            ("- 5", -5.0),
            ("\u{ff11}\u{ff18}", 18.0),
            ("50%", 50.0),
            ("50\\%", 50.0),
            ("50 percent", 50.0),
            ("1/4", 0.25),
            (".25", 0.25),
            ("it is .25", 0.25),
            ("\\frac{1}{4}", 0.25),
            ("2 1/2 hours", 2.5),
            ("2\u{bd} hours", 2.5),
            ("120 minutes", 120.0),
            ("120\\text{ minutes}", 120.0),
            ("5km", 5.0),
            ("18 dollars per day.", 18.0),
            ("18 dollars per 3 days", 18.0),
            ("x = 18", 18.0),
            ("18 = x", 18.0),
            ("3 + 15 = 18", 18.0),
            ("3 + 15", 18.0),
            ("9 \\times 2 = $18", 18.0),
            ("48/2 = 24 clips, 48 + 24 = 72 clips", 72.0),
            ("She makes 18 dollars", 18.0),
            ("**18**", 18.0),
            ("room x2 has 7", 7.0),
            ("total: 1,000,000", 1e6),
            ("1e4", 1e4),
            ("about 1.5e3 people", 1500.0),
            ("10 000", 1e4),
            ("10\u{202f}000 people", 1e4),
            ("1'200", 1200.0),
            ("1{,}200", 1200.0),
            ("2 million", 2e6),
            ("2.5 million people", 2.5e6),
            ("3 dozen", 36.0),
            ("72 (48 in April and 24 in May)", 72.0),
            ("72 clips (48 + 24)", 72.0),
            ("72, which is 3 times 24", 72.0),
            ("72 because 48 + 24 = 72", 72.0),
            ("= 72", 72.0),
            ("\\boxed{72}", 72.0),
            ("72!", 72.0),
            ("48 + 24 = <<48+24=72>>72 clips", 72.0),
            ("72</s>", 72.0),
            ("<b>72</b>", 72.0),
            ("<b> 72 </b>", 72.0),
            ("\\left(72\\right)", 72.0),
        ];
        let failed: Vec<_> = cases.iter().filter(|(text, want)| read(text) != ratio(*want)).collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert_eq!(read(&format!("{}so 18 eggs", "\u{e9} ".repeat(5000))), Some(Ratio::int(18)));
    }

    #[test]
    fn a_unit_may_touch_its_number() {
        let cases = [
            "72m",
            "72 m",
            "72kg",
            "72F",
            "72lb",
            "72nd",
            "72apples",
            "72 apples a day",
            "72 cm\u{b2}",
            "It is 72ft^2.",
            "72\u{b0}",
            "72>",
            "72*",
            "72!",
            "\u{7b54}\u{6848}72\u{5143}",
        ];
        let failed: Vec<_> = cases.iter().filter(|text| read(text) != Some(Ratio::int(72))).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    #[test]
    fn what_states_no_number() {
        let cases = [
            "",
            "none",
            "x",
            "x2",
            "...",
            "28 or 72",
            "28, 72",
            "28 and 72",
            "either 72 or 73",
            "not 72",
            "isn't 72",
            "72 is wrong",
            "\u{2260} 72",
            "10:45",
            "at 3:45",
            "10-12",
            "10\u{2013}12",
            "10 to 12",
            "from 9 to -3",
            "between 5 and 7",
            "more than 72",
            "less than 72",
            "half of 72",
            "twice 36",
            "at least 72",
            "At most 72 eggs",
            "up to 72",
            "72 or more",
            ">72",
            "> 72",
            "x < 72",
            "72 < x",
            ">= 72",
            "\u{2265} 72",
            "\\ge 72",
            "\\leqslant 72",
            "72 or so",
            "72 dollars and 50 cents",
            "In 3 days she makes 18",
            "18 dollars for 3 days",
            "3 plus 15",
            "\u{b1}5",
            "5k",
            "1,200,50",
            "1.200.000",
            "x = 5, y = 7",
            "72x",
            "72 x",
            "72x2",
            "x = 72y",
            "72ab",
            "72\u{3c0}",
            "72*x",
            "72\\cdot x",
            "72^x",
            "72\u{207f}",
            "it is 72\u{b2}",
            "\u{b2}72",
            "72\u{2082}",
            "72_5",
            "x\u{b2}",
            "x^2",
        ];
        let failed: Vec<_> = cases.iter().filter(|text| read(text).is_some()).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    #[test]
    fn where_the_answer_is() {
        let cases = [
            ("\\boxed{3} <answer>\\boxed{18}</answer>", Some(18)),
            ("\\boxed{3} and then \\boxed{18}<|eot_id|>\\boxed{4}", Some(18)),
            ("<answer></answer> \\boxed{18}", Some(18)),
            ("\\boxed{\n18\n}", Some(18)),
            ("so\n#### 18\n", Some(18)),
            ("#### 72 (48 in April and 24 in May)", Some(72)),
            ("The answer is 18. It was 9 eggs.", Some(18)),
            ("The answer is 72, which is 3 times 24.", Some(72)),
            ("Final answer: 72", Some(72)),
            ("answer: 72", Some(72)),
            ("ANSWER: 72", Some(72)),
            ("**Answer:** 72", Some(72)),
            ("Answer:\n72\nbye", Some(72)),
            ("The final answer is: $72$.", Some(72)),
            ("The answer to the question is 72", Some(72)),
            ("The answer is not 72", None),
            ("The answer isn't 72", None),
            ("The answer is 28 or 72", None),
            ("9 eggs at 2 dollars make 18", None),
            ("<answer>28 or 72</answer> #### 72", None),
            ("\\boxed{28} or \\boxed{72}", None),
            ("So \\boxed{72}. I used the \\boxed command as asked.", Some(72)),
            ("So \\boxed{72}. I put it in \\boxed{answer} as asked.", Some(72)),
        ];
        let wrong =
            |(text, want): &&(&str, Option<i64>)| answer(text).map(|a| a.value) != want.map(Ratio::int);
        let failed: Vec<_> = cases.iter().filter(wrong).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    #[test]
    fn grades() {
        let verdict = |text: &str, truth: &str| grade(answer(&format!("\\boxed{{{text}}}")), truth);
        for (text, truth) in [
            ("72", "72"),
            ("72.00", "so\n#### 72"),
            ("1/3", "0.33"),
            ("18.333", "18.33"),
            ("50", "50%"),
            ("1e4", "10,000"),
        ] {
            assert_eq!(verdict(text, truth), Verdict::Right, "{text} for {truth}");
        }
        for (text, truth) in [
            ("1000001", "1000000"),
            ("0.33", "1/3"),
            ("18.34", "18.33"),
            ("18.4", "18"),
            ("0.5004", "0.5"),
            ("10000000000000000000001", "10000000000000000000000"),
        ] {
            assert_eq!(verdict(text, truth), Verdict::Wrong, "{text} for {truth}");
        }
        assert_eq!(verdict("5", "none"), Verdict::NoTruth);
    }

    proptest! {
        #[test]
        fn total_on_any_text(text in "(\\PC|[0-9]{1,3}|,|\\.|/|-|e|=|\\\\boxed\\{|\\}|<answer>|####|answer is ){0,40}") {
            let _ = answer(&text);
            let _ = read(&text);
        }

        #[test]
        fn integers_survive_every_dress(n in -999_999i64..999_999) {
            let digits = n.abs().to_string();
            let mut grouped = String::new();
            for (i, c) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i) % 3 == 0 {
                    grouped.push(',');
                }
                grouped.push(c);
            }
            let sign = if n < 0 { "-" } else { "" };
            for text in [format!("{n}"), format!("{sign}{grouped}"), format!("{sign}{grouped}.00 eggs"), format!("x = {n}")] {
                prop_assert_eq!(read(&text), Some(Ratio::int(n)), "{}", text);
            }
        }
    }
}
