"""A step map: which forward revealed each token, in the layouts that other trainers of diffusion models take.

Shapes: R rows, L completion length, W prompt columns, K steps.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stp_rs.errors import InvalidValueError

NO_STEP = -1
"""In place of a step or a version where the policy drew no token: a prior's, padding, what lies after the end."""


@dataclass(frozen=True, eq=False)
class StepMap:
    """Which forward revealed each token, and the policy that made it; `Rollout.step_map` makes one."""

    step_RL: NDArray[np.int32]
    """Steps count from 0 without gaps, in the row or in each block; NO_STEP where nothing was drawn."""
    version_RL: NDArray[np.int64]
    """Optimiser steps of the policy that drew the token; NO_STEP where nothing was drawn."""
    length_R: NDArray[np.int32]
    """Completion tokens of each row; what lies beyond is padding."""

    @staticmethod
    def of(
        forward_RL: NDArray[np.int32], version_R: NDArray[np.int64], length_R: NDArray[np.int32], block_length: int
    ) -> "StepMap":
        """Return the map of forwards, negative where nothing was drawn; see `Rollout.step_map`."""
        rows, length = forward_RL.shape
        drawn_RL = forward_RL >= 0
        step_RL = np.full((rows, length), NO_STEP, dtype=np.int32)
        for first in range(0, length, block_length or max(1, length)):
            part = slice(first, first + (block_length or length))
            for row in range(rows):
                drawn = drawn_RL[row, part]
                step_RL[row, part][drawn] = np.unique(forward_RL[row, part][drawn], return_inverse=True)[1]
        return StepMap(step_RL, np.where(drawn_RL, version_R[:, None], NO_STEP), length_R)

    @property
    def drawn_RL(self) -> NDArray[np.bool_]:
        """Where the policy drew a token: what a trainer of its trajectory scores, bool [R, L]."""
        return self.step_RL >= 0

    @property
    def steps(self) -> int:
        """The most steps of a row or block."""
        return int(self.step_RL.max(initial=NO_STEP)) + 1

    def lists(self) -> list[list[int]]:
        """Return, for each row, a step per completion token, counted from 1: SGLang's `meta_info["step_maps"]`.

        Raises:
            InvalidValueError: a token that nobody drew has no step in that layout; it needs rollouts without priors.
        """
        inside_RL = np.arange(self.step_RL.shape[1]) < self.length_R[:, None]
        if len(bad := np.argwhere(inside_RL & ~self.drawn_RL)):
            row, position = bad[0].tolist()
            raise InvalidValueError(
                f"step_maps: token {position} of row {row} was not drawn by the policy, needs rollouts without priors "
                "and without stp_eos truncate; drawn_RL and reveals() hold such rows"
            )
        return [(row[:end] + 1).tolist() for row, end in zip(self.step_RL, self.length_R.tolist(), strict=True)]

    def reveals(self, prompt_width: int = 0, steps: int = 0) -> NDArray[np.bool_]:
        """Return bool [R, K, W + L]: the tokens that step k revealed, False over the prompt.

        DARE's `reversed_traj_unmask_positions`, whose response mask is `drawn_RL`.

        Args:
            prompt_width: W, columns of the prompts beside the completions.
            steps: K; 0 takes the most of any row.

        Raises:
            InvalidValueError: a row has more steps.
        """
        steps = steps or self.steps
        if steps < self.steps:
            raise InvalidValueError(f"steps: got {steps}, needs at least {self.steps}, the most of a row")
        reveals_RKL = self.step_RL[:, None, :] == np.arange(steps, dtype=np.int32)[:, None]
        return np.concatenate([np.zeros((*reveals_RKL.shape[:2], prompt_width), dtype=np.bool_), reveals_RKL], axis=-1)

    def masked(self, step: int) -> NDArray[np.bool_]:
        """Return bool [R, L]: the drawn tokens that are still masked when a step begins; with blocks, of each block."""
        return self.step_RL >= step
