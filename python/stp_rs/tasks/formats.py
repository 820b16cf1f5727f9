"""Rewards for layout and length. Each maker returns a TRL-shaped reward function with a name of its own."""

from collections.abc import Sequence
from typing import Any

from stp_rs._core import tag_layout
from stp_rs.errors import ConfigError
from stp_rs.tasks.base import RewardFunc
from stp_rs.tasks.columns import column, texts

TAGS = ("reasoning", "answer")


def tag_share(tags: Sequence[str] = TAGS, prefilled: bool = False) -> RewardFunc:
    """Return a reward in [0, 1]: the share of opening and closing tags that occur exactly once, in order.

    With `prefilled`, the first opening tag is in the prompt and must not be in the completion.
    """

    def tag_share_reward(
        completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
    ) -> list[float]:
        del prompts, columns
        return [share for share, _ in tag_layout(texts(completions), list(tags), prefilled)]

    return tag_share_reward


def tag_strict(tags: Sequence[str] = TAGS, prefilled: bool = False) -> RewardFunc:
    """Return a reward of 1.0 for tags in order with nothing but white space outside them, else 0.0."""

    def tag_strict_reward(
        completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
    ) -> list[float]:
        del prompts, columns
        return [float(strict) for _, strict in tag_layout(texts(completions), list(tags), prefilled)]

    return tag_strict_reward


def length_penalty(max_length: int, buffer: int) -> RewardFunc:
    """Return a penalty in [-1, 0] for long completions (DAPO, arXiv 2503.14476, eq. 13).

    It is 0 up to `max_length - buffer`, falls linearly to -1 at `max_length`, and stays there. Lengths are
    tokens where the batch has the column `completion_ids`, else characters.
    """
    if not 0 < buffer <= max_length:
        raise ConfigError(f"buffer: got {buffer}, needs 1 to max_length ({max_length})")

    def length_penalty_reward(
        completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
    ) -> list[float]:
        del prompts
        named = columns.get("completion_ids") is not None
        counted = column(columns, "completion_ids", len(completions)) if named else texts(completions)
        return [-min(1.0, max(0.0, (len(one) - (max_length - buffer)) / buffer)) for one in counted]

    return length_penalty_reward
