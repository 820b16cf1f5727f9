"""Alignment: how far an estimator's gradient agrees with the policy gradient of the rewarded trajectories, and why.

The policy gradient of a batch is t = grad sum_r A_r log p(trajectory_r) / n_r, all states of every rollout; its mean T
over batches is what an update should follow. An estimate g puts a likelihood over masks in the trajectory's place. Its
alignment is the cosine of one batch's g with T, in the mean square:

    <E g, T> / (sqrt(E |g|^2) |T|) = bias cosine * sqrt(signal),

    bias cosine = cos(E g, T),   1 = signal + mask noise + rollout noise, shares of E |g|^2.

Mask noise falls with more passes, rollout noise with more completions, bias with neither. All products are between
different batches, so that none is biased by a batch's own noise. Shapes: B batches, M draws of the masks, D parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stp_rs._core import Design
from stp_rs.data.trajectories import Rollout
from stp_rs.models.base import DiffusionModel, passes_without_dropout
from stp_rs.objective.masks import Masks, draw_masks
from stp_rs.objective.noise import Estimator, value_and_gradient
from stp_rs.testing.states import PARTS, Part, state_masks
from stp_rs.types import Cost, Floats


@dataclass(frozen=True)
class Alignment:
    """Where one batch's gradient points; see the module. None where the batches do not resolve it."""

    cosine: float | None
    interval: tuple[float, float] | None
    """95 %, jackknife over batches."""
    bias_cosine: float | None
    signal: float
    """Shares of the gradient's mean square; the first may come out below 0."""
    mask_noise: float
    rollout_noise: float
    forwards: float
    """Canvases computed per completion: equal ones of a batch count once."""


def trajectory_gradients(model: DiffusionModel, batches: Sequence[Rollout], temperature: float = 1.0) -> Tensor:
    """Return the exact trajectory gradient of every batch, f32 [B, D]; the batches have advantages."""
    every = Design("trajectory", 0)
    return torch.stack([_gradient(model, b, draw_masks(every, b, seed=0), False, temperature)[0] for b in batches])


def align(
    model: DiffusionModel,
    batches: Sequence[Rollout],
    target_BD: Tensor,
    estimator: Estimator,
    *,
    draws: int = 2,
    read: Sequence[Rollout] | None = None,
) -> Alignment:
    """Return the alignment of an estimator with the trajectory gradients of the batches.

    Args:
        model: the policy; gradients are for its parameters that require one.
        batches: B >= 2 batches of whole groups, with advantages.
        target_BD: their `trajectory_gradients`.
        estimator: the design and how it is applied.
        draws: draws of the masks per batch, at least 2.
        read: the batches as another pruning reads them (`prunings.as_pruned`), the same tokens.
    """
    means, squares, noise, forwards = [], [], [], 0.0
    per_token, temperature = estimator.design.per_token, estimator.temperature
    for batch in batches if read is None else read:
        masks = [estimator.masks(batch, m) for m in range(draws)]
        if all(_equal(masks[0], other) for other in masks[1:]):  # one gradient is that of every draw
            masks = masks[:1]
        drawn = [_gradient(model, batch, one, per_token, temperature) for one in masks]
        stacked_MD = torch.stack([gradient_D for gradient_D, _ in drawn])
        means.append(stacked_MD.mean(0))
        squares.append(float((stacked_MD**2).sum(1).mean()))
        noise.append(float(((stacked_MD - means[-1]) ** 2).sum() / max(1, len(masks) - 1)))
        forwards += sum(cost.forwards for _, cost in drawn) / len(masks)
    mean_BD, rows = torch.stack(means), sum(len(batch) for batch in batches)
    return summarise(
        (mean_BD @ mean_BD.T).double().numpy(),
        (mean_BD @ target_BD.T).double().numpy(),
        (target_BD @ target_BD.T).double().numpy(),
        np.array(squares),
        np.array(noise),
        forwards=forwards / rows,
    )


def align_trajectories(batches: Sequence[Rollout], target_BD: Tensor) -> Alignment:
    """Return the alignment of the trajectories' own gradients, which are known: what a batch says by every state.

    The arguments are those of `align`; forwards are states, of which few are equal.
    """
    gram_BB = (target_BD @ target_BD.T).double().numpy()
    states = sum(len(draw_masks(Design("trajectory", 0), batch, seed=0).row_P) for batch in batches)
    rows = sum(len(batch) for batch in batches)
    return summarise(gram_BB, gram_BB, gram_BB, np.diag(gram_BB), np.zeros(len(batches)), forwards=states / rows)


@dataclass(frozen=True)
class BiasPart:
    """One part of what scoring all masked tokens at visited states estimates, against the trajectories' gradient."""

    size: float | None
    """Norm of its mean gradient over that of the trajectories; None where the batches do not resolve it."""
    cosine: float | None
    """Of the two mean gradients."""


def bias_parts(
    model: DiffusionModel, batches: Sequence[Rollout], target_BD: Tensor, temperature: float = 1.0
) -> dict[Part, BiasPart]:
    """Return the parts of the sum over visited states, by name: surrogate = trajectory + weights + earliness.

    `divided` is the surrogate whose weights are divided out (`stp_rs.testing.states` defines all).

    Args:
        model: the policy.
        batches: B >= 2 batches of whole groups, with advantages.
        target_BD: their `trajectory_gradients`.
        temperature: of the law that drew them.
    """
    masks = [state_masks(batch) for batch in batches]

    def gradients(part: Part) -> Tensor:
        each = [_gradient(model, b, m[part], False, temperature)[0] for b, m in zip(batches, masks, strict=True)]
        return torch.stack(each)

    weights_BD, earliness_BD, divided_BD = gradients("weights"), gradients("earliness"), gradients("divided")
    known = {
        "trajectory": target_BD,
        "surrogate": target_BD + weights_BD + earliness_BD,  # gradients are linear in the weights
        "divided": divided_BD,
        "weights": weights_BD,
        "earliness": earliness_BD,
    }
    found: dict[Part, BiasPart] = {}
    target = _between((target_BD @ target_BD.T).double().numpy())
    for part in PARTS:
        own_BD = known[part]
        size = _between((own_BD @ own_BD.T).double().numpy())
        resolved = size > 0 and target > 0
        cross = _between((own_BD @ target_BD.T).double().numpy())
        found[part] = BiasPart(
            float(np.sqrt(size / target)) if resolved else None,
            cross / float(np.sqrt(size * target)) if resolved else None,
        )
    return found


def _between(gram_BB: Floats) -> float:
    """Return the mean inner product of different batches."""
    count = len(gram_BB)
    return float((gram_BB.sum() - np.trace(gram_BB)) / (count * (count - 1)))


def summarise(
    own_BB: Floats, cross_BB: Floats, target_BB: Floats, square_B: Floats, noise_B: Floats, *, forwards: float
) -> Alignment:
    """Return the alignment from the inner products of the batches' gradients.

    Args:
        own_BB: <mean over masks of g_b, of g_c>.
        cross_BB: <mean over masks of g_b, t_c>.
        target_BB: <t_b, t_c>.
        square_B: mean over masks of |g_b|^2.
        noise_B: trace of the covariance over masks of g_b.
        forwards: see `Alignment`.
    """

    def between(gram_BB: Floats, kept: NDArray[np.int64]) -> float:
        return _between(gram_BB[np.ix_(kept, kept)])

    def cosine(kept: NDArray[np.int64], square: float) -> float | None:
        size = square * between(target_BB, kept)
        return between(cross_BB, kept) / float(np.sqrt(size)) if size > 0 else None

    everything = np.arange(len(square_B))
    total, signal = float(square_B.mean()), between(own_BB, everything)
    left_out = [np.delete(everything, b) for b in everything] if len(everything) > 2 else []
    around = [cosine(kept, float(square_B[kept].mean())) for kept in left_out]
    middle, interval = cosine(everything, total), None
    values = np.array([value for value in around if value is not None])
    if middle is not None and len(values) == len(everything) > 2:
        half = 1.96 * float(np.sqrt((len(values) - 1) * values.var()))
        interval = (middle - half, middle + half)
    share = max(total, 1e-300)
    mask = float(noise_B.mean()) / share
    return Alignment(
        cosine=middle,
        interval=interval,
        bias_cosine=cosine(everything, signal) if signal > 0 else None,
        signal=signal / share,
        mask_noise=mask,
        rollout_noise=1.0 - signal / share - mask,
        forwards=forwards,
    )


def _equal(one: Masks, other: Masks) -> bool:
    """Return whether two draws are the same passes with the same weights."""
    pairs = ((one.row_P, other.row_P), (one.mask_PL, other.mask_PL), (one.weight_PL, other.weight_PL))
    same = all(np.array_equal(a, b) for a, b in pairs)
    if one.prompt_PW is None or other.prompt_PW is None:
        return same and one.prompt_PW is other.prompt_PW
    return same and np.array_equal(one.prompt_PW, other.prompt_PW)


def _gradient(
    model: DiffusionModel, batch: Rollout, masks: Masks, per_token: bool, temperature: float
) -> tuple[Tensor, Cost]:
    """Return the gradient of sum_r A_r L_r / n_r, f32 [D] on the CPU; a mean per token is divided by n_r already."""
    cost = Cost()
    tokens_R = np.ones(len(batch)) if per_token else masks.scored_RL.sum(1).clip(min=1)
    coefficient_R = torch.from_numpy(batch.weights() / tokens_R).float()
    with passes_without_dropout(model.module):
        _, gradient_D = value_and_gradient(model, batch, masks, coefficient_R, temperature=temperature, cost=cost)
    return gradient_D.float().cpu(), cost
