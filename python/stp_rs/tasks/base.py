"""What a task offers to the trainer: rows, demonstrations, priors that need no answer, rewards, scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from stp_rs.priors.base import Constrained, Referenced
from stp_rs.types import RewardFunc, Row

__all__ = ["Constrained", "Referenced", "RewardFunc", "Row", "Split", "Task"]

Split = Literal["train", "validation", "test"]


class Task(Protocol):
    """A family of problems with a generator, a grader and the static priors that its prompts determine."""

    name: str
    alphabet: str
    """Every character of its prompts and completions: the vocabulary of the character tokenizer."""
    prompt_length: int
    """Longest prompt in characters: tokens of the character tokenizer; see `max_prompt_tokens` for others."""
    completion_length: int
    """Canvas length in tokens of the character tokenizer, end-of-text included; see `completion_tokens` for others."""
    whole_answer: bool
    """Whether a completion is its answer and nothing else: then a hint may show a part of the answer."""
    template: Mapping[int, str]
    """Completion position -> literal one-token text of the output format (Template prior); "" is end-of-text."""
    reward_funcs: Sequence[RewardFunc]

    def rows(self, split: Split, n: int, seed: int) -> list[Row]:
        """Return n problems of a split; (split, n, seed) fixes the rows, and splits never overlap."""
        ...

    def demonstrations(self, n: int, seed: int) -> list[Row]:
        """Return n training rows with an added `completion` (no end-of-text) for the SFT warm-up."""
        ...

    def copies(self, row: Row) -> Mapping[int, str]:
        """Return completion position -> one-token text that the prompt already determines (Copy prior)."""
        ...

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Return the character range of the answer in a completion, which is never given away; None for no answer."""
        ...

    def max_prompt_tokens(self, tokenizer: Any) -> int:
        """Return the longest prompt in tokens of a tokenizer."""
        ...

    def completion_tokens(self, tokenizer: Any) -> int:
        """Return the canvas length in tokens of a tokenizer, end-of-text included."""
        ...

    def check_places(self, tokenizer: Any) -> None:
        """Raise ConfigError where places of `template`, `copies` and `allowed` are no token places of a tokenizer."""
        ...

    def score(self, completions: Sequence[str], rows: Sequence[Row]) -> dict[str, list[float]]:
        """Return evaluation scores by name, one float per completion; always has `solved` (0 or 1)."""
        ...

    def load(self, path: Path) -> list[Row]:
        """Return the rows of a file in the task's published format, converted to this task's prompts."""
        ...
