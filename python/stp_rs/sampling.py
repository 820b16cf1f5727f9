"""From logits to the few numbers per candidate that the scheduler needs, in one fp32 pass on the device.

Shapes: N candidates, V vocabulary. Columns of the packed result: token, logprob, top1, top2, entropy, sampled, argmax.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

COLUMNS = 7


@dataclass(frozen=True)
class Sampling:
    """The sampling law: logits / temperature, then top-k, then top-p. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling(temperature=0.0)


def candidate_logits(logits_NV: Tensor, mask_token_id: int) -> Tensor:
    """Return fp32 logits in which the mask token is impossible: the law that samples and the law that is scored."""
    logits_NV = logits_NV.float()
    forbidden = torch.zeros(logits_NV.shape[-1], dtype=torch.bool, device=logits_NV.device)
    forbidden[mask_token_id] = True
    return logits_NV.masked_fill(forbidden, float("-inf"))


def reduce_logits(logits_NV: Tensor, uniforms_N: Tensor, law: Sampling) -> Tensor:
    """Return the packed numbers f32 [N, 7] of candidates.

    Sampling is by inverse CDF from the caller's uniforms in (0, 1): the first token whose cumulative probability
    reaches u times the total, so a token of probability 0 is never drawn and no random generator is used.

    Args:
        logits_NV: fp32 logits, -inf where a token is not allowed.
        uniforms_N: one uniform per candidate.
        law: the sampling law. `logprob` is under it; under the untempered law where the temperature is 0.
    """
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    top_N2, index_N2 = logp_NV.topk(2, dim=-1)
    entropy_N = torch.special.entr(logp_NV.exp()).sum(-1)
    if law.temperature == 0.0:
        token_N, logprob_N, sampled_N = index_N2[:, 0], top_N2[:, 0], top_N2[:, 0]
    else:
        law_NV = logp_NV if law == Sampling() else _filtered(logp_NV, law)
        cdf_NV = law_NV.exp().cumsum(-1)
        target_N1 = uniforms_N[:, None] * cdf_NV[:, -1:]
        token_N = torch.searchsorted(cdf_NV, target_N1).squeeze(-1).clamp_(max=logits_NV.shape[-1] - 1)
        logprob_N = law_NV.gather(-1, token_N[:, None]).squeeze(-1)
        sampled_N = logp_NV.gather(-1, token_N[:, None]).squeeze(-1)
    columns = (token_N, logprob_N, top_N2[:, 0], top_N2[:, 1], entropy_N, sampled_N, index_N2[:, 0])
    return torch.stack([c.float() for c in columns], dim=-1)


def _filtered(logp_NV: Tensor, law: Sampling) -> Tensor:
    logits_NV = logp_NV / law.temperature  # log-probs are at most 0: a low temperature cannot overflow
    if 0 < law.top_k < logits_NV.shape[-1]:
        floor_N1 = logits_NV.topk(law.top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < floor_N1, float("-inf"))
    if law.top_p < 1.0:
        sorted_NV, order_NV = logits_NV.sort(dim=-1, descending=True)
        before_NV = sorted_NV.softmax(-1).cumsum(-1) - sorted_NV.softmax(-1)
        drop_NV = torch.zeros_like(before_NV, dtype=torch.bool).scatter(-1, order_NV, before_NV >= law.top_p)
        logits_NV = logits_NV.masked_fill(drop_NV, float("-inf"))
    return torch.log_softmax(logits_NV, dim=-1)
