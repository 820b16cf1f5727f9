"""Helpers of reward functions: the texts of completions and the columns of a batch, checked."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stp_rs.errors import ConfigError


def texts(completions: Sequence[Any]) -> list[str]:
    """Return one string per completion; of a conversation (a list of messages) the last message's content."""
    return [_text(completion) for completion in completions]


def _text(completion: object) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion and isinstance(completion[-1], Mapping):
        return str(completion[-1].get("content") or "")
    return "" if completion is None else str(completion)


def column(columns: Mapping[str, object], name: str, n: int) -> list[Any]:
    """Return column `name` of a batch of n rows; ConfigError when it is missing or has another length."""
    values = columns.get(name)
    if values is None:
        have = ", ".join(sorted(columns)) or "none"
        raise ConfigError(f"the reward needs the column '{name}'; the batch has: {have}. Keep it in the dataset.")
    values = list(values) if isinstance(values, Iterable) else []
    if len(values) != n:
        raise ConfigError(f"column '{name}' has {len(values)} values for {n} completions; give one per completion")
    return values
