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
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Return (advantages [R], metrics).

    Rewards are centred on their group's mean and divided by the group's standard deviation ("group": the z-score), the
    batch's ("batch") or nothing ("none": Dr. GRPO). Standard deviations have ddof 1. Rows of a group need not be
    neighbours.

    Args:
        rewards_R: one reward per completion.
        groups_R: which prompt it belongs to.
        scale_rewards: TRL's option of this name.
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
    metrics = {
        "reward": float(rewards.mean()) if len(rewards) else 0.0,
        "reward_std": float(std_G.mean()) if len(std_G) else 0.0,
        "frac_reward_zero_std": float((std_G < 1e-8).mean()) if len(std_G) else 0.0,
    }
    return (centred / scale).astype(np.float32), metrics
