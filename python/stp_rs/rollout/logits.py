"""From logits to the few numbers per candidate that the scheduler needs, in fp32 on the device.

Shapes: N candidates, V vocabulary, R rows, L completion length. Columns of the packed result: token, logprob, top1,
top2, entropy, sampled, argmax.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stp_rs.errors import InvalidValueError, ModelError
from stp_rs.rollout.params import SamplingParams

COLUMNS = 7
ENTROPY = 4
"""The column of the entropy."""

_NEVER = -1e30
"""Logit of an impossible token: finite, so that 0 * log 0 is 0 and not NaN."""

_CACHE_ELEMENTS = 1 << 18
"""Logits that the CPU reduces at a time: two fp32 copies of them stay in a core's cache."""

_RUN = 64
"""Tokens per run of the CPU's search for the largest logit."""


def candidate_logits(logits_NV: Tensor, mask_token_id: int, allowed: Tensor | None = None) -> Tensor:
    """Return fp32 logits in which the mask token, and what is not in `allowed` (bool [V] or [N, V]), is impossible.

    It is the law that samples and the law that is scored.
    """
    logits_NV = logits_NV.float()
    check_mask(mask_token_id, logits_NV.shape[-1])
    forbidden = torch.zeros(logits_NV.shape[-1], dtype=torch.bool, device=logits_NV.device)
    forbidden[mask_token_id] = True
    return logits_NV.masked_fill(forbidden if allowed is None else forbidden | ~allowed, float("-inf"))


def check_mask(mask_token_id: int, vocab: int) -> None:
    """Refuse a head that has no logit for the mask token.

    Raises:
        ModelError: the mask token's id is beyond the logits.
    """
    if mask_token_id >= vocab:
        raise ModelError(
            f"model: its head returns logits of {vocab} tokens, needs more than mask_token_id ({mask_token_id}); give "
            "the head a row for each id, or the id of the mask token among them"
        )


def reduce_logits(
    logits_NV: Tensor,
    uniforms_N: Tensor,
    law: SamplingParams,
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
    if allowed is None and law.allowed is not None:
        if law.allowed.dim() != 1:
            raise InvalidValueError(
                f"allowed: got {law.allowed.dim()} dimensions in the law, needs [V] here; pass the rows of the "
                "candidates as `allowed` (see allowed_rows)"
            )
        allowed = law.allowed
    out = torch.empty((len(logits_NV), COLUMNS), device=logits_NV.device) if out_NC is None else out_NC
    Reducer(law, mask_token_id)(logits_NV, uniforms_N, out, allowed)
    return out


class Reads(NamedTuple):
    """Which of a candidate's numbers are read besides token, logprob, top1 and sampled; the others are NaN."""

    top2: bool = True
    entropy: bool = True
    argmax: bool = True


class Reducer:
    """`reduce_logits` with working memory that is kept between calls: fresh memory costs more than the arithmetic."""

    def __init__(self, law: SamplingParams, mask_token_id: int | None = None) -> None:
        self._law, self._mask_token_id = law, mask_token_id
        self._memory: Tensor | None = None
        self._nan_1: Tensor | None = None

    def __call__(
        self,
        logits_NV: Tensor,
        uniforms_N: Tensor,
        out_NC: Tensor,
        allowed: Tensor | None = None,
        reads: Reads = Reads(),  # noqa: B008 - a constant
    ) -> None:
        """Write the packed numbers of candidates; see `reduce_logits`. A number is the same whichever are read."""
        count, vocab = logits_NV.shape
        size = max(1, min(count, _CACHE_ELEMENTS // vocab)) if logits_NV.device.type == "cpu" else max(1, count)
        if self._memory is None or self._memory.shape[1] < size * vocab or self._memory.device != logits_NV.device:
            self._memory = torch.empty((3, size * vocab), dtype=torch.float32, device=logits_NV.device)
        if self._nan_1 is None or self._nan_1.device != logits_NV.device:
            self._nan_1 = torch.full((1,), math.nan, device=logits_NV.device)
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            rows = part.stop - start
            memory = self._memory[:, : rows * vocab].view(3, rows, vocab)
            values_NV = memory[0]
            # always a copy: the model may own the logits, and what follows is in place
            if logits_NV.dtype == torch.float32:
                torch.clamp(logits_NV[part], min=_NEVER, out=values_NV)
            else:
                values_NV.copy_(logits_NV[part]).clamp_(min=_NEVER)
            if self._mask_token_id is not None:
                check_mask(self._mask_token_id, vocab)
                values_NV[:, self._mask_token_id] = _NEVER
            if allowed is not None:
                values_NV.masked_fill_(~(allowed if allowed.dim() == 1 else allowed[part]), _NEVER)
            columns = _reduce(memory, uniforms_N[part], self._law, reads, self._nan_1)
            torch.stack([column.float() for column in columns], dim=1, out=out_NC[part])


def _reduce(
    memory_3NV: Tensor, uniforms_N: Tensor, law: SamplingParams, reads: Reads, nan_1: Tensor
) -> tuple[Tensor, ...]:
    """Return the numbers of candidates, [N] each, whose logits are memory[0]; the memory is used up.

    Every operation is a launch on a CUDA device, so that nothing is subtracted that is 0 and no constant is made anew.

    torch's softmax is faster than the exponentials alone, but on the CPU it adds them up one after the other, so that a
    tail of many small ones is lost: what it gives are weights, and their sum is taken again, pairwise.
    """
    values_NV, weight_NV, spare_NV = memory_3NV.unbind(0)
    greedy = law.temperature == 0.0
    if greedy or reads.argmax or reads.top2:
        max_N1, argmax_N1 = _max(values_NV)
    else:
        max_N1 = values_NV.amax(-1, keepdim=True)
        argmax_N1 = nan_1.expand_as(max_N1)
    torch.softmax(values_NV, -1, out=weight_NV)
    total_N = weight_NV.sum(-1)
    # by the law and never by what is read: a number does not depend on the other rows of the batch
    largest_N = weight_NV.gather(-1, argmax_N1).squeeze(-1) if greedy else weight_NV.amax(-1)
    top1_N = (largest_N / total_N).log_()
    top2_N = entropy_N = nan_1.expand_as(top1_N)
    shifted = False  # whether the largest logit is 0 by now
    if reads.top2:
        values_NV.scatter_(-1, argmax_N1, _NEVER)
        second_N1 = values_NV.amax(-1, keepdim=True)
        second_N1.masked_fill_(second_N1 < _NEVER / 2, -math.inf)
        values_NV.scatter_(-1, argmax_N1, max_N1)
        top2_N = (second_N1 - max_N1).squeeze(-1) + top1_N
    if reads.entropy:
        values_NV.sub_(max_N1)
        shifted = True
        entropy_N = -(torch.mul(weight_NV, values_NV, out=spare_NV).sum(-1) / total_N + top1_N)
    if greedy:
        return argmax_N1.squeeze(-1), top1_N, top1_N, top2_N, entropy_N, top1_N, argmax_N1.squeeze(-1)
    scale_N = top1_N
    if law.temperature != 1.0 or law.cuts:
        if not shifted:
            values_NV.sub_(max_N1)
            shifted = True
        torch.softmax(_filtered(torch.div(values_NV, law.temperature, out=spare_NV), law), -1, out=weight_NV)
        scale_N = (weight_NV.amax(-1) / weight_NV.sum(-1)).log_()
    token_N1 = _draw(weight_NV, uniforms_N, spare_NV)
    below_N1 = values_NV.gather(-1, token_N1)
    below_N = (below_N1 if shifted else below_N1 - max_N1).squeeze(-1)
    logprob_N, sampled_N = (
        (below_N if law.temperature == 1.0 else below_N / law.temperature) + scale_N,
        below_N + top1_N,
    )
    return token_N1.squeeze(-1), logprob_N, top1_N, top2_N, entropy_N, sampled_N, argmax_N1.squeeze(-1)


def _draw(weight_NV: Tensor, uniforms_N: Tensor, spare_NV: Tensor) -> Tensor:
    """Return the tokens [N, 1] at which the cumulative weight reaches the uniforms' share of the total."""
    if weight_NV.is_cuda:  # its kernel accumulates in the type that it is given
        cdf_NV = weight_NV.cumsum(-1, dtype=torch.float64)
    else:  # the CPU's accumulates in double: a tail of many small probabilities keeps its mass
        cdf_NV = torch.cumsum(weight_NV, -1, out=spare_NV)
    token_N1 = torch.searchsorted(cdf_NV, uniforms_N[:, None] * cdf_NV[:, -1:])
    return token_N1.clamp_(max=cdf_NV.shape[-1] - 1)


def _max(values_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest value and the first index of it, [N, 1] each; NaN where there is one.

    On the CPU torch's maximum with an index is ten times slower than the one without: find the run of tokens first.
    """
    runs = values_NV.shape[-1] // _RUN
    if values_NV.device.type != "cpu" or runs * len(values_NV) < _CACHE_ELEMENTS // (4 * _RUN):
        return torch.max(values_NV, -1, keepdim=True)
    runs_NVR = values_NV[:, : runs * _RUN].view(-1, runs, _RUN)
    best_N1, run_N1 = runs_NVR.amax(-1).max(-1, keepdim=True)
    inside_NR = runs_NVR[torch.arange(len(values_NV)), run_N1.squeeze(-1)]
    index_N1 = run_N1 * _RUN + inside_NR.argmax(-1, keepdim=True)
    if runs * _RUN < values_NV.shape[-1]:
        last_N1, last_index_N1 = values_NV[:, runs * _RUN :].max(-1, keepdim=True)
        index_N1 = torch.where(last_N1 > best_N1, last_index_N1 + runs * _RUN, index_N1)
        best_N1 = torch.maximum(best_N1, last_N1)
    return best_N1, index_N1


def _filtered(logits_NV: Tensor, law: SamplingParams) -> Tensor:
    """Return the tempered logits with the tokens outside top-k, top-p and min-p made impossible; the largest is 0."""
    if 0 < law.top_k < logits_NV.shape[-1]:
        floor_N1 = logits_NV.topk(law.top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < floor_N1, -math.inf)
    if law.top_p < 1.0:
        sorted_NV, order_NV = logits_NV.sort(dim=-1, descending=True, stable=True)
        mass_NV = sorted_NV.softmax(-1)
        before_NV = mass_NV.cumsum(-1) - mass_NV
        drop_NV = torch.zeros_like(before_NV, dtype=torch.bool).scatter(-1, order_NV, before_NV >= law.top_p)
        logits_NV = logits_NV.masked_fill(drop_NV, -math.inf)
    if law.min_p > 0.0:
        logits_NV = logits_NV.masked_fill(logits_NV < math.log(law.min_p), -math.inf)
    return logits_NV


def law_logprobs(logits_NV: Tensor, law: SamplingParams, mask_token_id: int, allowed: Tensor | None) -> Tensor:
    """Return the log-probs f32 [N, V] of every token under the law that draws: -inf where it never does.

    `allowed` is that of `reduce_logits`. Temperature 0 counts as 1, as where a greedy token is recorded.
    """
    logits_NV = candidate_logits(logits_NV, mask_token_id)
    if allowed is not None:
        logits_NV = logits_NV.masked_fill(~allowed, -math.inf)
    if law.temperature != 0.0:
        logits_NV = _filtered((logits_NV - logits_NV.amax(-1, keepdim=True)) / law.temperature, law)
    return torch.log_softmax(logits_NV, -1)
