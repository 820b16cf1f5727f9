"""Slow references: one denoising step as the published samplers make it, written from their descriptions.

They are what ours is measured against (bench_sampler.py) and checked against (tests/equivalence). Each takes the
logits of the whole canvas and writes into it; each keeps what makes its original slow: full-vocabulary softmax over
prompt and finished blocks, a Python loop over rows, and a device round trip per row or token.

Shapes: B rows, S canvas width, V vocabulary.
"""

import torch
from torch import Tensor


def gumbel_argmax(logits_BSV: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """Return exp(logits) / (-log u)^T at its largest: a draw at temperature T, the argmax at 0."""
    if temperature == 0.0:
        return logits_BSV.argmax(-1)
    wide = logits_BSV.to(dtype)
    noise = (-torch.log(torch.rand_like(wide))) ** temperature
    return (wide.exp() / noise).argmax(-1)


def candidates(
    logits_BSV: Tensor, canvas_BS: Tensor, mask_token_id: int, end: int, temperature: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (drawn tokens, their probability or -inf where nothing may be revealed, masks up to `end`)."""
    drawn_BS = gumbel_argmax(logits_BSV, temperature, dtype)
    probability_BSV = torch.softmax(logits_BSV.to(dtype), dim=-1)
    confidence_BS = probability_BSV.gather(-1, drawn_BS.unsqueeze(-1)).squeeze(-1)
    masked_BS = canvas_BS == mask_token_id
    masked_BS[:, end:] = False
    drawn_BS = torch.where(masked_BS, drawn_BS, canvas_BS)
    return drawn_BS, torch.where(masked_BS, confidence_BS, -torch.inf), masked_BS


def top_k_step(
    logits_BSV: Tensor,
    canvas_BS: Tensor,
    quota_B: Tensor,
    *,
    mask_token_id: int,
    end: int,
    temperature: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> None:
    """LLaDA (dtype float64), d1 (the model's dtype) and dllm: each row reveals its quota of the most confident."""
    drawn_BS, confidence_BS, _ = candidates(logits_BSV, canvas_BS, mask_token_id, end, temperature, dtype)
    reveal_BS = torch.zeros_like(canvas_BS, dtype=torch.bool)
    for row in range(canvas_BS.shape[0]):
        count = int(quota_B[row].item())
        if count > 0:
            _, chosen = torch.topk(confidence_BS[row], k=count)
            reveal_BS[row, chosen] = True
    canvas_BS[reveal_BS] = drawn_BS[reveal_BS]


def threshold_step(
    logits_BSV: Tensor,
    canvas_BS: Tensor,
    threshold: float,
    *,
    mask_token_id: int,
    end: int,
    temperature: float = 0.0,
) -> None:
    """Fast-dLLM: every mask at or above the threshold, and the most confident one in any case."""
    drawn_BS, confidence_BS, masked_BS = candidates(
        logits_BSV, canvas_BS, mask_token_id, end, temperature, torch.float64
    )
    reveal_BS = torch.zeros_like(canvas_BS, dtype=torch.bool)
    quota_B = masked_BS.sum(1)
    for row in range(canvas_BS.shape[0]):
        _, order = torch.topk(confidence_BS[row], k=int(quota_B[row]))
        reveal_BS[row, order] = True
        for rank in range(1, int(quota_B[row])):
            if confidence_BS[row, order[rank]] < threshold:
                reveal_BS[row, order[rank]] = False
    canvas_BS[reveal_BS] = drawn_BS[reveal_BS]


def factor_step(logits_BSV: Tensor, canvas_BS: Tensor, factor: float, *, mask_token_id: int, end: int) -> None:
    """Fast-dLLM: rank r, counted from 1, while its confidence is at least 1 - f / (r + 1)."""
    drawn_BS, confidence_BS, masked_BS = candidates(logits_BSV, canvas_BS, mask_token_id, end, 0.0, torch.float64)
    for row in range(canvas_BS.shape[0]):
        ranked, order = torch.sort(confidence_BS[row], descending=True, stable=True)
        for rank in range(1, int(masked_BS[row].sum()) + 1):
            if rank > 1 and ranked[rank - 1] < 1 - factor / (rank + 1):
                break
            canvas_BS[row, order[rank - 1]] = drawn_BS[row, order[rank - 1]]


def entropy_bound_step(logits_BSV: Tensor, canvas_BS: Tensor, bound: float, *, mask_token_id: int, end: int) -> None:
    """EB-Sampler: in ascending order of entropy, while the sum of the entropies before stays within the bound."""
    drawn_BS, _, masked_BS = candidates(logits_BSV, canvas_BS, mask_token_id, end, 0.0, torch.float64)
    entropy_BS = torch.special.entr(torch.softmax(logits_BSV.double(), dim=-1)).sum(-1)
    entropy_BS = torch.where(masked_BS, entropy_BS, torch.inf)
    for row in range(canvas_BS.shape[0]):
        ranked, order = torch.sort(entropy_BS[row], stable=True)
        before = 0.0
        for rank in range(int(masked_BS[row].sum())):
            if rank > 0 and before > bound:
                break
            canvas_BS[row, order[rank]] = drawn_BS[row, order[rank]]
            before += float(ranked[rank])


def llada_quotas(masks: int, steps: int) -> list[int]:
    """Return n div S, and one more on the first n mod S steps; zeros are forwards that reveal nothing."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]


def dllm_quotas(masks: int, steps: int) -> list[int]:
    """Return what is left over the steps left, rounded half to even; zeros dropped."""
    left, quotas = masks, []
    for remaining in range(steps, 0, -1):
        quotas.append(round(left / remaining))
        left -= quotas[-1]
    return [quota for quota in quotas if quota > 0]


def dream_quotas(masks: int, steps: int) -> list[int]:
    """Return int(left (1 - s/t)) on linspace(1, eps, S + 1); the last step takes all."""
    levels = [1.0 - (1.0 - 1e-3) * i / steps for i in range(steps + 1)]
    left, quotas = masks, []
    for step in range(steps):
        last = step + 1 == steps
        quotas.append(left if last else int(left * (1 - levels[step + 1] / levels[step])))
        left -= quotas[-1]
    return quotas
