"""The same completions scored as if nothing, space, time or both had been pruned.

The tokens stay the same, so that numbers under two prunings differ by the pruning alone and can be compared row by
row. A pruning is applied by another `unmask_step`, which says what tokens are scored (>= 0) and on which plan.

Shapes: R rows, L completion length, N scored positions.
"""

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from stp_rs._core import permutation, plan_counts, row_uid, scored_counts
from stp_rs.config.presets import PRUNINGS
from stp_rs.data.trajectories import Rollout
from stp_rs.models.base import DiffusionModel, passes_without_dropout
from stp_rs.objective.bounds import pass_logprobs
from stp_rs.objective.masks import (
    MAX_TOKENS,
    Masks,
    canvas_lengths,
    hide_undrawn,
    scored_tokens,
)
from stp_rs.testing.exact import Levels, exact_levels, score_table
from stp_rs.types import Mark

if TYPE_CHECKING:
    from stp_rs.config.arguments import Config


PRUNED = {"none": (False, False), "spatial": (True, False), "temporal": (False, True), "both": (True, True)}
"""Pruning -> (anchors are context only, the row's temporal merge is kept)."""

ORDERS = 32
"""Random masks per count for a(l) and v(l) where there are more than `EVERY`."""
EVERY = 256
"""Counts with at most so many masks have them all: the smallest counts, whose weights n/l are the largest."""


def with_pruning(config: "Config") -> "Config":
    """Return the configuration itself if it prunes, else with the pruning of the `stp` preset."""
    if config.stp_spatial != "none" or config.stp_temporal != "none":
        return config
    return replace(config, **PRUNINGS["stp"])


def as_pruned(rollout: Rollout, pruning: str, diffusion_steps: int) -> Rollout:
    """Return a rollout's completions as if they had been pruned in one way.

    `both` is the rollout itself. `temporal` also scores the prior tokens, on the whole completion's plan with the row's
    merge (as `score_prior` does); `spatial` and `none` undo the merge. Where tokens need a new step they keep their
    order, prior tokens first.

    Args:
        rollout: pruned completions.
        pruning: a key of `PRUNED`.
        diffusion_steps: steps of the plan of a whole unpruned completion.
    """
    rows = rollout
    spatial, temporal = PRUNED[pruning]
    if spatial and temporal:
        return rows
    merged_RL = np.empty_like(rows.unmask_step)
    scored_counts(rows.unmask_step, merged_RL, score_prior=True, diffusion_steps=diffusion_steps)
    unmask_step = rows.unmask_step.copy()
    for old_L, new_L, merged_L in zip(rows.unmask_step, unmask_step, merged_RL, strict=True):
        scored_N = np.flatnonzero(scored_tokens(old_L, not spatial))
        length = int((old_L != Mark.OUTSIDE).sum())
        steps = math.ceil(len(scored_N) * diffusion_steps / max(length, 1))
        counts = merged_L[merged_L > 0].tolist() if temporal else plan_counts(len(scored_N), steps)
        order_N = scored_N[np.argsort(old_L[scored_N], kind="stable")]
        new_L[order_N] = np.repeat(np.arange(len(counts)), -np.diff([*counts, 0]))
    return replace(rows, unmask_step=unmask_step)


def plans_of(rows: Rollout) -> list[list[int]]:
    """Return the mask counts of every row's plan; empty where nothing is scored."""
    counts_RL = np.empty_like(rows.unmask_step)
    scored_counts(rows.unmask_step, counts_RL, score_prior=False, diffusion_steps=1)
    return [counts_L[counts_L > 0].tolist() for counts_L in counts_RL]


def row_levels(model: DiffusionModel, rows: Rollout, row: int, *, temperature: float, seed: int) -> tuple[Levels, bool]:
    """Return (a(l) and v(l) of a row, whether they are exact).

    Up to 12 scored tokens all masks are enumerated; beyond, the counts with at most 256 masks have them all and each
    other count has 32 keyed random ones (prefixes of orders).
    """
    scored_N = np.flatnonzero(rows.unmask_step[row] >= 0)
    if len(scored_N) <= MAX_TOKENS:
        return exact_levels(score_table(model, rows, row, temperature=temperature)), True
    n, uid = len(scored_N), int(rows.uid[row])
    orders = [scored_N[permutation(seed, row_uid(uid, order), n)] for order in range(ORDERS)]
    every = [math.comb(n, count) <= EVERY for count in range(n + 1)]
    chosen = [
        (count, positions)
        for count in range(1, n + 1)
        for positions in (itertools.combinations(scored_N, count) if every[count] else [o[:count] for o in orders])
    ]
    count_P = np.array([count for count, _ in chosen])
    mask_PL = np.zeros((len(chosen), rows.unmask_step.shape[1]), dtype=np.uint8)
    for mask_L, (_, positions) in zip(mask_PL, chosen, strict=True):
        mask_L[list(positions)] = 1
    one = rows.select([row])
    masks = Masks(
        mask_PL=mask_PL,
        weight_PL=mask_PL.astype(np.float32),
        row_P=np.zeros(len(mask_PL), dtype=np.int32),
        scored_RL=(one.unmask_step >= 0).astype(np.uint8),
        length_R=canvas_lengths(one.unmask_step),
    )
    hide_undrawn(masks.mask_PL, one.unmask_step, masks.row_P)
    with torch.no_grad(), passes_without_dropout(model.module):
        logprob_PL = pass_logprobs(model, one, masks, temperature=temperature, forward_batch_size=512)
    mean_P = logprob_PL.sum(1).double().cpu().numpy() / count_P
    a, v = np.zeros(n + 1), np.zeros(n + 1)
    for count in range(1, n + 1):
        of_count = mean_P[count_P == count]
        a[count], v[count] = of_count.mean(), of_count.var(ddof=0 if every[count] else 1)
    return Levels(a, v), False
