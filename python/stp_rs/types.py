"""What several parts of the library hand to each other."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = dict[str, Any]
"""One problem: `prompt` (text or chat messages) and whatever columns the rewards read."""


@dataclass
class Cost:
    """What some model calls computed; functions that call the model add to it."""

    forwards: int = 0
    """Canvases."""
    tokens: int = 0
    """Tokens of the canvases, padding included."""
    head_rows: int = 0
    """Positions that the head ran on."""


@dataclass(frozen=True)
class Stored:
    """What a part of a run keeps: arrays, and hashes of what their numbers belong to (tokenizer, policy)."""

    arrays: dict[str, NDArray[Any]]
    hashes: dict[str, str]
