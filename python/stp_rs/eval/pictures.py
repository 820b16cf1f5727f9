"""The numbers behind the figure of `stp-rs variance`: variance over training, over rows, and by share of anchors.

Shapes: R rows, L completion length, M draws of the masks.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from stp_rs._core import permutation
from stp_rs.data.trajectories import Rollout
from stp_rs.eval.variance import ratio
from stp_rs.models.base import DiffusionModel, passes_without_dropout
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.noise import Estimator
from stp_rs.types import Floats, Mark

SHARES = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
"""Shares of anchors that the third picture compares."""


@torch.no_grad()
def sampled_variance(model: DiffusionModel, completions: Rollout, estimator: Estimator, draws: int) -> Floats:
    """Return the variance over masks of every row's estimate, f64 [R] in nats squared, without gradients."""
    with passes_without_dropout(model.module):
        values = [
            token_elbo(
                model,
                completions,
                estimator.masks(completions, draw),
                temperature=estimator.temperature,
                forward_batch_size=512,
            ).sum(-1)
            for draw in range(draws)
        ]
    return torch.stack(values).double().var(0).cpu().numpy()


def with_random_anchors(rows: Rollout, share: float, seed: int) -> Rollout:
    """Return rows of which a random share of the scored tokens is context only; the rest is revealed one by one.

    The anchors are the completion's own tokens, as if static data had given them before decoding. They are nested: a
    larger share keeps those of a smaller one.
    """
    unmask_step = rows.unmask_step.copy()
    for step_L, uid in zip(unmask_step, rows.uid.tolist(), strict=True):
        scored_N = np.flatnonzero(step_L >= 0)
        order_N = scored_N[permutation(seed, uid, len(scored_N))]
        anchors = round(share * len(scored_N))
        step_L[order_N[:anchors]] = Mark.PRIOR
        step_L[order_N[anchors:]] = np.arange(len(scored_N) - anchors)
    return replace(rows, unmask_step=unmask_step)


def variance_by_anchors(
    model: DiffusionModel, rows: Rollout, estimator: Estimator, draws: int, shares: Sequence[float] = SHARES
) -> list[tuple[float, float, float, float]]:
    """Return (scored tokens, variance, its 95 % interval) over the first share's, for each share of anchors."""
    measured = []
    for share in shares:
        anchored = with_random_anchors(rows, share, estimator.seed)
        measured.append(((anchored.unmask_step >= 0).sum(1), sampled_variance(model, anchored, estimator, draws)))
    tokens_R, variance_R = measured[0]
    return [(float(n.sum() / tokens_R.sum()), *ratio(v, variance_R)) for n, v in measured]
