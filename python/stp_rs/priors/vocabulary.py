"""The prior `Vocabulary`: which tokens are allowed at each completion position."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stp_rs._core import PriorSet
from stp_rs.data.prompts import PromptBatch
from stp_rs.errors import InvalidValueError
from stp_rs.priors.static import token_id

Texts = Sequence[str] | None


@dataclass
class Vocabulary:
    """Allowed tokens per completion position.

    No token is fixed: the others become impossible, where tokens are drawn and where they are scored alike, so that the
    ratio stays 1 and the gradient is normalised over what is allowed. A table takes a byte per position and token of
    the vocabulary; tables that differ by row take R times that.

    Attributes:
        texts: completion position -> allowed one-token texts (`END` among them where the text may end), None for all.
        tokenizer: the policy's tokenizer.
        for_row: dataset row -> position -> allowed texts, in place of those of `texts`.
        vocab_size: V, the width of the policy's logits; 0 means the tokenizer's.

    Example:
        Vocabulary(lambda position: ["0", "1"] if position < 4 else [END], tokenizer)
    """

    texts: Callable[[int], Texts]
    tokenizer: Any = field(repr=False)
    for_row: Callable[[Mapping[str, Any]], Mapping[int, Sequence[str]]] | None = None
    vocab_size: int = 0

    def __post_init__(self) -> None:
        """Start without tables."""
        self._known: dict[str, int] = {}
        self._table: Tensor | None = None

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return nothing: no token is fixed."""
        del completion_length
        return PriorSet.empty(len(prompts))

    def allowed(self, prompts: PromptBatch, completion_length: int) -> Tensor:
        """Return bool [L, V], or [R, L, V] with `for_row`."""
        if self._table is None or len(self._table) != completion_length:
            rows = [self._row(self.texts(position), position) for position in range(completion_length)]
            self._table = torch.stack(rows) if rows else torch.ones((0, self._width), dtype=torch.bool)
        if self.for_row is None:
            return self._table
        table_RLV = self._table.expand(len(prompts), -1, -1).clone()
        for row, columns in enumerate(prompts.rows):
            for position, texts in self.for_row(dict(columns)).items():
                if not 0 <= position < completion_length:
                    raise InvalidValueError(
                        f"vocabulary position: got {position}, needs one from 0 to {completion_length - 1}"
                    )
                table_RLV[row, position] = self._row(texts, position)
        return table_RLV

    @property
    def _width(self) -> int:
        return self.vocab_size or len(self.tokenizer)

    def _row(self, texts: Texts, position: int) -> Tensor:
        if texts is None:
            return torch.ones(self._width, dtype=torch.bool)
        if not texts:
            raise InvalidValueError(f"vocabulary: got no text at position {position}, needs at least one, or None")
        allowed_V = torch.zeros(self._width, dtype=torch.bool)
        for text in texts:
            if text not in self._known:
                self._known[text] = token_id(text, self.tokenizer)
            allowed_V[self._known[text]] = True
        return allowed_V
