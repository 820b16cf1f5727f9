"""One rollout of several processes: each decodes and scores whole groups, and all get the whole record.

Shapes: R rows, L completion length.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import PriorSet
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.distributed import gather, rank, shares
from stp_rs.models.base import DiffusionModel, in_step, whole_weights
from stp_rs.rollout.rewards import is_failures
from stp_rs.types import Metrics


@dataclass(frozen=True)
class Played:
    """What one process hands to the others: its rows, and what reward functions logged about them."""

    rollout: Rollout
    metrics: Metrics = field(default_factory=dict)
    extra: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def played_together(
    model: DiffusionModel,
    prompts: PromptBatch,
    prior: PriorSet,
    length: int,
    play: Callable[[NDArray[np.int64]], Played],
) -> Played:
    """Return what all processes played of a batch: every row in its place, in each of them.

    Args:
        model: the policy.
        prompts: R rows, the same in every process.
        prior: what is fixed of their completions.
        length: L.
        play: decodes and scores some of the rows; not called for none.
    """
    rows = shares(prompts.group, expected_tokens(prompts, prior, length))

    def own() -> Played | None:
        mine = rows[rank()]
        with whole_weights(model), in_step(model):
            if not len(mine) and len(rows) > 1:
                return None
            played = play(mine)
        return _light(played) if len(rows) > 1 else played

    parts = [(mine, part) for mine, part in zip(rows, gather(own), strict=True) if part is not None]
    if len(rows) == 1:
        return parts[0][1]
    order = np.argsort(np.concatenate([mine for mine, _ in parts]), kind="stable")
    whole = Rollout.concat([part.rollout for _, part in parts]).select(order)
    return Played(
        replace(whole, prompts=prompts),
        _mean_metrics([(len(mine), part.metrics) for mine, part in parts]),
        _columns([(len(mine), part.extra) for mine, part in parts], order),
    )


def expected_tokens(prompts: PromptBatch, prior: PriorSet, length: int) -> NDArray[np.int64]:
    """Return [R]: the tokens that a row puts through the model at a token a step; what is fixed costs no step."""
    ids_RL = np.empty((len(prompts), length), dtype=np.int64)
    prior.fill(ids_RL)
    free_R = (ids_RL < 0).sum(1)
    tokens_R: NDArray[np.int64] = np.maximum(free_R, 1) * (prompts.prompt_length.astype(np.int64) + length)
    return tokens_R


def _light(played: Played) -> Played:
    """Return the record without the rows of the dataset, which every process has."""
    prompts = replace(played.rollout.prompts, rows=[{}] * len(played.rollout))
    return replace(played, rollout=replace(played.rollout, prompts=prompts))


def _mean_metrics(parts: Sequence[tuple[int, Metrics]]) -> Metrics:
    """Return the means over completions of what was logged, by name; failures are counted."""
    names = dict.fromkeys(name for _, metrics in parts for name in metrics)
    found = {}
    for name in names:
        having = [(count, metrics[name]) for count, metrics in parts if name in metrics]
        if is_failures(name):
            found[name] = sum(value for _, value in having)
        else:
            found[name] = sum(count * value for count, value in having) / sum(count for count, _ in having)
    return found


def _columns(
    parts: Sequence[tuple[int, Mapping[str, Sequence[Any]]]], order: NDArray[np.int64]
) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for _, extra in parts for name in extra)
    found = {}
    for name in names:
        values = [value for count, extra in parts for value in extra.get(name, [None] * count)]
        found[name] = [values[i] for i in order]
    return found
