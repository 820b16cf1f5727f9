"""Dynamic sampling: groups whose rewards are all equal are replaced by groups of further batches.

Shapes: R rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.priors import Prior

Play = Callable[[PromptBatch, Sequence[Prior]], Rollout]
"""Decodes prompts under priors and scores the completions."""


def informative_groups(first: Rollout, more: Callable[[int], Rollout], most: int) -> tuple[Rollout, int]:
    """Return (batch of the size of `first` with groups of equal rewards replaced, number of groups replaced).

    A group of equal rewards has advantages of 0 and so no gradient. Further batches are drawn until enough of their
    groups have unequal rewards (DAPO, arXiv 2503.14476, dynamic sampling), at most `most`. Where these do not suffice
    the batch keeps some of its groups of equal rewards.

    Args:
        first: the step's own batch, of groups of one size.
        more: attempt (from 1) -> another batch.
        most: attempts.
    """
    flat = _groups(first, equal=True)
    wanted, attempt = len(flat), 0
    found: list[tuple[Rollout, NDArray[np.int64]]] = []
    while len(found) < wanted and attempt < most:
        attempt += 1
        batch = more(attempt)
        found += [(batch, rows) for rows in _groups(batch, equal=False)]
    found = found[:wanted]
    if not found:
        return first, 0
    kept = _groups(first, equal=False) + flat[len(found) :]
    parts = [first.select(rows) for rows in kept] + [batch.select(rows) for batch, rows in found]
    joined = Rollout.concat(parts)
    group = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return replace(joined, prompts=replace(joined.prompts, group=group)), len(found)


def _groups(rollout: Rollout, *, equal: bool) -> list[NDArray[np.int64]]:
    """Return the rows of each group whose rewards (NaN left out) are all equal, or of each whose rewards are not."""
    members = [np.flatnonzero(rollout.group == group) for group in np.unique(rollout.group)]
    judged = [rollout.earned()[rows] for rows in members]
    spread = [np.nanmax(r, initial=-np.inf) > np.nanmin(r, initial=np.inf) for r in judged]
    return [rows for rows, differ in zip(members, spread, strict=True) if bool(differ) != equal]
