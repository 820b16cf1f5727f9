"""SPG's upper bound of the log-likelihood (EUBO), its mixture with the ELBO, and the log-probs of single passes.

A design's weights average to 1 per token, so the ELBO of token i is a weighted mean over passes of its log-prob f_i and
the EUBO is a weighted power mean of its probability (SPG, arXiv 2510.09541):

    ELBO_i = sum_k w_{k,i} f_i(M_k)        EUBO_i = (1/beta) log sum_k w_{k,i} exp(beta f_i(M_k))

Shapes: R rows, P passes (canvases), L completion length.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stp_rs.config.sections import LikelihoodConfig
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import InvalidValueError
from stp_rs.models.base import DiffusionModel
from stp_rs.objective.head import Entropies
from stp_rs.objective.likelihood import token_estimates
from stp_rs.objective.masks import Masks
from stp_rs.rollout.params import restricted
from stp_rs.types import Cost


def pass_logprobs(
    model: DiffusionModel,
    completions: Rollout,
    masks: Masks,
    *,
    temperature: float = 1.0,
    forward_batch_size: int = 0,
    allowed: Tensor | None = None,
    cost: Cost | None = None,
) -> Tensor:
    """Return f_i(M_k), f32 [P, L]: the log-prob of every scored token in every pass by itself, 0 elsewhere.

    `token_elbo` is their weighted sum over the passes of a row. Arguments are as there.
    """
    return pass_estimates(
        model,
        completions,
        masks,
        temperature=temperature,
        forward_batch_size=forward_batch_size,
        allowed=allowed,
        cost=cost,
    )[0]


def pass_estimates(
    model: DiffusionModel,
    completions: Rollout,
    masks: Masks,
    *,
    temperature: float = 1.0,
    forward_batch_size: int = 0,
    allowed: Tensor | None = None,
    cost: Cost | None = None,
    entropies: Entropies = "none",
) -> tuple[Tensor, Tensor | None]:
    """Return the log-prob of every scored token in every pass by itself, f32 [P, L], and its entropy (NaN elsewhere).

    Arguments are those of `token_estimates`.
    """
    passes = len(masks.row_P)
    alone = replace(
        masks,
        weight_PL=(masks.weight_PL != 0).astype(np.float32),
        row_P=np.arange(passes, dtype=np.int32),
        scored_RL=masks.scored_RL[masks.row_P],
        length_R=masks.length_R[masks.row_P],
    )
    rows = completions.select(masks.row_P)
    return token_estimates(
        model,
        rows,
        alone,
        temperature=temperature,
        forward_batch_size=forward_batch_size,
        allowed=restricted(allowed, masks.row_P),
        cost=cost,
        entropies=entropies,
    )


def token_bounds(
    logprob_PL: Tensor, masks: Masks, *, beta: float = 1.5, per_token: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (elbo, eubo) of every token, f32 [R, L], from one set of passes.

    The power mean is a log-sum-exp: a token whose probability underflows keeps its value and its gradient. A token that
    is in no mask has value 0 and no gradient in both. EUBO >= ELBO where a token's weights sum to 1 (on average over
    masks otherwise), and it grows with beta.

    Args:
        logprob_PL: from `pass_logprobs`.
        masks: the passes; weights >= 0.
        beta: power of the mean, at least 1.
        per_token: the design's flag of this name: its weights make a mean per token and are multiplied by n here.

    Raises:
        InvalidValueError: beta below 1, or a negative weight.
    """
    if beta < 1.0:
        raise InvalidValueError(f"beta: got {beta}, needs at least 1 (below it the power mean is no upper bound)")
    if (masks.weight_PL < 0).any():
        raise InvalidValueError("weight: got a negative one, needs weights >= 0")
    device = logprob_PL.device
    row_P = torch.from_numpy(masks.row_P.astype(np.int64)).to(device)
    weight_PL = torch.from_numpy(masks.weight_PL).to(device)
    if per_token:
        weight_PL = weight_PL * torch.from_numpy(masks.scored_RL.sum(1, dtype=np.float32)).to(device)[row_P, None]
    zero_RL = logprob_PL.new_zeros(masks.scored_RL.shape)
    elbo_RL = zero_RL.index_add(0, row_P, weight_PL * logprob_PL)
    term_PL = (beta * logprob_PL + weight_PL.log()).masked_fill(weight_PL == 0, float("-inf"))
    peak_RL = torch.full_like(zero_RL, float("-inf")).scatter_reduce(
        0, row_P[:, None].expand_as(term_PL), term_PL.detach(), "amax"
    )
    peak_RL = peak_RL.masked_fill(peak_RL == float("-inf"), 0.0)
    total_RL = zero_RL.index_add(0, row_P, (term_PL - peak_RL[row_P]).exp())
    unseen_RL = total_RL == 0
    eubo_RL = (peak_RL + total_RL.masked_fill(unseen_RL, 1.0).log()) / beta
    return elbo_RL, eubo_RL.masked_fill(unseen_RL, 0.0)


def upper_share(config: LikelihoodConfig) -> float | None:
    """Return the weight of the upper bound in estimates of bad completions, by `stp_bound`; None is the ELBO alone."""
    return {"elbo": None, "eubo": 1.0, "mixture": config.stp_bound_mixture}[config.stp_bound]


def sandwich(elbo_RL: Tensor, eubo_RL: Tensor, advantages_R: Tensor, *, mixture: float = 0.5) -> Tensor:
    """Return SPG's token estimate [R, L]: the ELBO where the advantage is positive, else mixture EUBO + rest ELBO.

    Pushing an upper bound down lowers the likelihood itself; pushing a lower bound down need not.

    Args:
        elbo_RL: from `token_bounds`.
        eubo_RL: from `token_bounds`.
        advantages_R: one per row.
        mixture: weight of the EUBO, in [0, 1]; 1 is the EUBO alone.
    """
    mixed_RL = mixture * eubo_RL + (1.0 - mixture) * elbo_RL
    return torch.where(advantages_R[:, None] > 0, elbo_RL, mixed_RL)
