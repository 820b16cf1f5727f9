"""The prior `Hint`: a part of a known solution, given during training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from stp_rs._core import PriorSet, row_uid
from stp_rs.data.prompts import PromptBatch, end_of_text_id
from stp_rs.errors import InvalidValueError
from stp_rs.priors.choice import Anneal, AnswerSpan, Choice, Per, eligible_tokens, fixed_where
from stp_rs.text import one_of

SELECTORS = ("random", "prefix", "span")
_SALT = 0x5EF


@dataclass
class Hint:
    """A part of a known solution, as a hint for training only.

    A hint that stays whole keeps the policy from learning what it is given, so anneal it to 0, or give it to groups
    alone whose completions all failed (IGPO, arXiv 2509.10396; `stp_rs.rollout.rescue`).

    Attributes:
        text: dataset row -> a correct completion, or None.
        tokenizer: the policy's tokenizer.
        share: share of the solution's tokens that is given.
        selector: random, prefix, span.
        answer_span: finds the answer in the solution; it is never given. None gives any token.
        when: always, or all_wrong: nothing in an ordinary rollout, `hints` only.
        anneal: how `share` shrinks during training.
        per: what shares a random draw: group or sample.
        seed: key of the draws.
    """

    text: Callable[[Mapping[str, Any]], str | None]
    tokenizer: Any = field(repr=False)
    share: float = 0.5
    selector: str = "random"
    answer_span: AnswerSpan | None = None
    when: Literal["always", "all_wrong"] = "always"
    anneal: Anneal = field(default_factory=Anneal)
    per: Per = "group"
    seed: int = 0
    soft: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the options."""
        if self.selector not in SELECTORS:
            raise InvalidValueError(f"hint selector: got {self.selector!r}, {one_of(self.selector, SELECTORS)}")
        if self.when not in ("always", "all_wrong"):
            raise InvalidValueError(f"when: got {self.when!r}, needs always or all_wrong")
        seed = row_uid(self.seed, _SALT)
        self._choice = Choice(self.selector, self.share, self.anneal, self.per, seed)
        self._progress = 0.0

    def begin_step(self, step: int, max_steps: int) -> None:
        """Note the progress of training, which `anneal` reads."""
        self._progress = step / max(1, max_steps)

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the hints of an ordinary rollout."""
        if self.when == "all_wrong":
            return PriorSet.empty(len(prompts))
        return self.hints(prompts, completion_length)

    def hints(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the hints at this point of training, whatever `when` says."""
        ids_RL = np.full((len(prompts), completion_length), end_of_text_id(self.tokenizer), dtype=np.int64)
        given_RL = np.zeros(ids_RL.shape, dtype=np.uint8)
        encoded: dict[str, list[int]] = {}
        for row, columns in enumerate(prompts.rows):
            text = self.text(columns)
            if text is None:
                continue
            if text not in encoded:
                encoded[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"][:completion_length]
            ids_RL[row, : len(encoded[text])] = encoded[text]
            given_RL[row, : len(encoded[text])] = 1
        given_RL &= eligible_tokens(ids_RL, self.tokenizer, self.answer_span)
        return fixed_where(self._choice.pick(prompts, given_RL, self._progress), ids_RL, "hint")
