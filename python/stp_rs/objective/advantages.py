"""Group advantages: how much better a completion is than its siblings (GRPO, arXiv 2402.03300, eq. 3)."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-4
"""Added to standard deviations, as in TRL and the paper."""


def group_advantages(
    rewards_R: NDArray[np.float32],
    groups_R: NDArray[np.int64],
    scale_rewards: Literal["group", "batch", "none"] = "group",
    kind: Literal["centred", "leave_one_out", "softmax"] = "centred",
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Return (advantages [R], metrics).

    Rewards are centred on their group's mean, or on the mean of the *other* rewards of the group (leave-one-out: RLOO,
    coupled-GRPO, ESPO; the centred reward times G / (G - 1)), and divided by the group's standard deviation ("group":
    the z-score), the batch's ("batch") or nothing ("none": Dr. GRPO). Standard deviations have ddof 1. "softmax" then
    makes wd1's weights of them (arXiv 2507.08838): G (softmax(A) - softmax(-A)) within the group, so that a group of
    equal rewards has weight 0 and one of G = 2 the weights 2 tanh(A). Rows of a group need not be neighbours.

    Args:
        rewards_R: one reward per completion.
        groups_R: which prompt it belongs to.
        scale_rewards: TRL's option of this name.
        kind: `stp_advantage`.
    """
    _, index_R, size_G = np.unique(groups_R, return_inverse=True, return_counts=True)
    rewards = rewards_R.astype(np.float64)
    centred = rewards - (np.bincount(index_R, rewards) / size_G)[index_R]
    variance_G = np.bincount(index_R, centred**2) / np.maximum(size_G - 1, 1)
    std_G = np.sqrt(variance_G)
    if scale_rewards == "group":
        scale = std_G[index_R] + EPSILON
    elif scale_rewards == "batch":
        scale = np.full(len(rewards), (rewards.std(ddof=1) if len(rewards) > 1 else 0.0) + EPSILON)
    else:
        scale = np.ones(len(rewards))
    advantages = centred / scale
    if kind == "leave_one_out":
        advantages = advantages * (size_G / np.maximum(size_G - 1, 1))[index_R]
    elif kind == "softmax":
        good, bad = _group_softmax(advantages, index_R), _group_softmax(-advantages, index_R)
        advantages = np.where(std_G[index_R] > 1e-8, size_G[index_R] * (good - bad), 0.0)
    metrics = {
        "reward": float(rewards.mean()) if len(rewards) else 0.0,
        "reward_std": float(std_G.mean()) if len(std_G) else 0.0,
        "frac_reward_zero_std": float((std_G < 1e-8).mean()) if len(std_G) else 0.0,
    }
    return advantages.astype(np.float32), metrics


def _group_softmax(values_R: NDArray[np.float64], index_R: NDArray[np.intp]) -> NDArray[np.float64]:
    peak_G = np.full(int(index_R.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(peak_G, index_R, values_R)
    exponent = np.exp(values_R - peak_G[index_R])
    total: NDArray[np.float64] = exponent / np.bincount(index_R, exponent)[index_R]
    return total
