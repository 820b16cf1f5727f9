"""Types that several folders share: marks, stop reasons, costs, stored state, type aliases."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import MARKS, STOP_REASONS

Floats = NDArray[np.float64]
Metrics = dict[str, float]
Row = dict[str, Any]
"""One problem: `prompt` (text or chat messages) and whatever columns the rewards read."""
RewardFunc = Callable[..., Sequence[float | None]]
"""`reward(completions, prompts, **columns)`, as in TRL: a number per completion, None where it does not judge; columns
are lists."""


class Mark(IntEnum):
    """What `unmask_step` says of a position that no forward revealed; all are negative, steps count from 0."""

    PRIOR = MARKS["PRIOR"]
    """A prior fixed it before decoding."""
    OUTSIDE = MARKS["OUTSIDE"]
    """It lies beyond the row's completion."""
    UNDRAWN = MARKS["UNDRAWN"]
    """Nobody drew it: the row ended before, and it was filled with end-of-text. It was masked in every state."""


class StopReason(IntEnum):
    """Why a row of a rollout ended."""

    PLAN = STOP_REASONS["PLAN"]
    """Its plan reached the end."""
    TEMPORAL = STOP_REASONS["TEMPORAL"]
    """Its temporal rule committed the rest."""
    MAX_NFE = STOP_REASONS["MAX_NFE"]
    """Its forward budget committed the rest."""
    PRIOR = STOP_REASONS["PRIOR"]
    """The prior fixed every position: no forward was needed."""
    EOS = STOP_REASONS["EOS"]
    """Everything up to its first end-of-text token was revealed."""


@dataclass
class Cost:
    """What some model calls computed: what runs the model returns it, or adds to one it is given."""

    forwards: int = 0
    """Canvases."""
    tokens: int = 0
    """Tokens of the canvases, padding included."""
    head_rows: int = 0
    """Positions that the head ran on."""

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of both."""
        return Cost(self.forwards + other.forwards, self.tokens + other.tokens, self.head_rows + other.head_rows)


@dataclass(frozen=True)
class Stored:
    """What a part of a run keeps: arrays, and hashes of what their numbers belong to (tokenizer, policy)."""

    arrays: dict[str, NDArray[Any]]
    hashes: dict[str, str]
