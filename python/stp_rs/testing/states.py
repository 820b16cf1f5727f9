"""How a score of all masked tokens at visited states differs from the log-likelihood of the trajectory.

Token i, revealed at step r(i), is scored at every state s <= r(i) with c_s / l_s, c_s being revealed of l_s masked. It
weighs w_i = sum_{s <= r(i)} c_s / l_s, and

    sum_s (c_s / l_s) sum_{i masked at s} f_i(state_s) = trajectory + weights + earliness,

    weights   = sum_i (w_i - 1) f_i(state_r(i)),
    earliness = sum_i sum_{s <= r(i)} (c_s / l_s) (f_i(state_s) - f_i(state_r(i))).

When the sum has the trajectory's expectation: docs/designs.md.
"""

from dataclasses import replace
from typing import Literal

import numpy as np

from stp_rs._core import Design
from stp_rs.data.trajectories import Rollout
from stp_rs.objective.masks import Masks, draw_masks

Part = Literal["trajectory", "surrogate", "divided", "weights", "earliness"]
PARTS: tuple[Part, ...] = ("trajectory", "surrogate", "divided", "weights", "earliness")


def state_masks(completions: Rollout) -> dict[Part, Masks]:
    """Return every state of the rollouts, weighed for the trajectory, the sum above and its parts.

    The parts' weights add up: surrogate = trajectory + weights + earliness. `divided` is the surrogate with each
    token's weight divided by w_i. Weights may be negative; `token_elbo` evaluates each.
    """
    every = draw_masks(Design("trajectory", 0), completions, seed=0)
    revealed_PL = every.weight_PL
    masked_PL = every.mask_PL & every.scored_RL[every.row_P]  # what nobody drew is masked too, and no part of l_s
    rate_P = revealed_PL.sum(1) / np.maximum(masked_PL.sum(1), 1)
    surrogate_PL = (masked_PL * rate_P[:, None]).astype(np.float32)
    total_RL = np.zeros(every.scored_RL.shape, dtype=np.float32)
    np.add.at(total_RL, every.row_P, surrogate_PL)
    total_PL = np.where(masked_PL == 1, total_RL[every.row_P], np.float32(1))
    weights: dict[Part, np.ndarray] = {
        "trajectory": revealed_PL,
        "surrogate": surrogate_PL,
        "divided": surrogate_PL / total_PL,
        "weights": revealed_PL * (total_PL - 1),
        "earliness": surrogate_PL - revealed_PL * total_PL,
    }
    return {part: replace(every, weight_PL=weight_PL) for part, weight_PL in weights.items()}
