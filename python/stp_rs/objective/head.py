"""Log-probs of given tokens from hidden states, with gradient, without the logits [N, V] ever being kept.

Each chunk's logits are made, read and dropped. A head that is not trained needs no second look at them: a token's
log-prob depends on its own hidden state only, so that its slope [H] is taken at once and the backward pass multiplies
by it (what fused cross-entropy kernels do, here for any head, any law and any weights): two products with the head's
weights and none in the backward pass. A head that is trained has a gradient of its own, which needs the upstream one:
where all rows fit one chunk it is a plain log-softmax (three products), else its logits are made again in the backward
pass (four). So are those of tokens that share a row of logits, whose slopes would be as many as the tokens, and those
whose entropies have a gradient (docs/adr/0100-the-heads-products.md).

Shapes: H rows of hidden states (their size is the last axis), N targets, V vocabulary.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stp_rs.models.base import DiffusionModel, head_rows, upload
from stp_rs.rollout.logits import candidate_logits
from stp_rs.rollout.params import SamplingParams, allowed_rows

Entropies = Literal["none", "numbers", "gradient"]
"""Whether entropies are made of the logits, and whether gradients flow through them."""


def head_logprobs(
    model: DiffusionModel,
    hidden_HH: Tensor,
    targets_N: Tensor,
    law: SamplingParams,
    places: tuple[Tensor, int],
    own_N: NDArray[np.int64] | None = None,
    entropies: Entropies = "none",
) -> Tensor:
    """Return the log-probs of targets under the law, f32 [N, 1], or [N, 2] with the law's entropies.

    Args:
        model: the policy; only its head is called.
        hidden_HH: hidden states.
        targets_N: token ids.
        law: temperature and allowed tokens.
        places: of the hidden states, row times L plus completion position, and L.
        own_N: ascending, the row of the hidden states that each target reads; None where each reads its own.
        entropies: what is made of them.
    """
    places_H, length = places

    def chunk(hidden: Tensor, at: Tensor, targets: Tensor, own: Tensor | None) -> Tensor:
        logits = candidate_logits(model.head(hidden), model.mask_token_id, allowed_rows(law, at, length))
        logprobs = torch.log_softmax(logits / law.temperature, dim=-1)
        logprob_N = logprobs.gather(-1, targets[:, None]).squeeze(-1) if own is None else logprobs[own, targets]
        if entropies == "none":
            return logprob_N[:, None]
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropies == "gradient"):
            entropy_H = _entropy(logprobs, logprobs.exp())
        return torch.stack((logprob_N, entropy_H if own is None else entropy_H[own]), dim=-1)

    size = head_rows(model)
    own_all = None if own_N is None else upload(hidden_HH.device, own_N)[0]
    graded = torch.is_grad_enabled()
    sloped = graded and hidden_HH.requires_grad and own_N is None and entropies != "gradient"
    sloped = sloped and not _is_trained(model, hidden_HH)
    if len(hidden_HH) <= size and not sloped:
        return chunk(hidden_HH, places_H, targets_N, own_all)
    parts = []
    for start in range(0, len(hidden_HH), size):
        here, mine, own = slice(start, start + size), slice(start, start + size), None
        if own_N is not None and own_all is not None:
            mine = slice(*np.searchsorted(own_N, [start, start + size]))
            own = own_all[mine] - start
        columns = (hidden_HH[here], places_H[here], targets_N[mine])
        if sloped:
            parts.append(_Sloped.apply(columns[0], *_slopes(model, law, length, *columns, entropies != "none")))
        elif graded:
            parts.append(checkpoint(chunk, *columns, own, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(chunk(*columns, own))
    return torch.cat(parts)


def _is_trained(model: DiffusionModel, hidden_HH: Tensor) -> bool:
    """Return whether gradients flow to the head's own weights; no product is made to see it."""
    with torch.enable_grad():
        return bool(model.head(hidden_HH[:0].detach()).requires_grad)


def _entropy(logprobs: Tensor, probs: Tensor) -> Tensor:
    """Return entropies in nats; 0 log 0 is 0, and has no gradient."""
    return -(probs * logprobs.masked_fill(logprobs == -math.inf, 0.0)).sum(-1)


def _slopes(
    model: DiffusionModel,
    law: SamplingParams,
    length: int,
    hidden: Tensor,
    at: Tensor,
    targets: Tensor,
    entropies: bool,
) -> tuple[Tensor, Tensor]:
    """Return log-probs [N, 1], or [N, 2] with entropies, and the slopes [N, H] of the log-probs, of one chunk."""
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad():
        logits = model.head(leaf)
    with torch.no_grad():
        values = candidate_logits(logits, model.mask_token_id, allowed_rows(law, at, length))
        logprobs = torch.log_softmax(values.div_(law.temperature), dim=-1)
        found = logprobs.gather(-1, targets[:, None])
        probs = torch.exp(logprobs, out=values)
        if entropies:
            found = torch.cat((found, _entropy(logprobs, probs)[:, None]), dim=-1)
        del logprobs
        # d log softmax(z / T)[target] / dz = (1[target] - softmax) / T
        slope = probs.neg_()
        slope.scatter_add_(-1, targets[:, None], (found[:, :1] > -math.inf).to(slope.dtype))  # impossible: no slope
        slope = slope.div_(law.temperature).to(logits.dtype)
    return found, torch.autograd.grad(logits, leaf, slope)[0]


class _Sloped(torch.autograd.Function):
    """Numbers [N, 1 or 2] of which the first has known gradients by its own hidden state, and the second none."""

    @staticmethod
    def forward(ctx: Any, _hidden: Tensor, found: Tensor, slope_NH: Tensor) -> Tensor:
        """Return the numbers."""
        ctx.save_for_backward(slope_NH)
        return found.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient by the hidden states."""
        (slope_NH,) = ctx.saved_tensors
        return (grads[0][:, :1] * slope_NH).to(slope_NH.dtype), None, None
