//! The pure-Rust core of `stp_rs`: no Python, no unsafe code, no global state.
//!
//! Data flows one way: priors fix positions of a canvas, a plan says how many tokens each denoising step reveals,
//! the scheduler follows it, and a design turns it into weighted masks.
#![forbid(unsafe_code)]

pub mod corrupt;
pub mod error;
pub mod layout;
pub mod marks;
pub mod prior;
pub mod rng;
pub mod rollout;
pub mod schedule;
pub mod select;
pub mod temporal;
pub mod unmasking;

pub use error::{Error, Result};
