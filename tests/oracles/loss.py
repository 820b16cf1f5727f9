"""Likelihood and loss position by position: one canvas, one token, one number at a time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def token_elbo(model: Any, completions: Any, masks: Any, temperature: float = 1.0) -> Tensor:
    """Return sum_k w_{k,i} log p(y_i | prompt, y with M_k masked) [R, L], one unpadded canvas per scored position."""
    rows, length = completions.token_ids.shape
    total = [[torch.zeros(()) for _ in range(length)] for _ in range(rows)]
    for k, row in enumerate(masks.row_P.tolist()):
        prompt = completions.prompt_ids[row, : completions.prompt_length[row]].tolist()
        ids = completions.token_ids[row, : masks.length_R[row]].tolist()
        shown = [model.mask_token_id if masks.mask_PL[k, i] else token for i, token in enumerate(ids)]
        canvas = torch.tensor([prompt + shown])
        for i, token in enumerate(ids):
            weight = float(masks.weight_PL[k, i])
            if weight == 0:
                continue
            at = len(prompt) + i - model.logit_shift
            logits = model.head(model.hidden(canvas, None)[0, at : at + 1])[0] / (temperature or 1.0)
            others = [v for v in range(len(logits)) if v != model.mask_token_id]
            total[row][i] = total[row][i] + weight * (logits[token] - torch.logsumexp(logits[others], 0))
    return torch.stack([torch.stack(row) for row in total])


TOKENS = 37.0
"""Scored tokens of the whole update, as the tests of `dapo` state them."""


def clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    """Return the pessimistic one of the ratio and the clipped ratio, times the advantage."""
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def kl(kind: str, policy: float, reference: float) -> float:
    """Return Schulman's k1, k2 or k3 for samples of the policy."""
    ratio = math.exp(reference - policy)
    return {"k1": -math.log(ratio), "k2": 0.5 * math.log(ratio) ** 2, "k3": ratio - 1 - math.log(ratio)}[kind]


def policy_loss(arrays: dict[str, np.ndarray], config: Any, num_completions: int) -> float:
    """Return the loss of completions one by one; `arrays` has new, old, scored [R, L], advantages [R], maybe ref."""
    total = 0.0
    high = config.epsilon_high or config.epsilon
    for r, advantage in enumerate(arrays["advantages"].tolist()):
        at = np.flatnonzero(arrays["scored"][r]).tolist()
        if not at:
            continue
        new, old = arrays["new"][r], arrays["old"][r]
        weight = config.stp_negative_advantage_weight if advantage < 0 else 1.0
        share = length_share(arrays, config, r, num_completions)
        if config.importance_sampling_level == "token":
            terms = [clipped(math.exp(new[i] - old[i]), advantage, config.epsilon, high) for i in at]
        else:
            ratio = math.exp((sum(new[i] for i in at) - sum(old[i] for i in at)) / len(at))
            terms = [clipped(ratio, advantage, config.epsilon, high)]
        total -= weight * mean(terms) * share
        if "ref" in arrays:
            total += config.beta * penalty(config, new, arrays["ref"][r], at) * share
    return total


def length_share(arrays: dict[str, np.ndarray], config: Any, row: int, num_completions: int) -> float:
    """Return what a completion's mean counts: TRL's loss types as sums over tokens, divided back by its own tokens."""
    tokens = arrays["scored"].sum(1)
    divisor = {
        "grpo": num_completions * tokens[row],
        "dr_grpo": num_completions * arrays["scored"].shape[1],
        "bnpo": tokens.sum() * num_completions / len(tokens),
        "dapo": TOKENS,
    }[config.loss_type]
    return float(tokens[row] / divisor)


def penalty(config: Any, new: np.ndarray, ref: np.ndarray, at: Sequence[int]) -> float:
    """Return the KL estimate of one completion."""
    if config.importance_sampling_level == "token":
        return mean([kl(config.stp_kl, new[i], ref[i]) for i in at])
    return kl(config.stp_kl, sum(new[i] for i in at) / len(at), sum(ref[i] for i in at) / len(at))


def mean(values: Sequence[float]) -> float:
    """Return the plain mean."""
    return sum(values) / len(values)
