"""Gradient noise: the mean and variance of a likelihood gradient over draws of the masks.

Shapes: R rows, M draws of the masks, L completion length, D parameters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stp_rs._core import Design, row_uid
from stp_rs.data.trajectories import Rollout
from stp_rs.models.base import DiffusionModel, device_of, passes_without_dropout
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import (
    Masks,
    draw_masks,
    every_mask,
    mask_prompts,
    reveals,
    scored_tokens,
    scores_prior,
    take_passes,
)
from stp_rs.types import Cost, Floats

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig


PASS_TOKENS = 8192
"""Tokens of the passes whose graph is kept at once: all states of a batch would not fit a real policy's memory."""
ROUNDING = 1e-12
"""A trace below this share of the gradients' squares is rounding."""


@dataclass(frozen=True)
class Estimator:
    """A design and how it is applied to rows: what `draw_masks` and `token_elbo` need beside them."""

    design: Design
    seed: int = 0
    num_iterations: int = 1
    """A draw takes one of the inner iterations at random."""
    score_prior: bool = False
    diffusion_steps: int = 1
    temperature: float = 1.0
    allowed: Tensor | None = None
    """The law's possible tokens, as in `token_elbo`."""
    states: str = "reveals"
    """As in `draw_masks`."""
    prompt_mask: float = 0.0
    """The probability of masking a prompt token."""

    def masks(self, completions: Rollout, draw: int) -> Masks:
        """Return the masks of a draw: a function of (seed, draw, uid)."""
        seed, iteration = row_uid(self.seed, draw), row_uid(self.seed, draw, 1) % self.num_iterations
        masks = draw_masks(
            self.design,
            completions,
            seed=seed,
            iteration=iteration,
            score_prior=self.score_prior,
            diffusion_steps=self.diffusion_steps,
            states=self.states,
        )
        return mask_prompts(masks, completions, self.prompt_mask, seed=seed, iteration=iteration)


@dataclass(frozen=True)
class GradientNoise:
    """Estimates over resampled masks and the moments of their gradient."""

    value_MR: Floats
    """Every draw's estimate of every row, in the design's units."""
    trace: float
    """Trace of the gradient's covariance over masks (unbiased)."""
    signal: float
    """Squared norm of the mean gradient (unbiased, so it may come out below 0)."""
    cosine: float | None
    """Mean cosine of a draw's gradient to the exact one, where that was given."""
    cost: Cost
    """Of all draws."""

    @property
    def snr(self) -> float | None:
        """Norm of the mean gradient over the root of the trace; None where masks add no noise."""
        return math.sqrt(max(self.signal, 0.0) / self.trace) if self.trace > 0 else None


def gradient_noise(
    model: DiffusionModel,
    completions: Rollout,
    estimator: Estimator,
    *,
    draws: int,
    coefficient_R: Floats | None = None,
    exact_D: Tensor | None = None,
) -> GradientNoise:
    """Return the moments of the gradient of sum_r coefficient_r L_hat_r over `draws` draws of the masks.

    Rows have independent masks, so the covariance of the sum is the sum of theirs. No `.grad` is touched and no global
    random generator is used.

    Args:
        model: the policy; gradients are for its parameters that require one.
        completions: R rows.
        estimator: the design and how it is applied.
        draws: at least 2.
        coefficient_R: what the estimates are multiplied by before they are added up; 1 by default.
        exact_D: gradient to compare with.
    """
    rows = len(completions.token_ids)
    coefficient = torch.from_numpy(np.ones(rows) if coefficient_R is None else coefficient_R).float()
    values, total_D, squares, cosines, cost = [], None, 0.0, [], Cost()
    with passes_without_dropout(model.module):
        for draw in range(draws):
            masks = estimator.masks(completions, draw)
            value_R, gradient_D = value_and_gradient(
                model,
                completions,
                masks,
                coefficient,
                temperature=estimator.temperature,
                allowed=estimator.allowed,
                cost=cost,
            )
            values.append(value_R)
            squares += float(gradient_D @ gradient_D)
            total_D = gradient_D if total_D is None else total_D + gradient_D
            if exact_D is not None:
                cosines.append(float(torch.cosine_similarity(gradient_D, exact_D, dim=0)))
    assert total_D is not None  # noqa: S101 - draws >= 2; this tells the type checker
    mean_square = float(total_D @ total_D) / draws**2
    trace = (squares - draws * mean_square) / (draws - 1)
    trace = trace if trace > ROUNDING * squares else 0.0
    return GradientNoise(
        value_MR=np.stack(values),
        trace=trace,
        signal=mean_square - trace / draws,
        cosine=float(np.mean(cosines)) if cosines else None,
        cost=cost,
    )


def value_and_gradient(
    model: DiffusionModel,
    completions: Rollout,
    masks: Masks,
    coefficient_R: Tensor,
    *,
    temperature: float = 1.0,
    allowed: Tensor | None = None,
    cost: Cost | None = None,
) -> tuple[Floats, Tensor]:
    """Return the estimate of every row, f64 [R], and the gradient of their weighted sum, f64 [D].

    The model runs in the mode it is in; what it computes is added to `cost`. Passes are taken a few at a time
    (`PASS_TOKENS`), equal canvases together.
    """
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    value_R = np.zeros(len(completions))
    gradient_D = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=device_of(model))
    for part in _in_parts(completions, masks):
        with torch.enable_grad():
            elbo_R = token_elbo(model, completions, part, temperature=temperature, allowed=allowed, cost=cost).sum(-1)
            total = (coefficient_R.to(elbo_R.device) * elbo_R).sum()
        value_R += elbo_R.detach().double().cpu().numpy()
        if total.requires_grad:  # else nothing was scored
            found = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
            gradient_D = gradient_D + torch.cat([one.reshape(-1) for one in found])
    return value_R, gradient_D


def _in_parts(completions: Rollout, masks: Masks) -> list[Masks]:
    """Return the passes in parts of `PASS_TOKENS` tokens of different canvases, of one at least.

    Equal canvases stay together, and where few are equal each is computed: a part has less than twice as many tokens.
    """
    row_P, width = masks.row_P, completions.prompt_ids.shape[1] + completions.token_ids.shape[1]
    size = max(1, PASS_TOKENS // width)
    if len(row_P) <= size:
        return [masks]
    shown_PL = np.where(masks.mask_PL == 1, -1, completions.token_ids[row_P])
    prompt_PW = np.column_stack([completions.prompt_length, completions.prompt_ids])[row_P]
    if masks.prompt_PW is not None:
        prompt_PW = np.hstack([prompt_PW, masks.prompt_PW])
    seen: dict[bytes, int] = {}
    part_P = np.array([seen.setdefault(row.tobytes(), len(seen)) // size for row in np.hstack([prompt_PW, shown_PL])])
    return [take_passes(masks, np.flatnonzero(part_P == part)) for part in range(int(part_P.max()) + 1)]


def exact_gradient(
    model: DiffusionModel,
    completions: Rollout,
    row: int,
    counts: Sequence[int],
    *,
    score_prior: bool = False,
    temperature: float = 1.0,
) -> tuple[float, Tensor]:
    """Return E(plan) of a row and its gradient, f64 [D], over all masks of its (at most 12) scored tokens."""
    one, masks = every_mask(completions, row, score_prior=score_prior)
    size_P = masks.weight_PL.sum(1).astype(np.int64)
    n = counts[0]
    weight_l = np.zeros(n + 1)
    weight_l[list(counts)] = reveals(counts) / [math.comb(n, count) * count for count in counts]
    weighted = replace(masks, weight_PL=(masks.weight_PL * weight_l[size_P, None]).astype(np.float32))
    with passes_without_dropout(model.module):
        value_R, gradient_D = value_and_gradient(model, one, weighted, torch.ones(1), temperature=temperature)
    return float(value_R[0]), gradient_D


UPDATE_DRAWS = 4
"""Draws of the masks that `update_noise` compares."""


def update_noise(
    model: DiffusionModel,
    design: Design,
    config: "STPConfig",
    batch: Rollout,
    allowed: Tensor | None = None,
) -> tuple[dict[str, float], Cost]:
    """Return the mask noise of a micro-batch as metrics, and what it cost.

    `diffusion/logp_var` is the variance over masks of a completion's estimate, in nats squared, averaged over the rows;
    `diffusion/grad_snr` the signal-to-noise ratio of the gradient of sum_r advantage_r L_hat_r / n_r, left out where
    masks add no noise. It is measured on the ELBO with all scored tokens weighed by the completion's advantage: upper
    bounds, `stp_blame_prior`, `stp_least_prob` and the advantages of single states are left out. Four fresh draws of
    the masks; training's own are untouched.
    """
    score_prior = scores_prior(design, config.stp_score_prior)
    estimator = Estimator(
        design,
        seed=config.seed,
        num_iterations=config.num_iterations,
        score_prior=score_prior,
        diffusion_steps=config.diffusion_steps or config.max_completion_length,
        temperature=config.temperature,
        states=config.stp_states,
        prompt_mask=config.stp_prompt_mask,
        allowed=allowed,
    )
    tokens_R = scored_tokens(batch.unmask_step, score_prior).sum(1).clip(min=1)
    scale_R = tokens_R if design.per_token else np.ones(len(batch))
    weight_R = np.where(batch.weights() < 0, config.stp_negative_advantage_weight, 1.0)
    coefficient_R = batch.weights() * weight_R * scale_R / tokens_R
    noise = gradient_noise(model, batch, estimator, draws=UPDATE_DRAWS, coefficient_R=coefficient_R)
    variance_R = (noise.value_MR * scale_R).var(0, ddof=1)
    metrics = {"diffusion/logp_var": float(variance_R.mean())}
    if noise.snr is not None:
        metrics["diffusion/grad_snr"] = noise.snr
    return metrics, noise.cost
