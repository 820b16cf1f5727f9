"""Frequency: what earlier rollouts of the same prompt agree on."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import PriorSet, row_uid
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import InvalidValueError
from stp_rs.priors.choice import Anneal, Choice, Per, fixed_where
from stp_rs.priors.hashes import prompt_keys, tokenizer_hash
from stp_rs.priors.lifecycle import check_tokenizer
from stp_rs.types import Stored

_SALT = 0xF4E
_TOKEN_BITS = 32

Counts = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Codes (position and token in one number, ascending) and how often each was drawn."""


@dataclass
class Frequency:
    """Tokens that at least a share of the earlier rollouts of the same prompt drew at the same position.

    Only tokens that the policy drew are counted, never those that a prior fixed: what is fixed does not vote for
    itself. A position that is fixed in every completion is not drawn any more, so its count stands still; anneal, or
    keep less than all, to let the policy change its mind.

    Attributes:
        tokenizer: the policy's tokenizer; its hash is stored with the counts.
        share: of the draws at a position that must agree.
        minimum: draws at a position before it may be fixed.
        keep: share of the agreed positions that is fixed, at random.
        anneal: how `keep` shrinks during training.
        per: who shares a draw.
        seed: key of the draws.
    """

    tokenizer: Any
    share: float = 0.9
    minimum: int = 8
    keep: float = 1.0
    anneal: Anneal = field(default_factory=Anneal)
    per: Per = "group"
    seed: int = 0
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options; start without counts."""
        if not 0.0 < self.share <= 1.0 or self.minimum < 1:
            raise InvalidValueError(
                f"frequency: got share {self.share} and minimum {self.minimum}, needs a share above 0 and at most 1, "
                "and at least 1 draw"
            )
        self._choice = Choice("random", self.keep, self.anneal, self.per, row_uid(self.seed, _SALT))
        self._counts: dict[int, Counts] = {}
        self._progress = 0.0

    def begin_step(self, step: int, max_steps: int) -> None:
        """Hear the progress of training."""
        self._progress = step / max(1, max_steps)

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the tokens that each row's prompt has agreed on so far."""
        agreed: dict[int, NDArray[np.int64]] = {}
        keys = prompt_keys(prompts).tolist()
        for key in keys:
            if key not in agreed:
                agreed[key] = self._agreed(key, completion_length)
        ids_RL = np.stack([agreed[k] for k in keys]) if keys else np.empty((0, completion_length), dtype=np.int64)
        keep_RL = self._choice.pick(prompts, (ids_RL >= 0).astype(np.uint8), self._progress)
        return fixed_where(keep_RL, ids_RL, "frequency")

    def _agreed(self, key: int, length: int) -> NDArray[np.int64]:
        """Return i64 [L]: the agreed token, or -1; ties go to the lowest id."""
        ids_L = np.full(length, -1, dtype=np.int64)
        codes, counts = self._counts.get(key, (np.empty(0, np.int64), np.empty(0, np.int64)))
        inside = codes >> _TOKEN_BITS < length
        codes, counts = codes[inside], counts[inside]
        position = codes >> _TOKEN_BITS
        seen_L = np.bincount(position, weights=counts, minlength=length)
        needed_L = np.maximum(self.share * seen_L - 1e-9, 1.0)
        agree = (counts >= needed_L[position]) & (seen_L[position] >= self.minimum)
        order = np.lexsort((-codes[agree], counts[agree]))  # the winner of a position is written last
        best = codes[agree][order]
        ids_L[best >> _TOKEN_BITS] = best & ((1 << _TOKEN_BITS) - 1)
        return ids_L

    def observe(self, prompts: PromptBatch, rollout: Rollout, rewards: NDArray[np.float32]) -> None:
        """Count the tokens that the policy drew."""
        del rewards
        rows, positions = np.nonzero(rollout.unmask_step >= 0)
        codes = positions.astype(np.int64) << _TOKEN_BITS | rollout.token_ids[rows, positions]
        keys = prompt_keys(prompts)
        for key in np.unique(keys):
            fresh, count = np.unique(codes[keys[rows] == key], return_counts=True)
            if len(fresh):
                fresh_counts = (fresh, count.astype(np.int64))
                old = self._counts.get(int(key))
                self._counts[int(key)] = fresh_counts if old is None else _add(old, fresh_counts)

    def state_dict(self) -> Stored:
        """Return the counts of every prompt."""
        keys = sorted(self._counts)
        found = [self._counts[k] for k in keys]
        empty = np.empty(0, dtype=np.int64)
        arrays = {
            "keys": np.array(keys, dtype=np.uint64),
            "sizes": np.array([len(codes) for codes, _ in found], dtype=np.int64),
            "codes": np.concatenate([empty, *(codes for codes, _ in found)]),
            "counts": np.concatenate([empty, *(counts for _, counts in found)]),
        }
        return Stored(arrays, {"tokenizer": tokenizer_hash(self.tokenizer)})

    def load_state_dict(self, stored: Stored) -> None:
        """Go on with stored counts."""
        check_tokenizer(stored, self.tokenizer, "frequency")
        cuts = stored.arrays["sizes"].cumsum()[:-1]
        parts = (np.split(stored.arrays[name], cuts) for name in ("codes", "counts"))
        self._counts = dict(zip(stored.arrays["keys"].tolist(), zip(*parts, strict=True), strict=False))


def _add(first: Counts, second: Counts) -> Counts:
    merged, place = np.unique(np.concatenate([first[0], second[0]]), return_inverse=True)
    total = np.bincount(place, weights=np.concatenate([first[1], second[1]]), minlength=len(merged))
    return merged, total.astype(np.int64)
