//! Countdown: reach a target from given numbers, each used exactly once. Grader and generator.

use crate::expr::{self, Fault, MAX_NUMBERS, Parsed};
use crate::extract::answer_span;
use crate::ratio::Ratio;
use stp_core::error::{Error, Result};
use stp_core::rng::{Lane, RowRng, Stream};

/// What a completion is worth, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// The target, from exactly the given numbers.
    Solved = 0,
    /// A proper expression of the given numbers with another value.
    WrongValue = 1,
    /// The value written after the equals sign is not the value of the expression.
    WrongStatement = 2,
    /// A well-formed expression of other numbers.
    WrongNumbers = 3,
    /// Well formed, but a division by zero or a value beyond 128 bits.
    Undefined = 4,
    /// The answer is no expression of digits, `+ - * /` and brackets.
    Malformed = 5,
    /// There is no answer.
    Missing = 6,
}

impl Verdict {
    /// Whether the answer is a legal expression of the given numbers, right or wrong.
    #[must_use]
    pub fn valid(self) -> bool {
        matches!(self, Self::Solved | Self::WrongValue | Self::WrongStatement)
    }
}

/// The text that is read as the expression: the content of the answer, without the frame `[...]` of our own format.
#[must_use]
pub fn expression(completion: &str) -> &str {
    let span = answer_span(completion);
    let framed = span.strip_prefix('[').and_then(|s| s.strip_suffix(']'));
    framed.filter(|inner| !inner.contains(['[', ']'])).unwrap_or(span)
}

/// Grades a completion against the numbers and the target.
#[must_use]
pub fn grade(completion: &str, numbers: &[i64], target: i64) -> Verdict {
    match expr::parse(expression(completion)) {
        Ok(parsed) => judge(&parsed, numbers, target),
        Err(Fault::Empty) => Verdict::Missing,
        Err(Fault::Undefined) => Verdict::Undefined,
        Err(Fault::Character | Fault::Syntax | Fault::TooLarge) => Verdict::Malformed,
    }
}

fn judge(parsed: &Parsed, numbers: &[i64], target: i64) -> Verdict {
    if !same_multiset(parsed.numbers(), numbers) {
        Verdict::WrongNumbers
    } else if parsed.stated.is_some_and(|s| s != parsed.value) {
        Verdict::WrongStatement
    } else if parsed.value == Ratio::int(target) {
        Verdict::Solved
    } else {
        Verdict::WrongValue
    }
}

fn same_multiset(a: &[i64], b: &[i64]) -> bool {
    if a.len() != b.len() || a.len() > MAX_NUMBERS {
        return false;
    }
    let mut left = [0; MAX_NUMBERS];
    let mut right = [0; MAX_NUMBERS];
    left[..a.len()].copy_from_slice(a);
    right[..b.len()].copy_from_slice(b);
    left[..a.len()].sort_unstable();
    right[..b.len()].sort_unstable();
    left == right
}

/// What the generator draws from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// How many numbers a problem has.
    pub count: usize,
    /// Numbers are drawn from `1..=max_number`.
    pub max_number: i64,
    /// Targets and every intermediate value lie in `1..=max_target`.
    pub max_target: i64,
    /// Operators in use: a subset of `+-*/`.
    pub operators: Vec<u8>,
}

/// A problem with one of its solutions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The numbers, in random order.
    pub numbers: Vec<i64>,
    /// The target.
    pub target: i64,
    /// An expression that reaches it, with the fewest brackets.
    pub solution: String,
}

impl Family {
    /// Checks that problems of this family exist.
    pub fn check(&self) -> Result<()> {
        if !(2..=8).contains(&self.count) {
            return Err(Error::value("count", self.count, "2 to 8 numbers"));
        }
        if !(1..=1_000_000).contains(&self.max_number) {
            return Err(Error::value("max_number", self.max_number, "1 to 1000000"));
        }
        if !(2..=1_000_000_000).contains(&self.max_target) {
            return Err(Error::value("max_target", self.max_target, "2 to 1000000000"));
        }
        if self.operators.is_empty() || self.operators.iter().any(|op| !b"+-*/".contains(op)) {
            let got = String::from_utf8_lossy(&self.operators).into_owned();
            return Err(Error::value("operators", format!("'{got}'"), "one or more of + - * /"));
        }
        Ok(())
    }

    /// The numbers of problem `uid`: a pure function of (seed, uid), so a caller can split by them before solving.
    #[must_use]
    pub fn numbers(&self, seed: u64, uid: u64) -> Vec<i64> {
        let mut stream = RowRng::new(seed, uid).stream(Lane::Task, 1);
        (0..self.count).map(|_| 1 + i64::from(stream.below(self.max_number as u32))).collect()
    }

    /// A problem over `numbers`, keyed by (seed, uid): `None` when 256 random expressions gave no whole target in range.
    #[must_use]
    pub fn problem(&self, numbers: &[i64], seed: u64, uid: u64) -> Option<Problem> {
        let rng = RowRng::new(seed, uid);
        (0..256).find_map(|attempt| {
            let (target, solution) = self.draw(numbers, &mut rng.stream(Lane::Task, 2 + attempt))?;
            Some(Problem { numbers: numbers.to_vec(), target, solution })
        })
    }

    /// One random expression tree: two random terms are joined by a random operator until one is left.
    fn draw(&self, numbers: &[i64], stream: &mut Stream) -> Option<(i64, String)> {
        let mut terms: Vec<Term> = numbers.iter().map(|&n| Term::leaf(n)).collect();
        while terms.len() > 1 {
            let a = terms.swap_remove(stream.below(terms.len() as u32) as usize);
            let b = terms.swap_remove(stream.below(terms.len() as u32) as usize);
            let op = self.operators[stream.below(self.operators.len() as u32) as usize];
            terms.push(a.join(op, &b, self.max_target)?);
        }
        terms.pop().filter(|t| (1..=self.max_target).contains(&t.value)).map(|t| (t.value, t.text))
    }
}

/// Most joins that [`solve`] tries: enough for every problem of five numbers.
const MAX_JOINS: usize = 4_000_000;

/// An expression that reaches the target from all the numbers, by trying everything; `None` if there is none of whole
/// positive steps, or none was found within the bound.
#[must_use]
pub fn solve(numbers: &[i64], target: i64) -> Option<String> {
    if numbers.len() > 8 {
        return None;
    }
    let terms: Vec<Term> = numbers.iter().map(|&n| Term::leaf(n)).collect();
    exhaust(&terms, target, &mut { MAX_JOINS })
}

fn exhaust(terms: &[Term], target: i64, joins: &mut usize) -> Option<String> {
    if let [only] = terms {
        return (only.value == target).then(|| only.text.clone());
    }
    for i in 0..terms.len() {
        for j in (0..terms.len()).filter(|&j| j != i) {
            let (a, b) = (&terms[i], &terms[j]);
            // sums and products need one order only
            for op in b"+*-/".iter().filter(|&&op| i < j || op == b'-' || op == b'/') {
                *joins = joins.checked_sub(1)?;
                let Some(joined) = a.join(*op, b, i64::MAX) else { continue };
                let rest =
                    terms.iter().enumerate().filter(|&(k, _)| k != i && k != j).map(|(_, t)| t.clone());
                let rest: Vec<Term> = rest.chain([joined]).collect();
                let found = exhaust(&rest, target, joins);
                if found.is_some() || *joins == 0 {
                    return found;
                }
            }
        }
    }
    None
}

#[derive(Clone)]
struct Term {
    value: i64,
    text: String,
    /// Binding power of the outermost operator: 1 for + and -, 2 for * and /, 3 for a number.
    power: u8,
}

impl Term {
    fn leaf(value: i64) -> Self {
        Self { value, text: value.to_string(), power: 3 }
    }

    fn join(&self, op: u8, other: &Self, limit: i64) -> Option<Self> {
        let (a, b) = (self.value, other.value);
        let (value, power) = match op {
            b'+' => (a.checked_add(b)?, 1),
            b'-' => (a.checked_sub(b)?, 1),
            b'*' => (a.checked_mul(b)?, 2),
            _ if b != 0 && a % b == 0 => (a / b, 2),
            _ => return None,
        };
        if !(1..=limit).contains(&value) {
            return None;
        }
        let strict = matches!(op, b'-' | b'/');
        let left = bracket(&self.text, self.power < power);
        let right = bracket(&other.text, other.power < power || (strict && other.power == power));
        Some(Self { value, text: format!("{left}{}{right}", char::from(op)), power })
    }
}

fn bracket(text: &str, needed: bool) -> String {
    if needed { format!("({text})") } else { text.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn verdicts() {
        let n = [55, 53, 49];
        for (text, want) in [
            ("[55-53+49]", Verdict::Solved),
            ("<answer>\n\\boxed{49 + (55 - 53)}\n</answer><|eot_id|>", Verdict::Solved),
            ("<answer>55-53+49=51</answer>", Verdict::Solved),
            ("<answer>55-53+49=52</answer>", Verdict::WrongStatement),
            ("<answer>[55-53]+49</answer>", Verdict::Solved),
            ("[55+53+49]", Verdict::WrongValue),
            ("[55-53]", Verdict::WrongNumbers),
            ("[55-53+49+49]", Verdict::WrongNumbers),
            ("[55/(53-53)+49]", Verdict::Undefined),
            ("[55-53+49", Verdict::Malformed),
            ("<answer>the answer is 51</answer>", Verdict::Malformed),
            ("<answer></answer>", Verdict::Missing),
            ("", Verdict::Missing),
        ] {
            assert_eq!(grade(text, &n, 51), want, "{text}");
        }
        assert_eq!(grade("[2*3.4]", &[2, 3, 4], 6), Verdict::Malformed);
        assert_eq!(grade("[88**77**66]", &[88, 77, 66], 6), Verdict::Malformed);
    }

    fn family(count: usize, max_number: i64, max_target: i64) -> Family {
        Family { count, max_number, max_target, operators: b"+-*/".to_vec() }
    }

    #[test]
    fn a_bad_family_is_refused() {
        for bad in [family(1, 9, 9), family(9, 9, 9), family(3, 0, 9), family(3, 9, 1)] {
            assert!(bad.check().is_err());
        }
        assert!(Family { operators: b"+^".to_vec(), ..family(3, 9, 99) }.check().is_err());
        assert!(family(3, 20, 99).check().is_ok());
    }

    #[test]
    fn the_solver_finds_what_exists() {
        let found = solve(&[30, 100, 93], 23).unwrap();
        assert_eq!(grade(&found, &[30, 100, 93], 23), Verdict::Solved);
        assert_eq!(solve(&[1, 1], 5), None);
        assert_eq!(solve(&[], 5), None);
        assert_eq!(solve(&[5], 5).as_deref(), Some("5"));
    }

    proptest! {
        #[test]
        fn the_solver_solves_generated_problems(uid: u64) {
            let family = family(4, 20, 99);
            if let Some(made) = family.problem(&family.numbers(1, uid), 1, uid) {
                let found = solve(&made.numbers, made.target).unwrap();
                prop_assert_eq!(grade(&found, &made.numbers, made.target), Verdict::Solved);
            }
        }

        #[test]
        fn generated_problems_are_solved_by_their_solution(
            count in 2usize..6, max_number in 1i64..100, max_target in 10i64..1000, uid: u64
        ) {
            let family = family(count, max_number, max_target);
            let numbers = family.numbers(5, uid);
            prop_assert!(numbers.iter().all(|n| (1..=max_number).contains(n)));
            if let Some(problem) = family.problem(&numbers, 5, uid) {
                prop_assert_eq!(grade(&problem.solution, &problem.numbers, problem.target), Verdict::Solved);
                prop_assert!((1..=max_target).contains(&problem.target));
                prop_assert_eq!(family.problem(&numbers, 5, uid), Some(problem));
            }
        }

        #[test]
        fn total_on_any_text(text in "\\PC{0,60}", numbers in prop::collection::vec(any::<i64>(), 0..40)) {
            let _ = grade(&text, &numbers, 24);
        }
    }
}
