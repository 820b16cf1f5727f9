"""The exact gradient noise of every design from the gradients of all masks, one backward pass each.

With G_M the gradient of sum_{i in M} f_i(M), an estimate that weighs its masks as wholes has the gradient
sum_k w_k G_{M_k}, and the trace of its covariance is a sum over <G_M, G_M'>: one backward pass per mask answers for
every such design.

Shapes: N scored positions (at most 8), M = 2^N masks, S draws of the masks.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from stp_rs._core import Design
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import InvalidValueError
from stp_rs.models.base import DiffusionModel, passes_without_dropout
from stp_rs.objective.masks import every_mask
from stp_rs.objective.noise import value_and_gradient
from stp_rs.testing.variance import draw_plan
from stp_rs.types import Floats

MAX_TOKENS = 8
"""Most scored tokens: their 2^n gradients are in memory together."""


def mask_gram(model: DiffusionModel, completions: Rollout, row: int, *, temperature: float = 1.0) -> Floats:
    """Return <G_M, G_M'> of all masks of a row, f64 [2^n, 2^n], in the order of `exact.mask_bits`.

    Raises:
        InvalidValueError: more than 8 scored tokens.
    """
    tokens = int((completions.unmask_step[row] >= 0).sum())
    if tokens > MAX_TOKENS:
        raise InvalidValueError(
            f"scored tokens: got {tokens}, needs at most {MAX_TOKENS} to keep every mask's gradient"
        )
    one, masks = every_mask(completions, row)
    gradients = []
    with passes_without_dropout(model.module):
        for k in range(len(masks.row_P)):
            part = slice(k, k + 1)
            alone = replace(
                masks, mask_PL=masks.mask_PL[part], weight_PL=masks.weight_PL[part], row_P=masks.row_P[part]
            )
            gradients.append(value_and_gradient(model, one, alone, torch.ones(1), temperature=temperature)[1].float())
    gram_MM = np.zeros((len(gradients) + 1, len(gradients) + 1))
    if gradients:
        stacked_MD = torch.stack(gradients)
        gram_MM[1:, 1:] = (stacked_MD @ stacked_MD.T).double().cpu().numpy()
    return gram_MM


def gram_trace(gram_MM: Floats, design: Design, counts: Sequence[int], *, draws: int = 4096) -> float:
    """Return the trace of the covariance of a design's gradient, over keyed draws of its masks on this plan.

    Raises:
        InvalidValueError: the design weighs the tokens of one mask differently.
    """
    mask_PN, weight_PN, row_P = draw_plan(design, counts, draws)
    largest_P = weight_PN.max(1)
    if not np.allclose(weight_PN, mask_PN * largest_P[:, None], rtol=1e-5):
        raise InvalidValueError(
            f"design {design.name!r}: got unequal weights in one mask, needs masks weighed as wholes"
        )
    weight_SM = np.zeros((draws, len(gram_MM)))
    scale = counts[0] if design.per_token else 1
    np.add.at(weight_SM, (row_P, mask_PN.astype(np.int64) @ (1 << np.arange(counts[0]))), largest_P * scale)
    covariance_MM = np.cov(weight_SM, rowvar=False)
    return float((covariance_MM * gram_MM).sum())
