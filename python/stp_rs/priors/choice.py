"""Which of the tokens that could be fixed are: shares, annealing, keyed draws, answer spans."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import PriorSet, choose_anchors
from stp_rs.data.prompts import PromptBatch, text_lengths
from stp_rs.errors import InvalidValueError
from stp_rs.priors.hashes import prompt_keys

Kind = Literal["constant", "linear", "cosine"]
Per = Literal["group", "sample"]
"""Who shares a draw: a prompt's completions, at every step; or nobody."""


@dataclass(frozen=True)
class Anneal:
    """How a share shrinks during training: a factor of 1 at the start and exactly 0 from `until` of training on.

    Example:
        >>> [Anneal("linear", 0.5).factor(progress) for progress in (0.0, 0.25, 0.5, 1.0)]
        [1.0, 0.5, 0.0, 0.0]
    """

    kind: Kind = "constant"
    until: float = 1.0

    def __post_init__(self) -> None:
        """Check both fields."""
        if self.kind not in get_args(Kind) or not 0.0 < self.until <= 1.0:
            raise InvalidValueError(
                f"anneal: got {self.kind}:{self.until:g}, needs none, linear:UNTIL or cosine:UNTIL with UNTIL above 0 "
                "and at most 1, a share of training"
            )

    @staticmethod
    def parse(text: str) -> "Anneal":
        """Return the annealing of a config string: none, linear:UNTIL, cosine:UNTIL."""
        kind, _, until = text.partition(":")
        if text == "none":
            return Anneal()
        try:
            share = float(until or 1.0)
        except ValueError:
            share = math.nan  # refused below, like any other number that is no share
        return Anneal(kind, share)  # type: ignore[arg-type]

    def factor(self, progress: float) -> float:
        """Return the factor at a share of training done."""
        if self.kind == "constant":
            return 1.0
        if progress >= self.until:
            return 0.0
        done = progress / self.until
        return 1.0 - done if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Choice:
    """How anchors are chosen: a share of what is eligible, by a selector, annealed.

    A draw is a function of (seed, prompt), or with `per="sample"` of (seed, row uid), which holds the step.
    """

    selector: str
    share: float
    anneal: Anneal = Anneal()
    per: Per = "group"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fields that the core does not see before a rollout."""
        if self.per not in get_args(Per):
            raise InvalidValueError(f"per: got {self.per!r}, needs group or sample")
        if not 0.0 <= self.share <= 1.0:
            raise InvalidValueError(f"share: got {self.share}, needs a share between 0 and 1")

    def pick(
        self,
        prompts: PromptBatch,
        eligible_RL: NDArray[np.uint8],
        progress: float,
        confidence_RL: NDArray[np.float32] | None = None,
    ) -> NDArray[np.uint8]:
        """Return u8 [R, L]: 1 at the chosen positions; at least one of a row's eligible ones where the share is > 0."""
        if confidence_RL is None:
            confidence_RL = np.zeros(eligible_RL.shape, dtype=np.float32)
        keep_RL = np.zeros(eligible_RL.shape, dtype=np.uint8)
        choose_anchors(
            self.selector,
            self.share * self.anneal.factor(progress),
            confidence=np.ascontiguousarray(confidence_RL),
            eligible=np.ascontiguousarray(eligible_RL),
            seed=self.seed,
            uids=prompt_keys(prompts) if self.per == "group" else np.ascontiguousarray(prompts.uid),
            keep=keep_RL,
        )
        return keep_RL


AnswerSpan = Callable[[str], tuple[int, int] | None]
"""Completion text -> character range of the answer, which is never fixed; None where there is no answer."""


def tag_span(start: str = "<answer>", end: str = "</answer>") -> AnswerSpan:
    """Return a finder of the text between the last `start` tag and the `end` that follows it."""

    def find(text: str) -> tuple[int, int] | None:
        begin = text.rfind(start)
        if begin < 0:
            return None
        begin += len(start)
        stop = text.find(end, begin)
        return begin, stop if stop >= 0 else len(text)

    return find


def eligible_tokens(token_ids_RL: NDArray[np.int64], tokenizer: Any, span: AnswerSpan | None) -> NDArray[np.uint8]:
    """Return u8 [R, L]: 1 where a token lies outside the answer span of its completion, which ends at end-of-text."""
    eligible_RL = np.ones(token_ids_RL.shape, dtype=np.uint8)
    if span is None:
        return eligible_RL
    ends_R = text_lengths(token_ids_RL, tokenizer).tolist()
    for row, (ids, end) in enumerate(zip(token_ids_RL.tolist(), ends_R, strict=True)):
        pieces = [tokenizer.decode([i], skip_special_tokens=True) if p < end else "" for p, i in enumerate(ids)]
        ends = np.cumsum([len(piece) for piece in pieces])
        found = span("".join(pieces))
        if found is not None:
            starts = ends - [len(piece) for piece in pieces]
            eligible_RL[row, (starts < found[1]) & (ends > found[0])] = 0
    return eligible_RL


def fixed_where(keep_RL: NDArray[np.uint8], ids_RL: NDArray[np.int64], source: str) -> PriorSet:
    """Return the prior that fixes the kept positions to their ids."""
    return PriorSet.from_dense(np.ascontiguousarray(np.where(keep_RL == 1, ids_RL, -1)), source)
