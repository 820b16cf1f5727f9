"""What a family is: how its models are opened and called, and how their logits are read.

Shapes: B canvases, Q queries (tokens of the call), S keys (tokens that they may see).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Mask = Callable[[Tensor, torch.dtype], dict[str, Any]]
"""(allowed, dtype) -> keyword arguments of the root call. `allowed` is bool [B, S] (which tokens are not padding), or
[B, Q, S] where the attention is block-causal; `dtype` is that of the weights."""


def bool_4d(allowed: Tensor, _dtype: torch.dtype) -> dict[str, Any]:
    """Return a mask of booleans [B, 1, 1 or Q, S]."""
    return {"attention_mask": allowed[:, None, None] if allowed.dim() == 2 else allowed[:, None]}


def additive_4d(allowed: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Return a mask that is added to attention scores, [B, 1, 1 or Q, S]."""
    shown = bool_4d(allowed, dtype)["attention_mask"]
    return {"attention_mask": torch.zeros_like(shown, dtype=dtype).masked_fill_(~shown, torch.finfo(dtype).min)}


def padding_2d(allowed: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Return 1 for what is no padding, [B, S]; an added mask where it is not the same for all queries."""
    return {"attention_mask": allowed.long()} if allowed.dim() == 2 else additive_4d(allowed, dtype)


@dataclass(frozen=True)
class Family:
    """Models whose code is called in one way."""

    name: str
    auto_class: str = "AutoModelForMaskedLM"
    """The class of transformers that opens them."""
    logit_shift: int = 0
    """1 where the logits of row p - 1 predict token p."""
    mask_token: str = ""
    """The token that stands for what is not decoded yet, where the tokenizer does not name one itself."""
    end_tokens: tuple[str, ...] = ()
    """What ends a text besides the tokenizer's `eos_token`."""
    mask: Mask = padding_2d
    """How the code takes an attention mask."""
    block_size: int = 0
    """Tokens per block of block-causal models, unless their configuration says it; 0: bidirectional."""
    context: tuple[str, ...] = ("max_position_embeddings", "max_sequence_length", "n_positions")
    """Where the configuration says how many tokens fit."""
    lora_target_modules: tuple[str, ...] | str = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """Where adapters go by default: names of modules, or one pattern."""
    cache_inputs: tuple[tuple[str, Any], ...] = ()
    """Arguments that a call with a cache needs besides it."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Options of the configuration that must have these values."""
