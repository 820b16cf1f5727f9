//! The list of designs: names, targets and where each comes from.

use super::{MAX_NUM_MC, Options};
use crate::error::{Error, Result};

/// The code that draws a design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    UniformCount,
    Systematic,
    Cover,
}

/// What the expectation of a design estimates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// `E(plan) = sum_s c_s a(l_s)`; on the plan n, n-1, ..., 1 it is the full ELBO.
    PlanElbo,
    /// `sum_{l=1..n} a(l)`, whatever the plan.
    FullElbo,
    /// The log-likelihood of the realised trajectory.
    Trajectory,
    /// All tokens at once from the fully masked canvas.
    OneStep,
    /// The left-to-right log-likelihood.
    Autoregressive,
    /// A quantity of its own, as published.
    Published,
}

impl Target {
    /// The name used in configs and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::PlanElbo => "plan_elbo",
            Self::FullElbo => "full_elbo",
            Self::Trajectory => "trajectory",
            Self::OneStep => "one_step",
            Self::Autoregressive => "autoregressive",
            Self::Published => "published",
        }
    }
}

/// What is known about a design before anything is drawn.
#[derive(Debug, PartialEq, Eq)]
pub struct Info {
    /// The config string.
    pub name: &'static str,
    pub(super) kind: Kind,
    pub(super) reads_plan: bool,
    /// Whether it was published before this project.
    pub published: bool,
    /// Whether its expectation equals the target for every policy and every legal plan (without `truncate`).
    pub unbiased: bool,
    /// What it estimates.
    pub target: Target,
    /// One line for a reader who chooses.
    pub about: &'static str,
}

static DESIGNS: [Info; 3] = [
    Info {
        name: "uniform_count",
        kind: Kind::UniformCount,
        reads_plan: true,
        published: true,
        unbiased: true,
        target: Target::PlanElbo,
        about: "independent counts from the plan, uniform masks, weight n/(K l) (LLaDA evaluation, VRPO)",
    },
    Info {
        name: "systematic",
        kind: Kind::Systematic,
        reads_plan: true,
        published: true,
        unbiased: true,
        target: Target::PlanElbo,
        about: "K evenly spaced counts with one shared offset, uniform masks, weight n/(K l)",
    },
    Info {
        name: "cover",
        kind: Kind::Cover,
        reads_plan: true,
        published: false,
        unbiased: true,
        target: Target::PlanElbo,
        about: "systematic counts, each mask on the positions with the least weight so far; the default",
    },
];

/// All designs.
pub fn designs() -> &'static [Info] {
    &DESIGNS
}

impl Info {
    /// Checks the options that do not depend on a row.
    pub(super) fn check(&self, options: &Options) -> Result<()> {
        let smallest = 1;
        if options.num_mc < smallest || options.num_mc > MAX_NUM_MC {
            let need = format!("{smallest} to {MAX_NUM_MC} for design '{}'", self.name);
            return Err(Error::value("num_mc", options.num_mc, need));
        }
        Ok(())
    }
}
