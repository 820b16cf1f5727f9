//! Likelihood designs: laws over weighted masks.
//!
//! Every likelihood estimator in the literature is a list of K corrupted canvases with weights, `{(M_k, w_k)}`, and
//! `L_hat = sum_k sum_{i in M_k} w_{k,i} f_i(M_k)`, where `f_i(M)` is the log-probability of token i when M is masked.
//! A [`Design`] is a law for (M, w): a new estimator is a new law, never a new path through the model.
//! See `docs/designs.md` for the table and `docs/paper_map.md` for the equations.

mod chance;
mod counts;
mod cover;
mod law;
mod partition;
mod prompt;
mod ratio;
mod registry;
mod row;
mod states;
mod visited;

pub use law::Outcome;
pub use prompt::prompt_mask;
pub use registry::{Info, Target, designs};

use crate::error::{Error, Result, check_len};
use chance::{Chance, Keyed, MAX_ITERATION};
use registry::Kind;
use row::{Real, Row, Writer, checked_plan};

/// Passes per row that a key can hold.
const MAX_NUM_MC: usize = 4096;
/// Completion positions that a design can address.
const MAX_LENGTH: usize = 65_535;

/// What a design may be told besides its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// K: passes (corrupted canvases) per row. `trajectory`, `state` and `decision` read 0 as all states.
    pub num_mc: usize,
    /// Inner iterations m over which `unigrpo` spreads its mask ratios.
    pub num_iterations: usize,
    /// Block length of `block_random`, in completion positions.
    pub block_length: usize,
    /// Bounds of the mask ratio of `bernoulli` and `coupled`, inside 0..=1; of the states of `state` and `canvas`,
    /// whose upper bound is 1.
    pub truncate: Option<(f64, f64)>,
    /// `state`, `canvas`: divide a token's weight by its expected weight, so that early and late tokens count alike.
    pub divide_weights: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { num_mc: 2, num_iterations: 1, block_length: 0, truncate: None, divide_weights: false }
    }
}

/// A batch of rows, row-major: what may be masked, the plan that is scored, and what the rollout did.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// R, the number of rows.
    pub rows: usize,
    /// L, the completion length.
    pub length: usize,
    /// `u8[R, L]`: 1 where a position may be masked (the free positions, or all L when the prior is scored).
    pub eligible: &'a [u8],
    /// T, the width of `unmask_counts`.
    pub max_steps: usize,
    /// `i32[R, T]`: `l_1 = n > l_2 > ... > 0`, zero-padded on the right.
    pub unmask_counts: &'a [i32],
    /// `i32[R, L]`: the step that revealed a position, or one of [`crate::marks::MARKS`].
    pub unmask_step: &'a [i32],
    /// `f32[R, L]`, or empty: what a revealed token adds to the mass in proportion to which `state`, `canvas` and
    /// `decision` draw the state that revealed it. Empty counts tokens.
    pub mass: &'a [f32],
}

/// What names the randomness: masks are a function of (seed, uid, iteration, pass) and of the row, of nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// The run's seed.
    pub seed: u64,
    /// `u64[R]`: the rows' uids.
    pub uids: &'a [u64],
    /// Index of the inner iteration (optimiser updates on one batch, not micro-batches).
    pub iteration: u32,
}

/// Caller-allocated results. P is the sum of [`Design::passes`]; rows keep their order and their passes together.
#[derive(Debug)]
pub struct Out<'a> {
    /// `u8[P, L]`: 1 where the canvas is masked.
    pub mask: &'a mut [u8],
    /// `f32[P, L]`: weights, zero outside the mask.
    pub weight: &'a mut [f32],
    /// `i32[P]`: the row of each pass.
    pub row: &'a mut [i32],
}

/// Memory kept between calls, so that drawing allocates nothing after the first batches.
#[derive(Debug, Default)]
pub struct Scratch {
    free: Vec<u32>,
    work: Work,
}

/// Working memory of one row.
#[derive(Debug, Default)]
struct Work {
    items: Vec<u32>,
    rest: Vec<u32>,
    starts: Vec<u32>,
    lightest: cover::ByWeight,
    fit: cover::Fit,
    visits: visited::Visits,
}

/// A law over weighted masks.
#[derive(Debug, Clone, PartialEq)]
pub struct Design {
    info: &'static Info,
    options: Options,
    /// Of `quadrature`, else empty.
    nodes: Vec<(f64, f64)>,
}

/// Everything a design's code works with: one row, its randomness, its passes.
struct Job<'a, C, W> {
    design: &'a Design,
    iteration: u32,
    row: Row<'a>,
    chance: &'a mut C,
    out: Writer<'a, W>,
    work: &'a mut Work,
}

impl<C, W> Job<'_, C, W> {
    /// K as configured.
    fn num_mc(&self) -> usize {
        self.design.options.num_mc
    }
}

impl Design {
    /// The design called `name`; see [`designs`] for the list.
    pub fn new(name: &str, options: Options) -> Result<Self> {
        let Some(info) = designs().iter().find(|info| info.name == name) else {
            let names: Vec<&str> = designs().iter().map(|info| info.name).collect();
            return Err(Error::value("design", name, format!("one of {}", names.join(", "))));
        };
        info.check(&options)?;
        let nodes = match info.kind {
            Kind::Quadrature => counts::gauss_legendre(options.num_mc),
            _ => Vec::new(),
        };
        Ok(Self { info, options, nodes })
    }

    /// Name, target and provenance.
    pub fn info(&self) -> &'static Info {
        self.info
    }

    /// The options it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Whether the expectation equals the target exactly, for every policy and every legal plan.
    pub fn unbiased(&self) -> bool {
        self.info.unbiased && self.options.truncate.is_none()
    }

    /// Writes the number of passes of each row: `i32[R]`. `batch.unmask_step` is not read and may be empty.
    pub fn passes(&self, batch: &Batch<'_>, scratch: &mut Scratch, out: &mut [i32]) -> Result<()> {
        batch.check(false)?;
        check_len("passes", out.len(), batch.rows)?;
        for (index, passes) in out.iter_mut().enumerate() {
            let row = batch.row(self.info, index, &mut scratch.free)?;
            *passes = self.row_passes(&row)? as i32;
        }
        Ok(())
    }

    /// Draws the masks and weights of every row.
    pub fn draw(
        &self,
        batch: &Batch<'_>,
        keys: &Keys<'_>,
        out: &mut Out<'_>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        batch.check(true)?;
        check_len("uids", keys.uids.len(), batch.rows)?;
        self.check_iteration(keys.iteration)?;
        let passes = out.row.len();
        check_len("mask", out.mask.len(), passes * batch.length)?;
        check_len("weight", out.weight.len(), passes * batch.length)?;
        let Scratch { free, work } = scratch;
        let mut done = 0;
        for (index, &uid) in keys.uids.iter().enumerate() {
            let row = batch.row(self.info, index, free)?;
            let count = self.row_passes(&row)?;
            if done + count > passes {
                return Err(Error::shape("row", passes, "the sum of passes(eligible, unmask_counts)"));
            }
            out.row[done..done + count].fill(index as i32);
            let at = done * batch.length..(done + count) * batch.length;
            let writer = Writer::new(batch.length, &mut out.mask[at.clone()], &mut out.weight[at]);
            let chance = &mut Keyed::new(keys.seed, uid, keys.iteration);
            let iteration = keys.iteration;
            self.draw_row(&mut Job { design: self, iteration, row, chance, out: writer, work })?;
            done += count;
        }
        check_len("row", passes, done)
    }

    fn check_iteration(&self, iteration: u32) -> Result<()> {
        let last = match self.info.kind {
            Kind::Unigrpo => self.options.num_iterations as u32 - 1,
            _ => MAX_ITERATION,
        };
        if iteration > last {
            let need = format!("0 to {last} (an inner iteration, counted in optimiser updates)");
            return Err(Error::value("iteration", iteration, need));
        }
        Ok(())
    }

    fn row_passes(&self, row: &Row<'_>) -> Result<usize> {
        let (num_mc, steps) = (self.options.num_mc, row.plan.len());
        if row.n() == 0 {
            return Ok(0);
        }
        Ok(match self.info.kind {
            Kind::MeanField => 1,
            Kind::Autoregressive => row.n(),
            Kind::Ordered => steps,
            Kind::Trajectory if num_mc == 0 => steps,
            Kind::Trajectory | Kind::StepMerge => num_mc.min(steps),
            Kind::Decision | Kind::TopStates => visited::count(num_mc, steps),
            Kind::State => visited::count(num_mc, visited::upper(row, self.options.truncate)),
            Kind::Canvas => num_mc.min(visited::upper(row, self.options.truncate)),
            Kind::Balanced => {
                partition::check(row, num_mc)?;
                partition::groups(row, num_mc)
            }
            _ => num_mc,
        })
    }

    fn draw_row<C: Chance, W: Real>(&self, job: &mut Job<'_, C, W>) -> Result<()> {
        if job.row.n() == 0 {
            return Ok(());
        }
        match self.info.kind {
            Kind::MeanField => ratio::mean_field(job),
            Kind::Bernoulli => ratio::bernoulli(job),
            Kind::UniformCount => counts::uniform_count(job),
            Kind::Systematic => counts::systematic(job),
            Kind::Quadrature => counts::quadrature(job),
            Kind::Coupled => ratio::coupled(job),
            Kind::Unigrpo => counts::unigrpo(job),
            Kind::StpPaper => counts::stp_paper(job),
            Kind::Trajectory => states::trajectory(job)?,
            Kind::StepMerge => states::step_merge(job)?,
            Kind::State => visited::state(job)?,
            Kind::Canvas => visited::canvas(job)?,
            Kind::Decision => visited::decision(job)?,
            Kind::TopStates => visited::top_states(job)?,
            Kind::Autoregressive => states::autoregressive(job),
            Kind::BlockRandom => states::block_random(job),
            Kind::Cover => cover::cover(job),
            Kind::Spread => cover::spread(job),
            Kind::Pairs => cover::pairs(job),
            Kind::Sink => cover::sink(job),
            Kind::Balanced => partition::balanced(job),
            Kind::Ordered => partition::ordered(job),
        }
        Ok(())
    }
}

impl Batch<'_> {
    fn check(&self, with_steps: bool) -> Result<()> {
        if self.length > MAX_LENGTH {
            return Err(Error::value("completion length", self.length, format!("at most {MAX_LENGTH}")));
        }
        check_len("eligible", self.eligible.len(), self.rows * self.length)?;
        check_len("unmask_counts", self.unmask_counts.len(), self.rows * self.max_steps)?;
        if with_steps {
            check_len("unmask_step", self.unmask_step.len(), self.rows * self.length)?;
        }
        if !self.mass.is_empty() {
            check_len("mass", self.mass.len(), self.rows * self.length)?;
        }
        Ok(())
    }

    /// Row `index`; its eligible positions go to `free`.
    fn row<'a>(&'a self, info: &Info, index: usize, free: &'a mut Vec<u32>) -> Result<Row<'a>> {
        let at = index * self.length..(index + 1) * self.length;
        free.clear();
        for (i, &flag) in self.eligible[at.clone()].iter().enumerate() {
            match flag {
                0 => {}
                1 => free.push(i as u32),
                other => {
                    let got = format!("{other} in row {index} at position {i}");
                    return Err(Error::value("eligible", got, "0 or 1"));
                }
            }
        }
        let counts = &self.unmask_counts[index * self.max_steps..(index + 1) * self.max_steps];
        let plan = if info.reads_plan {
            checked_plan(info.name, index, counts, free.len())?
        } else {
            &[] as &[i32]
        };
        let unmask_step = self.unmask_step.get(at.clone()).unwrap_or_default();
        let mass = self.mass.get(at).unwrap_or_default();
        Ok(Row { index, design: info.name, free, plan, unmask_step, mass })
    }
}

#[cfg(test)]
mod tests;
