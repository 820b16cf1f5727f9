"""Lengths of a task's texts in tokens of a given tokenizer, and whether its layout has one token per place."""

from collections.abc import Iterable, Mapping
from typing import Any

from stp_rs.errors import ConfigError
from stp_rs.types import Row

_SAMPLE = 512
"""Rows whose texts are counted where a task makes its own."""


def count(text: str, tokenizer: Any) -> int:
    """Return the tokens of a text, special ones left out."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def longest(texts: Iterable[str], tokenizer: Any) -> int:
    """Return the most tokens that any of some texts has; 0 for none."""
    return max((count(text, tokenizer) for text in texts), default=0)


def rounded(tokens: int, to: int = 4) -> int:
    """Return the next multiple of `to`, so that usual block lengths divide it."""
    return -(-tokens // to) * to


class Placed:
    """What tasks share that make their rows and lay completions out by character: lengths in tokens."""

    name: str
    prompt_length: int
    completion_length: int
    template: Mapping[int, str]

    def demonstrations(self, n: int, seed: int) -> list[Row]:
        """Return n rows with `prompt` and `completion`."""
        raise NotImplementedError

    def max_prompt_tokens(self, tokenizer: Any) -> int:
        """Return a length in tokens that holds the task's prompts; see `completion_tokens`."""
        return self._length("prompt", tokenizer, self.prompt_length)

    def completion_tokens(self, tokenizer: Any) -> int:
        """Return the canvas in tokens of a tokenizer, end-of-text included.

        Where every character is a token it is `completion_length`, which no completion exceeds. For another tokenizer
        it is the most tokens of 512 completions and an eighth more, in a multiple of 4, and never longer than that.
        """
        return self._length("completion", tokenizer, self.completion_length)

    def _length(self, column: str, tokenizer: Any, most: int) -> int:
        texts = [str(row[column]) for row in self.demonstrations(_SAMPLE, 0)]
        counts = [count(text, tokenizer) for text in texts]
        if counts == [len(text) for text in texts]:
            return most
        needed = -(-9 * max(counts) // 8)
        return needed if column == "prompt" else min(most, rounded(needed + 1))

    def check_places(self, tokenizer: Any) -> None:
        """Check that a completion has one token per character: then places of the layout are places of the canvas.

        Raises:
            ConfigError: it has not; the message shows a completion and its tokens.
        """
        if self.template:
            check_places(self.name, (str(row["completion"]) for row in self.demonstrations(_SAMPLE, 0)), tokenizer)


def check_places(name: str, completions: Iterable[str], tokenizer: Any) -> None:
    """Raise ConfigError, which shows the first offender, unless every character of some completions is one token."""
    for text in completions:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = [tokenizer.decode([i]) for i in ids]
        if pieces != list(text):
            raise ConfigError(
                f"task {name}: got {len(ids)} tokens for {len(text)} characters ({text!r}), needs a tokenizer with "
                "one token per character for its template, copies and vocabulary; take them out of stp_spatial, or "
                "train a policy with a character tokenizer"
            )
