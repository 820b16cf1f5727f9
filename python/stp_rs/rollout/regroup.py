"""A batch of completions and what they earned, and the two ways to change one before it is learned from.

Shapes: R rows, L completion length, P longest prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stp_rs.data.prompts import PromptBatch
from stp_rs.priors import Prior
from stp_rs.rollout.generate import Rollout


@dataclass(frozen=True)
class Played:
    """A batch of completions and what they earned."""

    rollout: Rollout
    completions: list[str]
    rewards: NDArray[np.float32]
    """[R]."""
    by_name: dict[str, NDArray[np.float32]]
    """Reward function -> its rewards, [R] each."""

    def __len__(self) -> int:
        """Return R."""
        return len(self.rollout)


Play = Callable[[PromptBatch, Sequence[Prior]], Played]
"""Decodes prompts under priors and scores the completions."""


def informative_groups(first: Played, more: Callable[[int], Played], most: int) -> tuple[Played, int]:
    """Return a batch of the size of `first` in which groups of equal rewards were replaced, and how many were.

    Such a group has no advantage and teaches nothing. Further batches are drawn until enough of their groups have
    unequal rewards (DAPO, arXiv 2503.14476, dynamic sampling), at most `most`; what is lacking then stays as it was.

    Args:
        first: the step's own batch, of groups of one size.
        more: attempt (from 1) -> another batch.
        most: attempts.
    """
    flat = _groups(first, equal=True)
    wanted, attempt = len(flat), 0
    found: list[tuple[Played, NDArray[np.int64]]] = []
    while len(found) < wanted and attempt < most:
        attempt += 1
        batch = more(attempt)
        found += [(batch, rows) for rows in _groups(batch, equal=False)]
    found = found[:wanted]
    if not found:
        return first, 0
    kept = _groups(first, equal=False) + flat[len(found) :]
    return join([*((first, rows) for rows in kept), *found]), len(found)


def join(parts: Sequence[tuple[Played, NDArray[np.int64]]]) -> Played:
    """Return the given rows of the given batches as one; each part is a group. Counters are those of all batches."""
    width = max(played.rollout.prompt_ids.shape[1] for played, _ in parts)

    prompts = PromptBatch(
        rows=[played.rollout.prompts.rows[row] for played, rows in parts for row in rows.tolist()],
        prompt_ids=np.concatenate([_widened(played.rollout.prompt_ids[rows], width) for played, rows in parts]),
        prompt_length=np.concatenate([played.rollout.prompt_length[rows] for played, rows in parts]),
        uid=np.concatenate([played.rollout.uid[rows] for played, rows in parts]),
        group=np.repeat(np.arange(len(parts)), [len(rows) for _, rows in parts]),
    )
    batches = list({id(played): played for played, _ in parts}.values())
    rollout = Rollout(
        prompts=prompts,
        token_ids=np.concatenate([played.rollout.token_ids[rows] for played, rows in parts]),
        unmask_step=np.concatenate([played.rollout.unmask_step[rows] for played, rows in parts]),
        logprob=np.concatenate([played.rollout.logprob[rows] for played, rows in parts]),
        nfe=np.concatenate([played.rollout.nfe[rows] for played, rows in parts]),
        stop_reason=np.concatenate([played.rollout.stop_reason[rows] for played, rows in parts]),
        exact=all(played.rollout.exact for played in batches),
        stats={name: sum(b.rollout.stats.get(name, 0) for b in batches) for name in batches[0].rollout.stats},
    )
    names = list(batches[0].by_name)
    return Played(
        rollout,
        [played.completions[row] for played, rows in parts for row in rows.tolist()],
        np.concatenate([played.rewards[rows] for played, rows in parts]),
        {name: np.concatenate([played.by_name[name][rows] for played, rows in parts]) for name in names},
    )


def _groups(played: Played, *, equal: bool) -> list[NDArray[np.int64]]:
    """Return the rows of each group whose judged rewards are all equal (or none), or are not."""
    members = [np.flatnonzero(played.rollout.group == group) for group in np.unique(played.rollout.group)]
    judged = [played.rewards[rows] for rows in members]
    spread = [np.nanmax(r, initial=-np.inf) > np.nanmin(r, initial=np.inf) for r in judged]
    return [rows for rows, differ in zip(members, spread, strict=True) if bool(differ) != equal]


def _widened(ids_RP: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    wide = np.zeros((len(ids_RP), width), dtype=np.int64)
    wide[:, : ids_RP.shape[1]] = ids_RP
    return wide
