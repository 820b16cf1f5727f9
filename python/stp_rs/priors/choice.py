"""How a prior chooses which of its tokens to fix: a share of them, by a selector, annealed, never of the answer."""

import math
from collections.abc import Callable, Sequence
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
"""What shares a random draw: `group`, all completions of a prompt at every step; `sample`, nothing."""


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
    r"""Return a finder of the text between the last `start` tag and the `end` that belongs to it.

    Where both end in a bracket, as `\boxed{` and `}` do, brackets inside are balanced, and a tag inside another one is
    part of it. A tag that is not closed runs to the end of the text.
    """
    opening = start[-1] if len(end) == 1 and (start[-1:], end) in _PAIRS else ""

    def find(text: str) -> tuple[int, int] | None:
        found, at = None, 0
        while (begin := text.find(start, at)) >= 0:
            begin += len(start)
            stop = _closing(text, begin, opening, end) if opening else text.find(end, begin)
            found = begin, stop if stop >= 0 else len(text)
            at = found[1] if opening else begin
        return found

    return find


_PAIRS = (("{", "}"), ("[", "]"), ("(", ")"))


def _closing(text: str, begin: int, opening: str, end: str) -> int:
    """Return where the bracket that is open at `begin` closes; -1 where it does not."""
    depth = 1
    for at in range(begin, len(text)):
        depth += (text[at] == opening) - (text[at] == end)
        if depth == 0:
            return at
    return -1


def eligible_tokens(token_ids_RL: NDArray[np.int64], tokenizer: Any, span: AnswerSpan | None) -> NDArray[np.uint8]:
    """Return u8 [R, L]: 1 where a token lies outside the answer of its completion, which ends at end-of-text.

    The span is found in the decoded text and mapped to tokens by their offsets in it. A token that makes a part of a
    character counts as that character. Where no answer is found, or a token cannot be placed in the text, nothing of
    the row is eligible: what cannot be told from the answer is not shown. Without a span everything is.
    """
    eligible_RL = np.ones(token_ids_RL.shape, dtype=np.uint8)
    if span is None:
        return eligible_RL
    ends_R = text_lengths(token_ids_RL, tokenizer).tolist()
    known: dict[tuple[int, ...], NDArray[np.bool_] | None] = {}
    for row, (ids, end) in enumerate(zip(token_ids_RL.tolist(), ends_R, strict=True)):
        kept = tuple(ids[:end])
        if kept not in known:
            known[kept] = _in_answer(kept, tokenizer, span)
        inside = known[kept]
        if inside is None:
            eligible_RL[row] = 0
        else:
            eligible_RL[row, : len(kept)] = ~inside
    return eligible_RL


def _in_answer(ids: tuple[int, ...], tokenizer: Any, span: AnswerSpan) -> NDArray[np.bool_] | None:
    """Return which tokens hold a character of the answer; None where there is no answer, or no place for a token."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    found = span(text)
    starts = None if found is None else token_starts(ids, tokenizer, text)
    if found is None or starts is None:
        return None
    bounds = np.append(starts, len(text))
    later = np.append(bounds[1:], len(text))
    # a token without characters of its own, such as a part of one, reaches to the next token that has some
    for i in range(len(ids) - 1, -1, -1):
        later[i] = bounds[i + 1] if bounds[i + 1] > bounds[i] else later[i + 1]
    inside: NDArray[np.bool_] = (starts < found[1]) & (later[: len(ids)] > found[0])
    return inside


def token_starts(ids: Sequence[int], tokenizer: Any, text: str) -> NDArray[np.int64] | None:
    """Return where each token starts in its decoded text, [L] character offsets; None where that cannot be told.

    Tokens are decoded one by one where the pieces make up the text. Otherwise (bytes of a character, white space that
    depends on the neighbours) a token starts where the decoded tokens before it stop agreeing with the text.
    """
    pieces = [tokenizer.decode([i], skip_special_tokens=True) for i in ids]
    if "".join(pieces) == text:
        lengths = [len(piece) for piece in pieces]
        return np.cumsum([0, *lengths[:-1]]) if ids else np.zeros(0, dtype=np.int64)
    starts = [0]
    for k in range(1, len(ids) + 1):
        before = tokenizer.decode(list(ids[:k]), skip_special_tokens=True)
        agreed = _agreed(before, text)
        if agreed < len(before.rstrip("\ufffd ")):
            return None  # decoding a part of the tokens gives another text: offsets would be guesses
        starts.append(max(starts[-1], agreed))
    return np.array(starts[:-1], dtype=np.int64) if starts[-1] == len(text) else None


def _agreed(a: str, b: str) -> int:
    """Return the length of what two texts start with alike."""
    different = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(different, min(len(a), len(b)))


def fixed_where(keep_RL: NDArray[np.uint8], ids_RL: NDArray[np.int64], source: str) -> PriorSet:
    """Return the prior that fixes the kept positions to their ids."""
    return PriorSet.from_dense(np.ascontiguousarray(np.where(keep_RL == 1, ids_RL, -1)), source)
