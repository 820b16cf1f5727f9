"""Rescue of groups without any reward: some of their rows are decoded again with a hint (IGPO, arXiv 2509.10396).

A group whose completions all fail has advantages of 0 and no gradient. With a part of a known solution given, some of
its rows may earn a reward, and the group a gradient. Shapes: R rows, L completion length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stp_rs._core import PriorSet, row_uid
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.priors import Hint, Prior
from stp_rs.rollout.regroup import Play

_SALT = 0x4E5C


@dataclass(frozen=True)
class _Hinted:
    """The hints as a prior, whatever their `when` says."""

    hint: Hint
    soft: bool = True

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the hints of every row."""
        return self.hint.hints(prompts, completion_length)


def rescue_groups(
    rollout: Rollout, play: Play, hint: Hint, *, share: float, priors: Sequence[Prior] = ()
) -> tuple[Rollout, int]:
    """Return (the batch with rescued rows in place of failed ones, their number).

    Of every group whose rewards are all at most 0, the first `share` of the rows (rounded up) is decoded once more,
    with a hint before all soft priors and with uids of its own. A row is replaced where the new completion earns a
    reward above 0; where it does not, the policy's own stays. Groups that earned anything are left as they are.

    Args:
        rollout: the batch.
        play: decodes and scores.
        hint: gives the hints; rows for which it has none are not decoded again.
        share: of a group's rows, above 0 and at most 1.
        priors: those of the batch.
    """
    rows = _failed_rows(rollout, share)
    length = rollout.token_ids.shape[1]
    if rows:
        hinted = hint.hints(rollout.prompts.select(rows), length)
        rows = [row for i, row in enumerate(rows) if hinted.row(i)]
    if not rows:
        return rollout, 0
    keys = [row_uid(int(rollout.uid[row]), _SALT) for row in rows]
    again = play(rollout.prompts.select(rows, np.array(keys, dtype=np.uint64)), [_Hinted(hint), *priors])
    earned = np.flatnonzero(again.earned() > 0)
    return rollout.replace_rows(np.array(rows, dtype=np.int64)[earned], again.select(earned)), len(earned)


def _failed_rows(rollout: Rollout, share: float) -> list[int]:
    rows: list[int] = []
    for group in np.unique(rollout.group):
        members = np.flatnonzero(rollout.group == group)
        judged = rollout.earned()[members]
        judged = judged[~np.isnan(judged)]
        if len(judged) and (judged <= 0).all():
            rows += members[: int(np.ceil(share * len(members) - 1e-9))].tolist()
    return sorted(rows)
