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


def kl(kind: str, policy: float, reference: float) -> float:
    """Return Schulman's k1, k2 or k3 for samples of the policy."""
    ratio = math.exp(reference - policy)
    return {"k1": -math.log(ratio), "k2": 0.5 * math.log(ratio) ** 2, "k3": ratio - 1 - math.log(ratio)}[kind]


def policy_loss(arrays: dict[str, np.ndarray], config: Any, num_completions: int) -> float:
    """Return the loss of completions one by one.

    `arrays` has new, old, scored [R, L], advantages [R], maybe ref and entropy [R, L] (NaN where it is not known).
    """
    total = 0.0
    kept = high_entropy(arrays, config)
    for r, advantage in enumerate(arrays["advantages"].tolist()):
        at = np.flatnonzero(arrays["scored"][r]).tolist()
        if not at:
            continue
        new, old = arrays["new"][r], arrays["old"][r]
        weight = config.stp_negative_advantage_weight if advantage < 0 else 1.0
        share = length_share(arrays, config, r, num_completions)
        ratios = {i: math.exp(new[i] - old[i]) for i in at}
        if config.importance_sampling_level == "sequence":
            ratios = dict.fromkeys(at, math.exp((sum(new[i] for i in at) - sum(old[i] for i in at)) / len(at)))
        drift = sum(old[i] - new[i] for i in at) / len(at)
        if config.off_policy_mask_threshold is not None and advantage < 0 and drift > config.off_policy_mask_threshold:
            weight = 0.0
        whole = math.exp(min(max(sum(min(max(new[i] - old[i], -20), 20) for i in at), math.log(1e-8)), 20))
        terms = [term(ratios[i], whole, advantage, new[i], config) if kept[r, i] else 0.0 for i in at]
        total -= weight * mean(terms) * share
        if "ref" in arrays:
            total += config.beta * penalty(config, new, arrays["ref"][r], at, ratios) * share
    if config.entropy_coef:
        used = arrays["scored"].astype(bool) & kept & ~np.isnan(arrays["entropy"])
        if used.any():
            total -= config.entropy_coef * mean(arrays["entropy"][used].tolist()) * arrays["scored"].sum() / TOKENS
    return total


def term(ratio: float, whole: float, advantage: float, logprob: float, config: Any) -> float:
    """Return what one token adds: weights that carry no gradient count as their value."""
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    if config.loss_type == "cispo":
        return min(ratio, high) * advantage * logprob
    if config.loss_type == "sapo":
        tau = config.sapo_temperature_pos if advantage > 0 else config.sapo_temperature_neg
        return 4 / tau / (1 + math.exp(-tau * (ratio - 1))) * advantage
    if config.loss_type == "vespo":
        sign = "pos" if advantage >= 0 else "neg"
        k, decay = getattr(config, f"vespo_k_{sign}"), getattr(config, f"vespo_lambda_{sign}")
        return whole**k * math.exp(decay * (1 - whole)) * advantage * logprob
    bounded = ratio if config.delta is None else min(ratio, config.delta)
    return min(bounded * advantage, min(max(ratio, 1 - config.epsilon), 1 + high) * advantage)


def high_entropy(arrays: dict[str, np.ndarray], config: Any) -> np.ndarray:
    """Return which tokens are in the upper share by entropy: sort them, and interpolate between two neighbours."""
    if config.top_entropy_quantile == 1.0:
        return np.ones(arrays["scored"].shape, bool)
    known = arrays["scored"].astype(bool) & ~np.isnan(arrays["entropy"])
    ordered = sorted(arrays["entropy"][known].tolist())
    if not ordered:
        return known
    place = (1 - config.top_entropy_quantile) * (len(ordered) - 1)
    below = ordered[math.floor(place)]
    bound = below + (place - math.floor(place)) * (ordered[math.ceil(place)] - below)
    return known & (np.nan_to_num(arrays["entropy"], nan=-1.0) >= bound - 1e-9)


def length_share(arrays: dict[str, np.ndarray], config: Any, row: int, num_completions: int) -> float:
    """Return what a completion's mean counts: TRL's loss types as sums over tokens, divided back by its own tokens."""
    tokens = arrays["scored"].sum(1)
    divisor = {
        "grpo": num_completions * tokens[row],
        "dr_grpo": num_completions * arrays["scored"].shape[1],
        "bnpo": tokens.sum() * num_completions / len(tokens),
        "dapo": TOKENS,
        "cispo": TOKENS,
        "vespo": TOKENS,
        "sapo": num_completions * tokens[row],
        "luspo": num_completions,
    }[config.loss_type]
    return float(tokens[row] / divisor)


def penalty(config: Any, new: np.ndarray, ref: np.ndarray, at: Sequence[int], ratios: dict[int, float]) -> float:
    """Return the KL estimate of one completion."""
    corrected = ratios if config.use_bias_correction_kl else dict.fromkeys(at, 1.0)
    if config.importance_sampling_level == "token":
        return mean([kl(config.stp_kl, new[i], ref[i]) * corrected[i] for i in at])
    return kl(config.stp_kl, sum(new[i] for i in at) / len(at), sum(ref[i] for i in at) / len(at)) * corrected[at[0]]


def mean(values: Sequence[float]) -> float:
    """Return the plain mean."""
    return sum(values) / len(values)
