//! The list of designs: names, targets and where each comes from.

use super::chance::MAX_ITERATION;
use super::{MAX_NUM_MC, Options};
use crate::error::{Error, Result};

/// The code that draws a design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    MeanField,
    Bernoulli,
    UniformCount,
    Systematic,
    Quadrature,
    Coupled,
    Unigrpo,
    StpPaper,
    Trajectory,
    StepMerge,
    State,
    Canvas,
    Decision,
    TopStates,
    Autoregressive,
    BlockRandom,
    Cover,
    Spread,
    Pairs,
    Sink,
    Balanced,
    Ordered,
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
    /// A mean per token of log-probs at states that the rollout visited.
    States,
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
            Self::States => "states",
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
    /// Whether `unmask_counts` is read (and checked); the others take n from the eligible positions alone.
    pub reads_plan: bool,
    /// Whether it was published before this project.
    pub published: bool,
    /// Whether its expectation equals the target for every policy and every legal plan (without `truncate`).
    pub unbiased: bool,
    /// What it estimates.
    pub target: Target,
    /// One line for a reader who chooses.
    pub about: &'static str,
}

impl Info {
    /// An entry of the list: published, unbiased, for the plan ELBO; the methods below say otherwise.
    const fn new(name: &'static str, kind: Kind, about: &'static str) -> Self {
        let target = Target::PlanElbo;
        Self { name, kind, reads_plan: true, published: true, unbiased: true, target, about }
    }

    /// With another target; only the designs of a plan read it.
    const fn target(mut self, target: Target) -> Self {
        self.target = target;
        self.reads_plan = matches!(target, Target::PlanElbo | Target::Trajectory | Target::States);
        self
    }

    const fn biased(mut self) -> Self {
        self.unbiased = false;
        self
    }

    const fn ours(mut self) -> Self {
        self.published = false;
        self
    }

    const fn on_the_plan(mut self) -> Self {
        self.reads_plan = true;
        self
    }
}

static DESIGNS: [Info; 22] = [
    Info::new("mean_field", Kind::MeanField, "all masked, each token once, one pass (Diffu-GRPO)")
        .target(Target::OneStep)
        .biased(),
    Info::new("bernoulli", Kind::Bernoulli, "ratio t ~ U(0, 1), weight 1/(K t) (LLaDA pre-training)")
        .target(Target::FullElbo),
    Info::new(
        "uniform_count",
        Kind::UniformCount,
        "independent counts from the plan, uniform masks, weight n/(K l) (LLaDA evaluation, VRPO)",
    ),
    Info::new(
        "systematic",
        Kind::Systematic,
        "K evenly spaced counts with one shared offset, uniform masks, weight n/(K l)",
    ),
    Info::new(
        "quadrature",
        Kind::Quadrature,
        "fixed counts at K Gauss-Legendre nodes, uniform masks, weight n w/l (GDPO)",
    )
    .biased(),
    Info::new(
        "coupled",
        Kind::Coupled,
        "K/2 complementary pairs with ESPO's weights; truncate=(0.2, 0.8) and K = 3: coupled-GRPO's",
    )
    .target(Target::FullElbo),
    Info::new(
        "unigrpo",
        Kind::Unigrpo,
        "mask ratio spread over the inner iterations, mean over masked tokens (UniGRPO)",
    )
    .target(Target::Published)
    .on_the_plan()
    .biased(),
    Info::new(
        "stp_paper",
        Kind::StpPaper,
        "counts U{1..n}, mean over all scored positions without the 1/l of an ELBO (STP)",
    )
    .target(Target::Published)
    .biased(),
    Info::new(
        "trajectory",
        Kind::Trajectory,
        "the rollout's own states: all (K = 0), or K of them in proportion to their tokens (TraceRL)",
    )
    .target(Target::Trajectory),
    Info::new(
        "step_merge",
        Kind::StepMerge,
        "the rollout's steps in K even stretches, each scored as one step (d2-StepMerge)",
    )
    .target(Target::Trajectory)
    .biased(),
    Info::new(
        "state",
        Kind::State,
        "K states that the rollout visited, every masked token scored: a mean per token",
    )
    .target(Target::States)
    .biased()
    .ours(),
    Info::new(
        "canvas",
        Kind::Canvas,
        "the fully masked canvas, one forward for a whole group, and K - 1 later states beside it",
    )
    .target(Target::States)
    .biased()
    .ours(),
    Info::new(
        "decision",
        Kind::Decision,
        "K states of the rollout in proportion to a mass, reweighted: where the policy had a choice",
    )
    .target(Target::Trajectory)
    .ours(),
    Info::new(
        "top_states",
        Kind::TopStates,
        "the K states of the rollout with the largest mass, a mean over states (EGSPO, with entropy as mass)",
    )
    .target(Target::States)
    .biased(),
    Info::new("autoregressive", Kind::Autoregressive, "n left-to-right states (JustGRPO)")
        .target(Target::Autoregressive),
    Info::new(
        "block_random",
        Kind::BlockRandom,
        "a random block partly masked, later blocks masked, mean over masked tokens (SPG)",
    )
    .target(Target::Published)
    .biased(),
    Info::new(
        "cover",
        Kind::Cover,
        "systematic counts, each mask on the positions with the least weight so far; the default",
    )
    .ours(),
    Info::new(
        "spread",
        Kind::Spread,
        "cover with ties dealt evenly over the masks so far: cover itself up to K = 2, less noise beyond",
    )
    .ours(),
    Info::new("pairs", Kind::Pairs, "K/2 independent complementary pairs: cover with K = 2, averaged").ours(),
    Info::new("sink", Kind::Sink, "masks of cover, weights fitted to token totals of 1").ours(),
    Info::new(
        "balanced",
        Kind::Balanced,
        "a random partition into K groups, every token scored once with weight 1; needs a merged tail",
    )
    .ours(),
    Info::new("ordered", Kind::Ordered, "one rollout of the plan in a random order, one pass per step")
        .ours(),
];

/// All designs.
pub fn designs() -> &'static [Info] {
    &DESIGNS
}

impl Info {
    /// Whether the weights of a row sum to about 1 (a mean per token) instead of n (a log-likelihood).
    pub fn per_token(&self) -> bool {
        matches!(self.target, Target::Published | Target::States)
    }

    /// Whether it scores what the rollout drew, where it drew it: the recorded log-probs are then the old policy's.
    pub fn recorded(&self) -> bool {
        matches!(self.kind, Kind::Trajectory | Kind::Decision | Kind::TopStates)
    }

    /// Whether its states have expected weights and a bound on their mask ratio.
    fn bounded(&self) -> bool {
        matches!(self.kind, Kind::State | Kind::Canvas)
    }

    /// Checks the options that do not depend on a row.
    pub(super) fn check(&self, options: &Options) -> Result<()> {
        let value = |name, got: usize, need: String| {
            Err(Error::value(name, got, format!("{need} for design '{}'", self.name)))
        };
        let num_mc = options.num_mc;
        let (smallest, largest) = match self.kind {
            Kind::Trajectory | Kind::State | Kind::Decision | Kind::TopStates => (0, MAX_NUM_MC),
            Kind::Coupled | Kind::Pairs => (2, MAX_NUM_MC),
            // the set of passes that mask a position is one u64
            Kind::Sink | Kind::Spread => (1, 64),
            Kind::Quadrature => (1, 256),
            _ => (1, MAX_NUM_MC),
        };
        if !(smallest..=largest).contains(&num_mc) {
            return value("num_mc", num_mc, format!("{smallest} to {largest}"));
        }
        let in_pairs = self.kind == Kind::Pairs || self.kind == Kind::Coupled && options.truncate.is_none();
        if in_pairs && num_mc % 2 == 1 {
            let need = format!("an even number (masks come in pairs), {} or {}", num_mc - 1, num_mc + 1);
            return value("num_mc", num_mc, need);
        }
        if !(1..=MAX_ITERATION as usize).contains(&options.num_iterations) {
            return value("num_iterations", options.num_iterations, format!("1 to {MAX_ITERATION}"));
        }
        if self.kind == Kind::BlockRandom && !(1..=usize::from(u16::MAX)).contains(&options.block_length) {
            return value("block_length", options.block_length, "1 to 65535".into());
        }
        if options.divide_weights && !self.bounded() {
            let need = format!("false: design '{}' has no expected weights (state and canvas do)", self.name);
            return Err(Error::value("divide_weights", true, need));
        }
        self.check_truncate(options.truncate)
    }

    fn check_truncate(&self, truncate: Option<(f64, f64)>) -> Result<()> {
        let Some((low, high)) = truncate else { return Ok(()) };
        let states = self.bounded();
        let reads = states || matches!(self.kind, Kind::Bernoulli | Kind::Coupled);
        if reads && 0.0 <= low && low < high && high <= 1.0 && (!states || high >= 1.0) {
            return Ok(());
        }
        let need = if states {
            "bounds with 0 <= low < high = 1 (the canvas is a state of every rollout)".to_string()
        } else if reads {
            "bounds of a mask ratio with 0 <= low < high <= 1".to_string()
        } else {
            format!("None: design '{}' has no mask ratio (bernoulli, coupled, state, canvas do)", self.name)
        };
        Err(Error::value("truncate", format!("({low}, {high})"), need))
    }
}
