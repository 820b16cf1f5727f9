"""Rewards: TRL-shaped functions on completion texts.

A reward function is `f(completions, prompts=..., completion_ids=..., **columns) -> list[float]`, where columns are the
dataset's columns as lists. A value of None means that the function does not apply to that completion.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs.data.prompts import text_lengths
from stp_rs.errors import InvalidValueError

RewardFunc = Callable[..., Sequence[float | None]]


def decode_completions(token_ids_RL: NDArray[np.int64], lengths_R: NDArray[np.integer], tokenizer: Any) -> list[str]:
    """Return completion texts: tokens up to the first that ends a text, special tokens left out."""
    ends_R = text_lengths(token_ids_RL, tokenizer, lengths_R)
    kept = [ids[:end] for ids, end in zip(token_ids_RL.tolist(), ends_R.tolist(), strict=True)]
    return list(tokenizer.batch_decode(kept, skip_special_tokens=True))


def score_rewards(
    reward_funcs: Sequence[RewardFunc],
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    completion_ids: Sequence[Sequence[int]] | None = None,
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Return (sum of rewards [R], rewards by function name, NaN where a function did not apply).

    Raises:
        InvalidValueError: a function returned the wrong number of values, or a value that is not finite.
    """
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(k for row in rows for k in row)}
    prompts = columns.pop("prompt", [None] * len(rows))
    by_name: dict[str, NDArray[np.float32]] = {}
    for func in reward_funcs:
        name = _free_name(str(getattr(func, "__name__", type(func).__name__)), by_name)
        values = func(completions=list(completions), prompts=prompts, completion_ids=completion_ids, **columns)
        if len(values) != len(completions):
            raise InvalidValueError(
                f"reward {name}: got {len(values)} values for {len(completions)} completions, needs one each"
            )
        array = np.array([np.nan if v is None else float(v) for v in values], dtype=np.float32)
        given = np.array([v is not None for v in values], dtype=bool)
        if not np.isfinite(array[given]).all():
            bad = int(np.flatnonzero(given & ~np.isfinite(array))[0])
            raise InvalidValueError(
                f"reward {name}: got {values[bad]} for completion {completions[bad]!r}, needs a finite number, "
                "or None where it does not apply"
            )
        by_name[name] = array
    if not by_name:
        raise InvalidValueError("reward_funcs: got none, needs at least one function")
    return np.nansum(np.stack(list(by_name.values())), axis=0).astype(np.float32), by_name


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    """Return `name`, or `name_2`, `name_3` ... where it is taken: two lambdas are two rewards."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
