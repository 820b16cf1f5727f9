"""The variance table: every design, number of passes and pruning, measured on a policy's own rollouts.

Shapes: R rows (completions), M draws of the masks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stp_rs._core import Design
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import DesignError, InvalidValueError
from stp_rs.eval.alignment import Alignment
from stp_rs.eval.prunings import PRUNED, as_pruned, plans_of, row_levels
from stp_rs.models.base import DiffusionModel, passes_without_dropout
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import make_design as configured_design
from stp_rs.objective.noise import Estimator, gradient_noise
from stp_rs.testing.exact import Levels, plan_elbo
from stp_rs.testing.variance import coverage_variance, sampled_coverage
from stp_rs.types import Floats

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig

PASSES = (1, 2, 4, 8)
PUBLISHED_ITERATIONS = 4
"""Inner iterations that `unigrpo` spreads its mask ratios over, as published."""
_STATES = {"decision": "doubt"}
"""What published designs of visited states draw them in proportion to, where it is not what they reveal."""
BOOTSTRAPS = 2000


@dataclass(frozen=True)
class VarianceRow:
    """One line of the table. All numbers are of the estimate of a whole completion, means over completions."""

    design: str
    published: bool
    passes: int
    """K; where a design does not use K, the passes that it makes."""
    pruning: str
    target: str
    """What the design's expectation is; `bias` compares with it, for `one_step` and `published` with the plan ELBO."""
    forwards: float
    """Canvases per completion and draw."""
    tokens: float
    """Scored tokens per completion."""
    bias: float
    """nats"""
    bias_ci: tuple[float, float]
    variance: float
    """Over masks, nats squared."""
    per_token_sd: float
    """Root of the mean of variance / tokens^2: noise of a mean log-prob."""
    coverage_variance: float | None
    """Of a token's total weight; None where it is infinite."""
    gradient_trace: float
    """Trace of the covariance over masks of the gradient of the estimate."""
    gradient_trace_ci: tuple[float, float]
    gradient_snr: float | None
    """None where masks add no noise."""
    alignment: float | None = None
    """Cosine of one batch's gradient with the trajectories' mean gradient; None where it was not measured."""
    alignment_ci: tuple[float, float] | None = None
    bias_cosine: float | None = None
    """Cosine of the mean gradient with it: what neither passes nor completions mend."""
    mask_noise: float | None = None
    """Share of the gradient's mean square that is the masks' doing."""
    rollout_noise: float | None = None
    """Share that is the completions'."""
    batch_forwards: float | None = None
    """Canvases computed per completion of a batch: equal ones count once."""


@dataclass(frozen=True)
class AlignmentRow:
    """One line of the table of alignments alone; the fields are those of `VarianceRow`."""

    design: str
    passes: int
    pruning: str
    alignment: float | None
    alignment_ci: tuple[float, float] | None
    bias_cosine: float | None
    mask_noise: float
    rollout_noise: float
    batch_forwards: float

    @classmethod
    def of(cls, design: Design, pruning: str, aligned: Alignment) -> "AlignmentRow":
        """Return a design's line."""
        return cls(design.name, design.num_mc, pruning, **_aligned_columns(aligned))


@dataclass(frozen=True)
class Measurement:
    """What was measured of one design, number of passes and pruning, row by row."""

    design: Design
    pruning: str
    coverage: float | None
    forwards_R: Floats
    tokens_R: Floats
    bias_R: Floats
    variance_R: Floats
    trace_R: Floats
    signal_R: Floats

    @property
    def key(self) -> tuple[str, int, str]:
        """(design, K, pruning)."""
        return self.design.name, self.design.num_mc, self.pruning


@dataclass(frozen=True)
class Setting:
    """What all measurements of a table share: the model, the law that is scored, the number of draws."""

    model: DiffusionModel
    temperature: float
    diffusion_steps: int
    block_length: int
    draws: int
    seed: int
    own: "STPConfig | None" = None
    """The run, whose options its own design has; the others have their published ones."""

    def design(self, name: str, num_mc: int) -> Design:
        """Return a design: the run's own with the run's options, another with its published ones."""
        if self.own is not None and self.own.stp_design == name:
            return configured_design(self.own, num_mc)
        iterations = PUBLISHED_ITERATIONS if name == "unigrpo" else 1
        return Design(name, num_mc, num_iterations=iterations, block_length=self.block_length)

    def estimator(self, design: Design) -> Estimator:
        """Return how a design is applied."""
        plain = Estimator(design, seed=self.seed, temperature=self.temperature)
        own = self.own
        if own is not None and own.stp_design == design.name:
            return replace(
                plain, num_iterations=own.num_iterations, states=own.stp_states, prompt_mask=own.stp_prompt_mask
            )
        iterations = PUBLISHED_ITERATIONS if design.name == "unigrpo" else 1
        return replace(plain, num_iterations=iterations, states=_STATES.get(design.name, "reveals"))


@dataclass(frozen=True)
class PrunedBatch:
    """Completions scored as if pruned in one way, with the values that estimates are compared with."""

    pruning: str
    rows: Rollout
    plans: list[list[int]]
    levels: list[Levels]

    def target(self, row: int, kind: str) -> float:
        """Return the reference value of a row: the full ELBO or the ELBO of its plan."""
        full = range(self.levels[row].n, 0, -1)
        return plan_elbo(self.levels[row], full if kind == "full_elbo" else self.plans[row])


def pruned_batches(setting: Setting, rollout: Rollout) -> list[PrunedBatch]:
    """Return a rollout's completions under each of `PRUNED`; a(l) and v(l) once per set of scored positions."""
    known: dict[bool, list[Levels]] = {}
    batches = []
    for pruning, (spatial, _) in PRUNED.items():
        rows = as_pruned(rollout, pruning, setting.diffusion_steps)
        if spatial not in known:
            known[spatial] = [
                row_levels(setting.model, rows, row, temperature=setting.temperature, seed=setting.seed)[0]
                for row in range(len(rows.uid))
            ]
        batches.append(PrunedBatch(pruning, rows, plans_of(rows), known[spatial]))
    return batches


def list_measurements(
    setting: Setting, batches: Sequence[PrunedBatch], names: Iterable[str], passes: Sequence[int] = PASSES
) -> tuple[list[tuple[Design, PrunedBatch]], list[str]]:
    """Return the legal (design, batch) pairs, each number of passes once, and what was refused and why."""
    pairs, refused = [], []
    for batch in batches:
        for name in names:
            seen = set()
            for num_mc in passes:
                try:
                    design = setting.design(name, num_mc)
                    forwards = len(setting.estimator(design).masks(batch.rows, 0).row_P)
                except (DesignError, InvalidValueError) as error:
                    refused.append(f"{name}, K = {num_mc}, {batch.pruning}: {error}")
                    continue
                if forwards not in seen:
                    pairs.append((design, batch))
                seen.add(forwards)
    return pairs, refused


def measure(setting: Setting, design: Design, batch: PrunedBatch) -> Measurement:
    """Return the bias, variance and gradient noise of every row over `draws` draws of its masks."""
    estimator, measured = setting.estimator(design), []
    for row, plan in enumerate(batch.plans):
        one = batch.rows.select([row])
        scale = float(plan[0]) if design.per_token and plan else 1.0
        noise = gradient_noise(setting.model, one, estimator, draws=setting.draws, coefficient_R=np.array([scale]))
        value_M = noise.value_MR[:, 0] * scale
        target = _target(setting, design, batch, row, value_M)
        forwards = len(estimator.masks(one, 0).row_P)
        tokens = plan[0] if plan else 0
        measured.append((forwards, tokens, value_M.mean() - target, value_M.var(ddof=1), noise.trace, noise.signal))
    return Measurement(
        design,
        batch.pruning,
        _coverage(design, batch, estimator.num_iterations),
        *np.array(measured, dtype=np.float64).T,
    )


def _target(setting: Setting, design: Design, batch: PrunedBatch, row: int, value_M: Floats) -> float:
    if design.target == "autoregressive":  # it has one outcome, which is what it estimates
        return float(value_M.mean())
    if design.target == "trajectory":
        one = batch.rows.select([row])
        every_state = Estimator(Design("trajectory", 0)).masks(one, 0)
        with torch.no_grad(), passes_without_dropout(setting.model.module):
            return float(token_elbo(setting.model, one, every_state, temperature=setting.temperature).sum())
    return batch.target(row, design.target)


def _coverage(design: Design, batch: PrunedBatch, num_iterations: int) -> float | None:
    if design.name == "bernoulli":  # E[1/t] diverges
        return None
    iterations = range(num_iterations)
    known: dict[tuple[int, ...], float] = {}
    for plan in batch.plans:
        if plan and tuple(plan) not in known:
            closed = coverage_variance(design, plan)
            sampled = [] if closed is not None else [sampled_coverage(design, plan, iteration=j) for j in iterations]
            known[tuple(plan)] = float(np.mean(sampled)) if closed is None else closed
    return float(np.mean([known[tuple(plan)] for plan in batch.plans if plan])) if known else 0.0


def bootstrap(statistic: Callable[[Any], Floats], rows: int, seed: int) -> tuple[float, float]:
    """Return the 95 % percentile interval of a statistic over resampled rows.

    Args:
        statistic: row indices [B, R] -> one value per resample [B].
        rows: R.
        seed: of this function's own generator.
    """
    picked_BR = np.random.default_rng(seed).integers(0, rows, (BOOTSTRAPS, rows))
    low, high = np.quantile(statistic(picked_BR), [0.025, 0.975])
    return float(low), float(high)


def mean_interval(value_R: Floats, seed: int = 0) -> tuple[float, float]:
    """Return the interval of the mean over rows."""
    return bootstrap(lambda i: value_R[i].mean(1), len(value_R), seed)


def ratio(top_R: Floats, base_R: Floats, seed: int = 0) -> tuple[float, float, float]:
    """Return the ratio of two sums over the same rows with its interval; rows are resampled in pairs."""
    low, high = bootstrap(lambda i: top_R[i].sum(1) / base_R[i].sum(1), len(top_R), seed)
    return float(top_R.sum() / base_R.sum()), low, high


def summarise(measured: Measurement, seed: int = 0, aligned: Alignment | None = None) -> VarianceRow:
    """Return a measurement's line of the table, with bootstrap intervals over rows, and its alignment if given."""
    trace = float(measured.trace_R.mean())
    forwards = float(measured.forwards_R.mean())
    signal = max(0.0, float(measured.signal_R.mean()))
    return VarianceRow(
        design=measured.design.name,
        published=measured.design.published,
        passes=max(measured.design.num_mc, round(forwards)),
        pruning=measured.pruning,
        target=measured.design.target,
        forwards=forwards,
        tokens=float(measured.tokens_R.mean()),
        bias=float(measured.bias_R.mean()),
        bias_ci=mean_interval(measured.bias_R, seed),
        variance=float(measured.variance_R.mean()),
        per_token_sd=float(np.sqrt((measured.variance_R / np.maximum(measured.tokens_R, 1) ** 2).mean())),
        coverage_variance=measured.coverage,
        gradient_trace=trace,
        gradient_trace_ci=mean_interval(measured.trace_R, seed),
        gradient_snr=float(np.sqrt(signal / trace)) if trace > 0 else None,
        **({} if aligned is None else _aligned_columns(aligned)),
    )


def _aligned_columns(aligned: Alignment) -> dict[str, Any]:
    return {
        "alignment": aligned.cosine,
        "alignment_ci": aligned.interval,
        "bias_cosine": aligned.bias_cosine,
        "mask_noise": aligned.mask_noise,
        "rollout_noise": aligned.rollout_noise,
        "batch_forwards": aligned.forwards,
    }


def to_json(rows: Iterable[VarianceRow | AlignmentRow]) -> list[dict[str, Any]]:
    """Return the table as plain values."""
    return [asdict(row) for row in rows]
