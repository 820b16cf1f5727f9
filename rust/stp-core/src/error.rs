//! One error type for the whole core: what it got, what it needs, how to fix it.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Every way in which a call into the core can fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// An array has the wrong length or shape.
    Shape {
        /// The argument's name.
        name: &'static str,
        /// The shape it has.
        got: String,
        /// The shape it needs.
        need: String,
    },
    /// A value is outside its domain.
    Value {
        /// The argument's name.
        name: &'static str,
        /// The value it has.
        got: String,
        /// The domain, and how to get into it.
        need: String,
    },
    /// Two priors fix the same position to different tokens.
    PriorConflict {
        /// Row of the batch.
        row: usize,
        /// Completion position.
        position: usize,
        /// Token id already there.
        first: i64,
        /// Token id of the later prior.
        second: i64,
    },
    /// A design cannot be drawn for this plan; `need` names the smallest legal change.
    Design {
        /// The design's name.
        name: &'static str,
        /// What the plan is.
        got: String,
        /// The smallest change that makes it legal.
        need: String,
    },
    /// A call came at the wrong time (for example `commit` before `next_step`).
    State {
        /// What was wrong.
        got: String,
        /// What to call instead.
        need: String,
    },
    /// The core panicked: a defect of the core, never of its caller.
    Panic {
        /// The panic's message.
        message: String,
    },
}

/// The core's result type.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { name, got, need } => {
                write!(f, "{name}: got shape {got}, needs {need}")
            }
            Self::Value { name, got, need } => write!(f, "{name}: got {got}, needs {need}"),
            Self::PriorConflict { row, position, first, second } => write!(
                f,
                "priors conflict in row {row} at completion position {position}: one fixes token \
                 {first}, a later one token {second}; drop one of the two or move it"
            ),
            Self::Design { name, got, need } => {
                write!(f, "design '{name}' is not valid for this plan: got {got}, needs {need}")
            }
            Self::State { got, need } => write!(f, "{got}; {need}"),
            Self::Panic { message } => write!(f, "the Rust core panicked: {message}; please report this"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// A [`Error::Shape`] from anything printable.
    pub fn shape(name: &'static str, got: impl fmt::Display, need: impl fmt::Display) -> Self {
        Self::Shape { name, got: got.to_string(), need: need.to_string() }
    }

    /// A [`Error::Value`] from anything printable.
    pub fn value(name: &'static str, got: impl fmt::Display, need: impl fmt::Display) -> Self {
        Self::Value { name, got: got.to_string(), need: need.to_string() }
    }

    /// A [`Error::State`] from anything printable.
    pub fn state(got: impl fmt::Display, need: impl fmt::Display) -> Self {
        Self::State { got: got.to_string(), need: need.to_string() }
    }
}

/// What `work` returns; [`Error::Panic`] where it panics.
pub fn catch<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<&str>().map(ToString::to_string);
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Err(Error::Panic { message: text.unwrap_or_else(|| "no message".to_string()) })
    })
}

/// Checks that a slice has the expected length.
pub fn check_len(name: &'static str, got: usize, need: usize) -> Result<()> {
    if got == need { Ok(()) } else { Err(Error::shape(name, got, need)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::panic, reason = "what a panic becomes is what is tested")]
    fn a_panic_is_an_error_that_says_so() {
        let number = 7;
        let caught = |work: fn(i32) -> i32| catch(|| Ok(work(number))).map_err(|error| error.to_string());
        let says = |message: &str| Err(format!("the Rust core panicked: {message}; please report this"));
        assert_eq!(caught(|_| panic!("on purpose")), says("on purpose"));
        assert_eq!(caught(|n| panic!("number {n}")), says("number 7"));
        assert_eq!(caught(|n| std::panic::panic_any(n)), says("no message"));
        assert_eq!(caught(|n| n + 1), Ok(8), "and the core goes on");
        assert_eq!(catch(|| check_len("x", 1, 2)), check_len("x", 1, 2), "errors pass as they are");
    }
}
