"""Group advantages: how much better a completion is than its siblings (GRPO, arXiv 2402.03300, eq. 3).

Shapes: R completions, G groups, F reward functions. A reward of NaN means that nobody judged the completion.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig

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

    A completion that nobody judged has advantage 0, and its group's numbers are those of the others. The metrics are
    TRL's: mean and standard deviation of the judged rewards of the batch, and the share of groups without any spread
    among those that have a judged completion; and the standard deviation of the groups' means. What has no value is
    left out.

    Args:
        rewards_R: one reward per completion.
        groups_R: which prompt it belongs to.
        scale_rewards: TRL's option of this name.
        kind: `stp_advantage`.
    """
    advantages_R = np.zeros(len(rewards_R), np.float32)
    judged_R = ~np.isnan(rewards_R)
    rewards = rewards_R[judged_R].astype(np.float64)
    if not len(rewards):
        return advantages_R, {}
    index_R, size_G, centred, std_G = _moments(rewards, groups_R[judged_R])
    if scale_rewards == "group":
        scale = std_G[index_R] + EPSILON
    elif scale_rewards == "batch":
        scale = np.full(len(rewards), _std(rewards) + EPSILON)
    else:
        scale = np.ones(len(rewards))
    advantages = centred / scale
    if kind == "leave_one_out":
        advantages = advantages * (size_G / np.maximum(size_G - 1, 1))[index_R]
    elif kind == "softmax":
        good, bad = _group_softmax(advantages, index_R), _group_softmax(-advantages, index_R)
        advantages = np.where(std_G[index_R] > 1e-8, size_G[index_R] * (good - bad), 0.0)
    advantages_R[judged_R] = advantages
    metrics = {"reward": float(rewards.mean()), "frac_reward_zero_std": float((std_G < 1e-8).mean())}
    if len(rewards) > 1:
        metrics["reward_std"] = _std(rewards)
    if len(size_G) > 1:
        metrics["diffusion/group_reward_std"] = _std(np.bincount(index_R, rewards) / size_G)
    return advantages_R, metrics


def configured_advantages(
    config: "STPConfig",
    reward_R: NDArray[np.float32],
    by_function: Mapping[str, NDArray[np.float32]],
    weights_F: NDArray[np.float32],
    groups_R: NDArray[np.int64],
) -> tuple[NDArray[np.float32], dict[str, float]]:
    """Return the advantages [R] that a run computes from the rewards of a batch, and the metrics of their sum."""
    advantages_R, metrics = group_advantages(reward_R, groups_R, config.scale_rewards, config.stp_advantage)
    if config.multi_objective_aggregation == "normalize_then_sum":
        advantages_R = decoupled_advantages(np.stack(list(by_function.values())), weights_F, groups_R)
    return advantages_R, metrics


def decoupled_advantages(
    rewards_FR: NDArray[np.float32], weights_F: NDArray[np.float32], groups_R: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return advantages [R] in which each function counts its weight, whatever the spread of its rewards.

    TRL's `normalize_then_sum` (GDPO, group reward-decoupled normalisation, arXiv 2601.05242): each function's z-scores
    within the groups are weighted and summed, and the sums are normalised over the batch.
    """
    total_R = np.full(len(groups_R), np.nan)
    for rewards_R, weight in zip(rewards_FR, weights_F, strict=True):
        judged_R = ~np.isnan(rewards_R)
        if judged_R.any():
            index, _, centred, std_G = _moments(rewards_R[judged_R].astype(np.float64), groups_R[judged_R])
            total_R[judged_R] = np.nan_to_num(total_R[judged_R]) + weight * centred / (std_G[index] + EPSILON)
    return group_advantages(total_R.astype(np.float32), np.zeros_like(groups_R), "batch")[0]


def reward_metrics(by_name: dict[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return TRL's `rewards/NAME/mean` and `/std` over the completions that each function judged; none without any."""
    metrics: dict[str, float] = {}
    for name, rewards_R in by_name.items():
        judged = rewards_R[~np.isnan(rewards_R)].astype(np.float64)
        if len(judged):
            metrics[f"rewards/{name}/mean"] = float(judged.mean())
        if len(judged) > 1:
            metrics[f"rewards/{name}/std"] = _std(judged)
    return metrics


def _moments(
    rewards: NDArray[np.float64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Return (index of each reward's group, sizes [G], rewards minus their group's mean, standard deviations [G])."""
    _, index, size_G = np.unique(groups, return_inverse=True, return_counts=True)
    centred = rewards - (np.bincount(index, rewards) / size_G)[index]
    std_G = np.sqrt(np.bincount(index, centred**2) / np.maximum(size_G - 1, 1))
    return index, size_G, centred, std_G


def _std(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _group_softmax(values_R: NDArray[np.float64], index_R: NDArray[np.intp]) -> NDArray[np.float64]:
    peak_G = np.full(int(index_R.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(peak_G, index_R, values_R)
    exponent = np.exp(values_R - peak_G[index_R])
    total: NDArray[np.float64] = exponent / np.bincount(index_R, exponent)[index_R]
    return total
