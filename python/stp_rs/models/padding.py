"""Padding that a model's own code would attend to, masked where its attention calls torch.

Some code takes an attention mask and drops it (LLaDA's before October 2025, and most of what was copied from it). Pads
are then hidden at `torch.nn.functional.scaled_dot_product_attention` itself, so that rows of unequal lengths share one
call. Whether that is exact for a model is probed when it is wrapped (`stp_rs.models.probes`).

Shapes: B canvases, Q queries, S keys.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class PadsMasked(TorchFunctionMode):
    """While it is on, no attention of a call over [B, S] canvases sees a position past its row's length.

    For passes without gradient: a backward pass that recomputes blocks does so when the mode is off again.

    Args:
        lengths_B: tokens of each row.
        width: S.
    """

    def __init__(self, lengths_B: Tensor, width: int) -> None:
        super().__init__()
        self._seen_B11S = (torch.arange(width, device=lengths_B.device) < lengths_B[:, None])[:, None, None]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what the call returns; an attention's mask has the pads taken out."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = dict(zip(names, args, strict=False)) | dict(kwargs or {})
        query, key, seen = given["query"], given["key"], self._seen_B11S
        if query.dim() == 4 and len(query) == len(seen) and key.shape[-2] == seen.shape[-1]:
            mask = given.get("attn_mask")
            if given.get("is_causal"):
                rows, columns = query.shape[-2], key.shape[-2]
                seen = seen & torch.ones((rows, columns), dtype=torch.bool, device=seen.device).tril()
                given["is_causal"] = False
            if mask is None:
                given["attn_mask"] = seen
            elif mask.dtype == torch.bool:
                given["attn_mask"] = mask & seen
            else:
                given["attn_mask"] = mask.masked_fill(~seen, torch.finfo(mask.dtype).min)
        return func(**given)
