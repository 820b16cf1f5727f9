"""Rescue of groups without any reward: some of their rows are decoded again with a hint (IGPO, arXiv 2509.10396).

A group whose completions all fail has no advantage and teaches nothing. With a part of a reference solution given, some
of its rows may earn a reward, and the group a gradient. Shapes: R rows, L completion length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import PriorSet, row_uid
from stp_rs.data.prompts import PromptBatch
from stp_rs.priors import Prior, Reference
from stp_rs.rollout.regroup import Play, Played

_SALT = 0x4E5C


@dataclass(frozen=True)
class Hint:
    """A reference's hints as a prior, whatever its `when` says."""

    reference: Reference
    soft: bool = True

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the hints of every row."""
        return self.reference.hints(prompts, completion_length)


def rescue_groups(
    played: Played, play: Play, reference: Reference, *, share: float, priors: Sequence[Prior] = ()
) -> tuple[Played, int]:
    """Return the batch with rescued rows in place of failed ones, and how many there are.

    Of every group whose rewards are all at most 0, the first `share` of the rows (rounded up) is decoded once more,
    with a hint before all soft priors and with uids of its own. A row is replaced where the new completion earns a
    reward above 0; where it does not, the policy's own stays. Groups that earned anything are left as they are.

    Args:
        played: the batch.
        play: decodes and scores.
        reference: gives the hints; rows for which it has none are not decoded again.
        share: of a group's rows, above 0 and at most 1.
        priors: those of the batch.
    """
    rows = _failed_rows(played, share)
    length = played.rollout.token_ids.shape[1]
    if rows:
        hinted = reference.hints(played.rollout.prompts.select(rows), length)
        rows = [row for i, row in enumerate(rows) if hinted.row(i)]
    if not rows:
        return played, 0
    keys = [row_uid(int(played.rollout.uid[row]), _SALT) for row in rows]
    again = play(played.rollout.prompts.select(rows, np.array(keys, dtype=np.uint64)), [Hint(reference), *priors])
    earned = np.flatnonzero(again.rewards > 0)
    return _merge(played, again, np.array(rows, dtype=np.int64)[earned], earned), len(earned)


def _failed_rows(played: Played, share: float) -> list[int]:
    rows: list[int] = []
    for group in np.unique(played.rollout.group):
        members = np.flatnonzero(played.rollout.group == group)
        judged = played.rewards[members][~np.isnan(played.rewards[members])]
        if len(judged) and (judged <= 0).all():
            rows += members[: int(np.ceil(share * len(members) - 1e-9))].tolist()
    return sorted(rows)


_BY_ROW = ("token_ids", "unmask_step", "logprob", "nfe", "stop_reason")


def _merge(played: Played, again: Played, rows: NDArray[np.int64], taken: NDArray[np.int64]) -> Played:
    """Return `played` with rows `taken` of `again` at `rows`; the counters are those of both."""

    def put(old: NDArray[Any], new: NDArray[Any]) -> NDArray[Any]:
        merged: NDArray[Any] = old.copy()
        merged[rows] = new[taken]
        return merged

    first, second = played.rollout, again.rollout
    columns = {name: put(getattr(first, name), getattr(second, name)) for name in _BY_ROW}
    prompts = replace(first.prompts, uid=put(first.uid, second.uid))
    stats = {name: first.stats.get(name, 0) + second.stats.get(name, 0) for name in {**first.stats, **second.stats}}
    rollout = replace(first, prompts=prompts, exact=first.exact and second.exact, stats=stats, **columns)
    completions = list(played.completions)
    for row, new in zip(rows.tolist(), taken.tolist(), strict=True):
        completions[row] = again.completions[new]
    by_name = {name: put(values, again.by_name[name]) for name, values in played.by_name.items()}
    return Played(rollout, completions, put(played.rewards, again.rewards), by_name)
