"""Exceptions of stp_rs. Each is an `StpError` and the standard class that a caller would expect."""

import re
from typing import Any


class StpError(Exception):
    """Base of every error that stp_rs raises on purpose."""


class ShapeError(StpError, ValueError):
    """An array has the wrong shape."""


class DtypeError(StpError, TypeError):
    """An array has the wrong dtype, or is no array."""


class LayoutError(StpError, ValueError):
    """An array is not C-contiguous."""


class AliasError(StpError, ValueError):
    """An array is read-only, or passed twice to a call that writes it."""


class InvalidValueError(StpError, ValueError):
    """A value is outside its domain."""


class PriorConflictError(StpError, ValueError):
    """Two priors fix one position to different tokens."""


class DesignError(StpError, ValueError):
    """A likelihood design cannot be drawn for the given plan."""


class StateError(StpError, RuntimeError):
    """A call came at the wrong time."""


class ConfigError(StpError, ValueError):
    """A configuration field is unknown, missing or out of range."""


class ModelError(StpError, ValueError):
    """A model does not fit the masked-diffusion protocol."""


class CheckpointError(StpError, ValueError):
    """A checkpoint is missing, unreadable, or belongs to another run."""


class StorageError(StpError, OSError):
    """A disk is full, broken or read-only; the message names the newest checkpoint."""


class OutOfMemoryError(StpError, MemoryError, RuntimeError):
    """Memory ended; the message says what was asked for, which options lower it, and names the newest checkpoint."""


def memory_asked(error: BaseException) -> str | None:
    """Return in one line what was asked for where an error says that memory ended, of Python or of torch; else None.

    Errors of this library say themselves what happened: that of a lost process guesses at its memory.
    """
    if isinstance(error, StpError):
        return None
    said = " ".join(str(error).split())
    ended = any(words in said.lower() for words in ("out of memory", "allocate memory", "not enough memory"))
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and ended):
        return None
    asked = re.search(r"[Tt]ri(?:ed|es) to allocate [\d.,]+ ?\w+|[Uu]nable to allocate [\d.,]+ ?\w+", said)
    return asked[0] if asked else said or "of an unknown size"


class DivergenceError(StpError, ArithmeticError):
    """Training produced a NaN or infinity, or an alarm stopped it; the message holds the diagnosis.

    Attributes:
        details: what is known of it, by name: phase, row, prompt, completion, parameters.
    """

    def __init__(self, message: str, /, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class RewardError(StpError, RuntimeError):
    """A reward function raised, did not return in time, or called `sys.exit`."""


class RewardValueError(InvalidValueError):
    """A reward function returned NaN, an infinity or no number.

    Attributes:
        details: what is known of it, by name: phase, reward, row, prompt, completion.
    """

    def __init__(self, message: str, /, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class InternalError(StpError, RuntimeError):
    """A defect of stp_rs itself; please report it."""


class RankError(StpError, RuntimeError):
    """Another process of the run failed; the message says which and why."""


class LostRankError(RankError):
    """A process of the run is gone, or has not come to where the others wait for it."""
