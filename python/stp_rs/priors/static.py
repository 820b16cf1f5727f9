"""The priors `Template` and `Copy`: tokens that the output format or the prompt determines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stp_rs._core import PriorSet
from stp_rs.data.prompts import PromptBatch, end_of_text_id
from stp_rs.errors import InvalidValueError, PriorConflictError

END = ""
"""Stands for the end-of-text token in a template or copy."""


def token_id(text: str, tokenizer: Any) -> int:
    """Return the id of a one-token text, or of end-of-text for `END`."""
    if text == END:
        return end_of_text_id(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise InvalidValueError(f"prior text {text!r}: got {len(ids)} tokens, needs exactly one; split it by position")
    return int(ids[0])


def _dense(cells: Sequence[Mapping[int, str]], tokenizer: Any, length: int, source: str) -> PriorSet:
    ids_RL = np.full((len(cells), length), -1, dtype=np.int64)
    known: dict[str, int] = {}
    for row, mapping in enumerate(cells):
        for position, text in mapping.items():
            if not -length <= position < length:
                raise InvalidValueError(
                    f"prior position: got {position}, needs one from {-length} to {length - 1} for a completion of "
                    f"{length} tokens"
                )
            if text not in known:
                known[text] = token_id(text, tokenizer)
            fixed = ids_RL[row, position]
            if fixed not in (-1, known[text]):  # a position named from both ends
                raise PriorConflictError(
                    f"prior row {row}: position {position} is fixed to token {fixed} and to token {known[text]}"
                )
            ids_RL[row, position] = known[text]
    return PriorSet.from_dense(ids_RL, source)


@dataclass(frozen=True)
class Template:
    """Literal tokens of the output format at fixed places.

    Attributes:
        texts: completion position -> one-token text, or `END`; a negative position counts from the end of the canvas.
        tokenizer: the policy's tokenizer.
    """

    texts: Mapping[int, str]
    tokenizer: Any = field(repr=False)

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the template for every row."""
        return _dense([self.texts] * len(prompts), self.tokenizer, completion_length, "template")


@dataclass(frozen=True)
class Copy:
    """Completion tokens that the prompt already determines, for example the clues of a Sudoku.

    Attributes:
        copies: dataset row -> (completion position -> one-token text).
        tokenizer: the policy's tokenizer.
    """

    copies: Callable[[dict[str, Any]], Mapping[int, str]]
    tokenizer: Any = field(repr=False)

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return each row's copies."""
        return _dense([self.copies(dict(row)) for row in prompts.rows], self.tokenizer, completion_length, "copy")
