"""The prior `Length`: every position past a budget of tokens is end-of-text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import PriorSet
from stp_rs.data.prompts import PromptBatch, end_of_text_id, text_lengths
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import InvalidValueError
from stp_rs.priors.choice import fixed_where
from stp_rs.priors.hashes import tokenizer_hash
from stp_rs.priors.lifecycle import check_tokenizer
from stp_rs.types import Mark, Stored

Budget = int | Callable[[Mapping[str, Any]], int | None] | None


def solution_length(text: Callable[[Mapping[str, Any]], str | None], tokenizer: Any) -> Budget:
    """Return a budget: the tokens of a row's solution; rows without one are not cut."""

    def tokens(row: Mapping[str, Any]) -> int | None:
        found = text(row)
        return None if found is None else len(tokenizer(found, add_special_tokens=False)["input_ids"])

    return tokens


@dataclass
class Length:
    """End-of-text at every position from a budget on.

    The budget is known (a number, or one per row), or a quantile of the lengths of all earlier rollouts, end-of-text
    not counted. A quantile is not pushed down by its own cut, because cutting at a quantile leaves it where it is;
    `slack` lets it grow again.

    Attributes:
        tokenizer: the policy's tokenizer.
        budget: tokens before the end, the same for all rows or by row (`solution_length`; None leaves a row whole).
        quantile: share of earlier completions that fit, instead of a budget.
        slack: tokens on top of the budget.
        minimum: completions seen before a quantile cuts anything.
    """

    tokenizer: Any = field(repr=False)
    budget: Budget = None
    quantile: float | None = None
    slack: int = 0
    minimum: int = 64

    @property
    def knows_answer(self) -> bool:
        """Whether the budget is of each row's own solution, or of earlier rollouts: nothing to evaluate under."""
        return not isinstance(self.budget, int)

    def __post_init__(self) -> None:
        """Check that there is one budget; start without observations."""
        if (self.budget is None) == (self.quantile is None):
            raise InvalidValueError(
                f"length: got budget {self.budget!r} and quantile {self.quantile!r}, needs exactly one of them"
            )
        if self.quantile is not None and not 0.0 < self.quantile <= 1.0:
            raise InvalidValueError(f"quantile: got {self.quantile}, needs a share above 0 and at most 1")
        if self.slack < 0 or (isinstance(self.budget, int) and self.budget < 0):
            raise InvalidValueError(f"length: got budget {self.budget} and slack {self.slack}, needs both at least 0")
        self._seen = np.zeros(0, dtype=np.int64)  # completions by length

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the ends of all rows."""
        whole = completion_length
        if callable(self.budget):
            found = [self.budget(row) for row in prompts.rows]
            budgets = [whole if tokens is None else tokens + self.slack for tokens in found]
        else:
            known = self.budget if self.quantile is None else self._quantile()
            budgets = [whole if known is None else known + self.slack] * len(prompts)
        past_RL = np.arange(whole) >= np.array(budgets, dtype=np.int64).reshape(-1, 1)
        ids_RL = np.full(past_RL.shape, end_of_text_id(self.tokenizer), dtype=np.int64)
        return fixed_where(past_RL.astype(np.uint8), ids_RL, "length")

    def _quantile(self) -> int | None:
        total = int(self._seen.sum())
        if total < max(1, self.minimum):
            return None
        needed = (self.quantile or 1.0) * total - 1e-9
        return int(np.searchsorted(self._seen.cumsum(), needed))

    def observe(self, prompts: PromptBatch, rollout: Rollout, rewards: NDArray[np.float32]) -> None:
        """Count the lengths of a batch."""
        del prompts, rewards
        if self.quantile is None:
            return
        length = rollout.token_ids.shape[1]
        length_R = text_lengths(rollout.token_ids, self.tokenizer, (rollout.unmask_step != Mark.OUTSIDE).sum(1))
        seen = np.bincount(length_R, minlength=max(length + 1, len(self._seen)))
        seen[: len(self._seen)] += self._seen
        self._seen = seen.astype(np.int64)

    def state_dict(self) -> Stored:
        """Return the lengths seen; they count tokens of this tokenizer."""
        return Stored({"seen": self._seen}, {"tokenizer": tokenizer_hash(self.tokenizer)})

    def load_state_dict(self, stored: Stored) -> None:
        """Continue with stored lengths."""
        check_tokenizer(stored, self.tokenizer, "length")
        self._seen = stored.arrays["seen"]
