"""From logits to the few numbers per candidate that the scheduler needs, in fp32 on the device.

Shapes: N candidates, V vocabulary, R rows, L completion length. Columns of the packed result: token, logprob, top1,
top2, entropy, sampled, argmax.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stp_rs.errors import InvalidValueError

COLUMNS = 7

_NEVER = -1e30
"""Logit of an impossible token: finite, so that 0 * log 0 is 0 and not NaN."""

_CACHE_ELEMENTS = 1 << 18
"""Logits that the CPU reduces at a time: two fp32 copies of them stay in a core's cache."""


@dataclass(frozen=True)
class Sampling:
    """The sampling law: allowed tokens, logits / temperature, then top-k, then top-p. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    allowed: Tensor | None = field(default=None, compare=False, repr=False)
    """Bool [V], [L, V] per completion position, or [R, L, V]: the other tokens are impossible, both for sampling and
    in every number of a candidate. None allows all."""


GREEDY = Sampling(temperature=0.0)


def candidate_logits(logits_NV: Tensor, mask_token_id: int) -> Tensor:
    """Return fp32 logits in which the mask token is impossible: the law that samples and the law that is scored."""
    logits_NV = logits_NV.float()
    forbidden = torch.zeros(logits_NV.shape[-1], dtype=torch.bool, device=logits_NV.device)
    forbidden[mask_token_id] = True
    return logits_NV.masked_fill(forbidden, float("-inf"))


def reduce_logits(
    logits_NV: Tensor,
    uniforms_N: Tensor,
    law: Sampling,
    *,
    allowed: Tensor | None = None,
    mask_token_id: int | None = None,
    out_NC: Tensor | None = None,
) -> Tensor:
    """Return the packed numbers f32 [N, 7] of candidates. The logits are read only.

    Sampling is by inverse CDF from the caller's uniforms in (0, 1): the first token whose cumulative probability
    reaches u times the total, so a token of probability 0 is never drawn and no random generator is used.

    Args:
        logits_NV: logits of any float type, -inf where a token is not allowed.
        uniforms_N: one uniform per candidate.
        law: temperature, top-k and top-p. `logprob` is under it; under the untempered law where the temperature is 0.
        allowed: bool [V] or [N, V]; `law.allowed` where it is [V].
        mask_token_id: made impossible too.
        out_NC: where to write.
    """
    count, vocab = logits_NV.shape
    if allowed is None and law.allowed is not None:
        if law.allowed.dim() != 1:
            raise InvalidValueError(
                f"allowed: got {law.allowed.dim()} dimensions in the law, needs [V] here; pass the rows of the "
                "candidates as `allowed` (see allowed_rows)"
            )
        allowed = law.allowed
    out = torch.empty((count, COLUMNS), device=logits_NV.device) if out_NC is None else out_NC
    size = max(1, _CACHE_ELEMENTS // vocab) if logits_NV.device.type == "cpu" else max(1, count)
    for start in range(0, count, size):
        part = slice(start, start + size)
        # always a copy: the model may own the logits, and what follows is in place
        values_NV = logits_NV[part].float().clamp(min=_NEVER)
        if mask_token_id is not None:
            values_NV[:, mask_token_id] = _NEVER
        if allowed is not None:
            values_NV.masked_fill_(~(allowed if allowed.dim() == 1 else allowed[part]), _NEVER)
        _reduce(values_NV, uniforms_N[part], law, out[part])
    return out


def _reduce(values_NV: Tensor, uniforms_N: Tensor, law: Sampling, out_NC: Tensor) -> None:
    """Write the numbers of candidates; `values_NV` becomes the logits less their maximum."""
    max_N1, argmax_N1 = values_NV.max(-1, keepdim=True)
    values_NV.sub_(max_N1)
    values_NV.scatter_(-1, argmax_N1, _NEVER)
    second_N = values_NV.amax(-1)
    second_N.masked_fill_(second_N < _NEVER / 2, -math.inf)
    values_NV.scatter_(-1, argmax_N1, 0.0)
    weight_NV = values_NV.exp()
    total_N = weight_NV.sum(-1)
    log_total_N = total_N.log()
    expected_N = torch.bmm(weight_NV.unsqueeze(1), values_NV.unsqueeze(2)).flatten() / total_N
    not_finite_N = (max_N1 - max_N1).squeeze(-1)  # 0, or NaN where the model overflowed
    top1_N = not_finite_N - log_total_N
    if law.temperature == 0.0:
        token_N1, logprob_N, sampled_N = argmax_N1, top1_N, top1_N
    else:
        if law.temperature != 1.0 or law.top_k > 0 or law.top_p < 1.0:
            weight_NV = _filtered(values_NV / law.temperature, law).exp_()
            total_N = weight_NV.sum(-1)
        # torch's CPU kernel accumulates in double: a tail of many small probabilities keeps its mass
        wide = torch.float64 if weight_NV.is_cuda else torch.float32
        cdf_NV = weight_NV.cumsum(-1, dtype=wide)
        token_N1 = torch.searchsorted(cdf_NV, uniforms_N[:, None] * cdf_NV[:, -1:])
        token_N1.clamp_(max=cdf_NV.shape[-1] - 1)
        value_N = values_NV.gather(-1, token_N1).squeeze(-1)
        logprob_N = value_N / law.temperature - total_N.log()
        sampled_N = value_N - log_total_N
    columns = (token_N1.squeeze(-1), logprob_N, top1_N, second_N - log_total_N, log_total_N - expected_N, sampled_N)
    for i, column in enumerate((*columns, argmax_N1.squeeze(-1))):
        out_NC[:, i] = column


def _filtered(logits_NV: Tensor, law: Sampling) -> Tensor:
    """Return the tempered logits with the tokens outside top-k and top-p made impossible; logits are at most 0."""
    if 0 < law.top_k < logits_NV.shape[-1]:
        floor_N1 = logits_NV.topk(law.top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < floor_N1, -math.inf)
    if law.top_p < 1.0:
        sorted_NV, order_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
        mass_NV = sorted_NV.softmax(-1)
        before_NV = mass_NV.cumsum(-1) - mass_NV
        drop_NV = torch.zeros_like(before_NV, dtype=torch.bool).scatter(-1, order_NV, before_NV >= law.top_p)
        logits_NV = logits_NV.masked_fill(drop_NV, -math.inf)
    return logits_NV


def check_allowed(law: Sampling, mask_token_id: int, device: torch.device) -> Sampling:
    """Return the law with its allowed tokens on a device and the mask token taken out of them.

    Raises:
        InvalidValueError: not bool, or a place where no token is left.
    """
    if law.allowed is None:
        return law
    if law.allowed.dtype != torch.bool or law.allowed.dim() not in (1, 2, 3):
        raise InvalidValueError(
            f"allowed: got {law.allowed.dtype} {list(law.allowed.shape)}, needs bool [V], [L, V] or [R, L, V]"
        )
    allowed = law.allowed.to(device, copy=True)
    allowed[..., mask_token_id] = False
    if not bool(allowed.any(-1).all()):
        raise InvalidValueError("allowed: got a place without any token, needs at least one besides the mask token")
    return Sampling(law.temperature, law.top_k, law.top_p, allowed)


def allowed_rows(law: Sampling, places_N: Tensor, length: int) -> Tensor | None:
    """Return the allowed tokens [V] or [N, V] of candidates at `places_N`, row times L plus completion position."""
    allowed = law.allowed
    if allowed is None or allowed.dim() == 1:
        return allowed
    return allowed[places_N % length] if allowed.dim() == 2 else allowed.flatten(0, 1)[places_N]
