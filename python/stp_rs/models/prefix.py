"""A key-value cache of transformers for committed tokens, which does not keep those of the current call."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


class Prefix(DynamicCache):
    """Keys and values of committed tokens, for one call: what the call adds is seen, and handed over, but not kept."""

    def __init__(self, kept: list[tuple[Tensor, Tensor]], length: int) -> None:
        super().__init__()
        self._kept, self._length = kept, length
        self.added: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the kept keys and values with those of the call behind them."""
        self.added[layer_idx] = (key_states, value_states)
        if not self._length:
            return key_states, value_states
        keys, values = self._kept[layer_idx]
        return torch.cat([keys.to(key_states), key_states], -2), torch.cat([values.to(value_states), value_states], -2)

    def get_seq_length(self, *_args: Any, **_kwargs: Any) -> int:
        """Return the tokens that are kept."""
        return self._length

    def __len__(self) -> int:
        """Return the layers that are kept."""
        return len(self._kept)
