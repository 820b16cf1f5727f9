//! Graders: bounded, total functions from a completion to a score.
