"""The prior `Frequency`: tokens on which earlier rollouts of the same prompt agree."""

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

_TOKENS = 8
"""Tokens per position that are counted."""


@dataclass(frozen=True)
class _Counts:
    """Counts of the tokens that one prompt's completions drew: the most frequent of every position, in bounded memory.

    With more than `_TOKENS` tokens at a position each loses as many draws as the next one has (Misra and Gries 1982; as
    merged by Agarwal et al. 2012): a count is never too high, and too low by at most 1 / 9 of the position's draws.
    """

    codes: NDArray[np.int64]
    """Position and token in one number, ascending."""
    counts: NDArray[np.int32]
    """How often each was drawn."""
    seen_L: NDArray[np.int32]
    """Draws at each position, those of tokens that are not counted any more included."""

    def add(self, codes: NDArray[np.int64]) -> "_Counts":
        """Return the counts with more draws."""
        seen_L = np.bincount(codes >> _TOKEN_BITS, minlength=len(self.seen_L)).astype(np.int32)
        seen_L[: len(self.seen_L)] += self.seen_L
        fresh, drawn = np.unique(codes, return_counts=True)
        merged, place = np.unique(np.concatenate([self.codes, fresh]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([self.counts, drawn]), len(merged)).astype(np.int32)
        position = merged >> _TOKEN_BITS
        order = np.lexsort((-counts, position))
        rank = np.arange(len(order)) - np.searchsorted(position, position[order])
        cut_L = np.zeros(len(seen_L), np.int32)
        next_best = order[rank == _TOKENS]
        cut_L[position[next_best]] = counts[next_best]
        counts = counts - cut_L[position]
        return _Counts(merged[counts > 0], counts[counts > 0], seen_L)


@dataclass
class Frequency:
    """Tokens that at least a share of the earlier rollouts of the same prompt drew at the same position.

    Only tokens that the policy drew are counted, never those that a prior fixed: a fixed token is no evidence for
    itself. A position that is fixed in every completion is not drawn any more, so its count stands still; anneal, or
    keep less than all, to let the policy change its mind. Memory is bounded: `prompts` times at most 100 bytes per
    completion token.

    Attributes:
        tokenizer: the policy's tokenizer; its hash is stored with the counts.
        share: of the draws at a position that must agree.
        minimum: draws at a position before it may be fixed.
        keep: share of the agreed positions that is fixed, at random.
        anneal: how `keep` shrinks during training.
        per: what shares a random draw: group or sample.
        seed: key of the draws.
        prompts: prompts whose counts are kept, those that were decoded last.
    """

    tokenizer: Any = field(repr=False)
    share: float = 0.9
    minimum: int = 8
    keep: float = 1.0
    anneal: Anneal = field(default_factory=Anneal)
    per: Per = "group"
    seed: int = 0
    prompts: int = 4096
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options; start without counts."""
        if not 0.0 < self.share <= 1.0 or self.minimum < 1 or self.prompts < 1:
            raise InvalidValueError(
                f"frequency: got share {self.share}, minimum {self.minimum} and prompts {self.prompts}, needs a share "
                "above 0 and at most 1, at least 1 draw and at least 1 prompt"
            )
        self._choice = Choice("random", self.keep, self.anneal, self.per, row_uid(self.seed, _SALT))
        self._counts: dict[int, _Counts] = {}  # the prompt that was decoded last stands last
        self._progress = 0.0

    def begin_step(self, step: int, max_steps: int) -> None:
        """Note the progress of training, which `anneal` reads."""
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
        known = self._counts.get(key)
        if known is None:
            return ids_L
        inside = known.codes >> _TOKEN_BITS < length
        codes, counts = known.codes[inside], known.counts[inside]
        position = codes >> _TOKEN_BITS
        needed_L = np.maximum(self.share * known.seen_L - 1e-9, 1.0)
        agree = (counts >= needed_L[position]) & (known.seen_L[position] >= self.minimum)
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
        nothing = np.empty(0, np.int64)
        for key in np.unique(keys).tolist():
            drawn = codes[keys[rows] == key]
            if len(drawn):
                known = self._counts.pop(key, _Counts(nothing, nothing.astype(np.int32), nothing.astype(np.int32)))
                self._counts[key] = known.add(drawn)
        for key in list(self._counts)[: max(0, len(self._counts) - self.prompts)]:
            del self._counts[key]

    def state_dict(self) -> Stored:
        """Return the counts of every prompt, the one that was decoded last at the end."""
        found = list(self._counts.values())
        arrays: dict[str, NDArray[Any]] = {"keys": np.array(list(self._counts), dtype=np.uint64)}
        for name, dtype in (("codes", np.int64), ("counts", np.int32), ("seen_L", np.int32)):
            columns = [getattr(known, name) for known in found]
            arrays[name] = np.concatenate([np.empty(0, dtype), *columns])
            arrays[f"{name}_sizes"] = np.array([len(column) for column in columns], dtype=np.int64)
        return Stored(arrays, {"tokenizer": tokenizer_hash(self.tokenizer)})

    def load_state_dict(self, stored: Stored) -> None:
        """Continue with stored counts."""
        check_tokenizer(stored, self.tokenizer, "frequency")
        arrays = stored.arrays
        parts = (
            np.split(arrays[name], arrays[f"{name}_sizes"].cumsum()[:-1]) for name in ("codes", "counts", "seen_L")
        )
        self._counts = {
            key: _Counts(*columns)
            for key, columns in zip(arrays["keys"].tolist(), zip(*parts, strict=True), strict=False)
        }
