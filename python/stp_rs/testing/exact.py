"""Exact values by enumeration of all masks: their scores, the plan ELBO, and the mean and variance of a design.

For one completion of n <= 12 scored tokens: all 2^n - 1 masks are run through the model (or come from a table), and
expectations over a design are sums over its law (`Design.law`).

Shapes: N scored positions, M = 2^N masks (row m has position i masked where bit i is set), O outcomes, P passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs._core import Design
from stp_rs.data.trajectories import Rollout
from stp_rs.models.base import DiffusionModel, passes_without_dropout
from stp_rs.objective.bounds import pass_logprobs
from stp_rs.objective.masks import every_mask, mask_bits, reveals
from stp_rs.types import Floats


@dataclass(frozen=True)
class ScoreTable:
    """f_i(M) of one completion, for every mask M of its scored positions and every i in M."""

    score_MN: Floats
    """[2^n, n]; 0 where i is not in M."""

    @property
    def n(self) -> int:
        """Scored positions."""
        return int(self.score_MN.shape[1])

    def with_anchors(self, anchors: Sequence[int]) -> "ScoreTable":
        """Return the table of the other positions when `anchors` stay visible: spatial pruning of the likelihood."""
        free = [i for i in range(self.n) if i not in set(anchors)]
        rows = mask_bits(len(free)) @ (1 << np.array(free, dtype=np.int64))
        return ScoreTable(self.score_MN[rows][:, free])


@dataclass(frozen=True)
class Levels:
    """a(l) and v(l): mean and variance over uniform masks of l tokens of the mean log-prob of the masked tokens."""

    a: Floats
    """[n + 1]; entry 0 is 0."""
    v: Floats
    """[n + 1]; entry 0 is 0."""

    @property
    def n(self) -> int:
        """Scored positions."""
        return len(self.a) - 1


@dataclass(frozen=True)
class Moments:
    """Exact moments of a design's estimate, in the design's own units."""

    mean: float
    between: float
    """Variance of the mean given the counts: the law of total variance's first part."""
    within: float
    """Mean of the variance given the counts: which tokens are masked together."""
    coverage: float
    """Variance of a token's total weight, averaged over tokens."""

    @property
    def variance(self) -> float:
        """Both parts together."""
        return self.between + self.within


@torch.no_grad()
def score_table(
    model: DiffusionModel,
    completions: Rollout,
    row: int,
    *,
    score_prior: bool = False,
    temperature: float = 1.0,
) -> ScoreTable:
    """Return the scores of all masks of a row, by 2^n - 1 canvases through the likelihood's own path."""
    one, masks = every_mask(completions, row, score_prior=score_prior)
    free = np.flatnonzero(masks.scored_RL[0])
    score_MN = np.zeros((1 << len(free), len(free)))
    if len(free):
        with passes_without_dropout(model.module):
            logprob_PL = pass_logprobs(model, one, masks, temperature=temperature, forward_batch_size=512)
        score_MN[1:] = logprob_PL.cpu().numpy()[:, free]
    return ScoreTable(score_MN)


def exact_levels(table: ScoreTable) -> Levels:
    """Return a(l) and v(l) of a table."""
    size_M = mask_bits(table.n).sum(1)
    mean_M = table.score_MN.sum(1) / np.maximum(size_M, 1)
    a, v = np.zeros(table.n + 1), np.zeros(table.n + 1)
    for count in range(1, table.n + 1):
        a[count] = mean_M[size_M == count].mean()
        v[count] = mean_M[size_M == count].var()
    return Levels(a, v)


def plan_elbo(levels: Levels, counts: Sequence[int]) -> float:
    """Return E(plan) = sum_s c_s a(l_s); on the plan n, n-1, ..., 1 it is the full ELBO."""
    return float(reveals(counts) @ levels.a[list(counts)])


def design_moments(
    design: Design,
    table: ScoreTable,
    counts: Sequence[int],
    *,
    unmask_step: Sequence[int] | None = None,
    iteration: int = 0,
) -> Moments:
    """Return mean and variance of a design's estimate over its whole law.

    Args:
        design: the law of masks and weights.
        table: scores of all masks.
        counts: the plan's mask counts, from n down.
        unmask_step: the step that revealed each scored position; read by `trajectory` only.
        iteration: index of the inner iteration.
    """
    probability_O, mask_OPN, weight_OPN = law_arrays(design, counts, unmask_step, iteration)
    rows_OP = mask_OPN @ (1 << np.arange(table.n))
    estimate_O = (weight_OPN * table.score_MN[rows_OP]).sum((1, 2))
    sizes = mask_OPN.sum(2)
    _, group_O = np.unique(sizes, axis=0, return_inverse=True)
    group_O = group_O.reshape(-1)
    mass = np.bincount(group_O, probability_O)
    mean_given_counts = np.bincount(group_O, probability_O * estimate_O) / mass
    mean = float(probability_O @ estimate_O)
    total_ON = weight_OPN.sum(1)
    coverage_N = probability_O @ total_ON**2 - (probability_O @ total_ON) ** 2
    return Moments(
        mean=mean,
        between=float(mass @ (mean_given_counts - mean) ** 2),
        within=float(probability_O @ (estimate_O - mean_given_counts[group_O]) ** 2),
        coverage=float(coverage_N.mean()),
    )


def law_arrays(
    design: Design, counts: Sequence[int], unmask_step: Sequence[int] | None = None, iteration: int = 0
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Return a design's law for n free positions: probability [O], mask [O, P, N], weight [O, P, N]."""
    n = counts[0]
    if unmask_step is None:
        unmask_step = np.repeat(np.arange(len(counts)), reveals(counts)).tolist()
    law = design.law(
        np.ones((1, n), dtype=np.uint8),
        np.array([list(counts)], dtype=np.int32),
        np.array([unmask_step], dtype=np.int32),
        iteration=iteration,
    )
    probability, mask, weight = zip(*law, strict=True)
    return np.array(probability), np.array(mask, dtype=np.int64), np.array(weight)
