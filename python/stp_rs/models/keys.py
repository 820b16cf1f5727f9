"""Approximate caches of a policy that sees the whole canvas: keys and values are kept within a block.

As Fast-dLLM (arXiv 2505.22618) describes: the first forward of a block is that of the whole canvas, and keeps the keys
and values of every layer. The others compute the block only (`dual`), or the block and all that follows it (`prefix`),
and read what is kept of the rest, which by then was computed for a canvas with more masks. So a token is drawn from
another law than the policy's: its recorded log-prob is that of what drew it, and a ratio must be corrected by it.

Nothing is asked of the model's code but that its attention is torch's, and that tokens can be called at positions
(`position_ids`) or turn with RoPE; whether that works is tried when a rollout begins (`check`). A row depends on its
own blocks only, never on its batch.

Shapes: B canvases, S canvas width, Q tokens of a call, N candidates, A heads, D head size, H hidden size.
"""

import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from stp_rs.errors import ModelError
from stp_rs.models.base import DiffusionModel, block_size_of, device_of, encode

CacheKind = Literal["none", "prefix", "dual"]
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class Windowed(Protocol):
    """A policy of which a part of the canvas can be called."""

    module: nn.Module

    def hidden_window(self, ids_BQ: Tensor, position_BQ: Tensor | None) -> Tensor:
        """Return hidden states [B, Q, H] of tokens at positions; None counts them from 0."""
        ...


@dataclass
class Layer:
    """What one call of torch's attention read: keys and values [B, A, S, D], and its mask [B, ., 1 or S, S]."""

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class _Recording(TorchFunctionMode):
    """Notes what each attention of a call reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Layer] = []

    def __torch_function__(
        self, func: Callable[..., Any], _types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Return what the call returns."""
        if func is scaled_dot_product_attention:
            given = _named(args, kwargs)
            if given.get("is_causal"):
                raise ModelError("its attention is causal")
            mask = given.get("attn_mask")
            if mask is not None:
                mask = mask.expand(len(given["query"]), *mask.shape[1:])
            self.layers.append(Layer(given["key"], given["value"], mask))
        return func(*args, **(kwargs or {}))


class _Replaying(TorchFunctionMode):
    """Lets the tokens of a call see all that was noted, with their own keys and values in its place.

    Args:
        layers: what is kept; the tokens' own are written into it.
        position_BQ: where the tokens are.
        inside_BQ: which of them are replaced there; the others are seen as they were noted.
        turn_BD: angles by which queries and keys are turned besides, where the model counts positions from 0.
    """

    def __init__(self, layers: list[Layer], position_BQ: Tensor, inside_BQ: Tensor, turn_BD: Tensor | None) -> None:
        super().__init__()
        self._layers, self._at, self._inside, self._next = layers, position_BQ, inside_BQ, 0
        self._turn = None if turn_BD is None else (turn_BD.cos()[:, None, None], turn_BD.sin()[:, None, None])

    def __torch_function__(
        self, func: Callable[..., Any], _types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Return what the call returns; an attention sees what is kept."""
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        given = _named(args, kwargs)
        layer = self._layers[self._next]
        self._next += 1
        given["query"] = self._turned(given["query"])
        for name, new in (("key", self._turned(given["key"])), ("value", given["value"])):
            kept = layer.keys if name == "key" else layer.values
            at = self._at[:, None, :, None].expand(-1, kept.shape[1], -1, kept.shape[3])
            kept.scatter_(2, at, torch.where(self._inside[:, None, :, None], new.to(kept.dtype), kept.gather(2, at)))
            given[name] = kept
        mask = layer.mask
        if mask is not None and mask.shape[2] > 1:
            mask = mask.gather(2, self._at[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        given["attn_mask"], given["is_causal"] = mask, False
        return func(**given)

    def _turned(self, x_BAQD: Tensor) -> Tensor:
        if self._turn is None:
            return x_BAQD
        cos, sin = self._turn
        left, right = x_BAQD.float().chunk(2, dim=-1)
        return (x_BAQD.float() * cos + torch.cat((-right, left), dim=-1) * sin).to(x_BAQD.dtype)


def _named(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(zip(_ARGUMENTS, args, strict=False)) | dict(kwargs or {})


class KeyCache:
    """What is kept of the rows of a rollout, and the calls that read it.

    Args:
        model: the policy.
        kind: `prefix` or `dual`.

    Raises:
        ModelError: the policy cannot be called so.
    """

    def __init__(self, model: DiffusionModel, kind: CacheKind) -> None:
        check(model)
        self._model, self._kind = model, kind
        self._layers: list[Layer] = []
        self._rows: list[int] = []
        self._block: dict[int, tuple[int, int]] = {}
        """By row: what its current block's candidates span; others begin the next block."""
        self.tokens = self.padding = self.calls = 0
        """What went through the model: tokens, padding among them, calls."""

    def states(
        self, ids_BS: Tensor, lengths_B: NDArray[np.int32], rows_B: NDArray[np.int32], at_N: NDArray[np.int64]
    ) -> Tensor:
        """Return the hidden states [N, H] of candidates.

        Args:
            ids_BS: right-padded canvases on the device.
            lengths_B: tokens of each before padding.
            rows_B: the row of the rollout that each is.
            at_N: flat place of each candidate's hidden state, canvas times S plus position.
        """
        rows, width = ids_BS.shape
        canvas_N, place_N = at_N // width, at_N % width
        first_B, last_B = np.full(rows, width), np.zeros(rows, dtype=np.int64)
        np.minimum.at(first_B, canvas_N, place_N)
        np.maximum.at(last_B, canvas_N, place_N)
        known = [self._block.get(int(r), (0, 0)) for r in rows_B]
        fresh_B = np.array(
            [not start <= a <= b < end for (start, end), a, b in zip(known, first_B, last_B, strict=True)]
        )
        kept, new = np.flatnonzero(~fresh_B), np.flatnonzero(fresh_B)
        self._choose([int(rows_B[b]) for b in kept], width)
        parts: list[Tensor] = []
        order: list[NDArray[np.int64]] = []
        if len(kept):
            ends = [int(lengths_B[b]) if self._kind == "prefix" else known[b][1] for b in kept]
            spans = [(known[b][0], end) for b, end in zip(kept, ends, strict=True)]
            hidden, start_B = self._windows(ids_BS, kept, spans, lengths_B)
            parts.append(self._picked(hidden, kept, start_B, canvas_N, place_N, order))
        if len(new):
            hidden = self._whole(ids_BS, new, lengths_B, rows_B)
            parts.append(self._picked(hidden, new, np.zeros(len(new), dtype=np.int64), canvas_N, place_N, order))
            for b in new:
                self._block[int(rows_B[b])] = (int(first_B[b]), int(last_B[b]) + 1)
        if len(parts) == 1:
            return parts[0]
        back = np.concatenate(order).argsort()
        return torch.cat(parts)[torch.from_numpy(back).to(ids_BS.device)]

    def _picked(
        self,
        hidden_BQH: Tensor,
        which: NDArray[np.int64],
        start_B: NDArray[np.int64],
        canvas_N: NDArray[np.int64],
        place_N: NDArray[np.int64],
        order: list[NDArray[np.int64]],
    ) -> Tensor:
        """Return the states of the candidates of some canvases; note which candidates they are."""
        slot_B = np.full(int(canvas_N.max()) + 1, -1)
        slot_B[which] = np.arange(len(which))
        mine_N = np.flatnonzero(slot_B[canvas_N] >= 0)
        order.append(mine_N)
        slot_N = slot_B[canvas_N[mine_N]]
        flat_N = slot_N * hidden_BQH.shape[1] + place_N[mine_N] - start_B[slot_N]
        return hidden_BQH.flatten(0, 1).index_select(0, torch.from_numpy(flat_N).to(hidden_BQH.device))

    def _whole(
        self, ids_BS: Tensor, which: NDArray[np.int64], lengths_B: NDArray[np.int32], rows_B: NDArray[np.int32]
    ) -> Tensor:
        """Return the hidden states of whole canvases, whose keys and values are kept from here on."""
        at = torch.from_numpy(which).to(ids_BS.device)
        with _Recording() as seen:
            hidden = encode(self._model, ids_BS[at], lengths_B[which])
        self._layers = _joined(self._layers, seen.layers) if self._rows else seen.layers
        self._rows += [int(rows_B[b]) for b in which]
        self._count(len(which) * ids_BS.shape[1], int(lengths_B[which].sum()))
        return hidden

    def _windows(
        self,
        ids_BS: Tensor,
        which: NDArray[np.int64],
        spans: list[tuple[int, int]],
        lengths_B: NDArray[np.int32],
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """Return the hidden states [B, Q, H] of the rows' windows, and where each begins."""
        device, width = ids_BS.device, ids_BS.shape[1]
        span_B2 = np.array(spans, dtype=np.int64)
        size = int((span_B2[:, 1] - span_B2[:, 0]).max())
        start_B = np.minimum(span_B2[:, 0], width - size)
        position_BQ = start_B[:, None] + np.arange(size)
        inside_BQ = (position_BQ >= span_B2[:, :1]) & (position_BQ < span_B2[:, 1:])
        position, inside, at, start = (torch.from_numpy(a).to(device) for a in (position_BQ, inside_BQ, which, start_B))
        hidden = window_states(self._model, ids_BS[at].gather(1, position), position, inside, start, self._layers)
        self._count(inside_BQ.size, int(np.minimum(inside_BQ.sum(1), lengths_B[which]).sum()))
        return hidden, start_B

    def _count(self, tokens: int, text: int) -> None:
        self.tokens, self.padding, self.calls = self.tokens + tokens, self.padding + tokens - text, self.calls + 1

    def _choose(self, rows: list[int], width: int) -> None:
        """Keep what belongs to some rows, in their order, for canvases of a width."""
        if rows != self._rows:
            places = {row: place for place, row in enumerate(self._rows)}
            at = [places[row] for row in rows]
            self._layers = [_at(layer, at) for layer in self._layers] if rows else []
            self._rows = list(rows)
            self._block = {row: span for row, span in self._block.items() if row in set(rows)}
        if self._layers and self._layers[0].keys.shape[2] != width:
            self._layers = [_widened(layer, width) for layer in self._layers]


def window_states(
    model: DiffusionModel, ids_BQ: Tensor, position_BQ: Tensor, inside_BQ: Tensor, start_B: Tensor, layers: list[Layer]
) -> Tensor:
    """Return the hidden states [B, Q, H] of a part of canvases, which sees what is kept of the rest."""
    windowed, turn = cast(Windowed, model), None
    counted = _takes_positions(model.module)
    if not counted:
        turn = _angles(model.module, layers[0].keys.shape[3], start_B)
    mode = _Replaying(layers, position_BQ, inside_BQ, turn)
    with mode:
        hidden = windowed.hidden_window(ids_BQ, position_BQ if counted else None)
    if mode._next != len(layers):
        raise ModelError(f"a part of the canvas has {mode._next} attentions, the whole has {len(layers)}")
    return hidden


def _takes_positions(module: Any) -> bool:
    base = module.get_base_model() if hasattr(module, "get_base_model") else module
    return "position_ids" in inspect.signature(base.forward).parameters


def _angles(module: Any, size: int, start_B: Tensor) -> Tensor:
    """Return the angles [B, D] by which RoPE turns at positions, in halves."""
    base = getattr(getattr(module, "config", None), "rope_theta", None)
    if not base:
        raise ModelError("its code takes no position_ids and its configuration has no rope_theta")
    rates = float(base) ** -(torch.arange(0, size, 2, device=start_B.device, dtype=torch.float32) / size)
    return (start_B[:, None].float() * rates).repeat(1, 2)


def _at(layer: Layer, rows: list[int]) -> Layer:
    index = torch.tensor(rows, device=layer.keys.device)
    mask = None if layer.mask is None else layer.mask[index]
    return Layer(layer.keys[index], layer.values[index], mask)


def _widened(layer: Layer, width: int) -> Layer:
    """Return a layer for canvases of another width; what is added is not seen."""
    before = layer.keys.shape[2]
    if width <= before:
        mask = layer.mask
        if mask is not None:
            mask = mask[..., :width] if mask.shape[2] == 1 else mask[..., :width, :width]
        return Layer(layer.keys[:, :, :width], layer.values[:, :, :width], mask)
    more = (0, 0, 0, width - before)
    mask = _shown(layer) if layer.mask is None else layer.mask
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    rows = 0 if mask.shape[2] == 1 else width - before
    return Layer(pad(layer.keys, more), pad(layer.values, more), pad(mask, (0, width - before, 0, rows), value=hidden))


def _shown(layer: Layer) -> Tensor:
    """Return the mask that hides nothing, bool [B, 1, 1, S]."""
    rows, _, width, _ = layer.keys.shape
    return torch.ones((rows, 1, 1, width), dtype=torch.bool, device=layer.keys.device)


def _joined(one: list[Layer], other: list[Layer]) -> list[Layer]:
    """Return the layers of all rows of both."""
    return [
        Layer(torch.cat([a.keys, b.keys]), torch.cat([a.values, b.values]), _joined_masks(a, b))
        for a, b in zip(one, other, strict=True)
    ]


def _joined_masks(one: Layer, other: Layer) -> Tensor | None:
    if one.mask is None and other.mask is None:
        return None
    masks = [_shown(layer) if layer.mask is None else layer.mask for layer in (one, other)]
    if len({mask.dtype for mask in masks}) > 1:  # one hides nothing
        kind = next(mask.dtype for mask in masks if mask.dtype != torch.bool)
        masks = [mask if mask.dtype == kind else torch.zeros_like(mask, dtype=kind) for mask in masks]
    shape = [max(a, b) for a, b in zip(masks[0].shape[1:], masks[1].shape[1:], strict=True)]
    return torch.cat([mask.expand(len(mask), *shape) for mask in masks])


_CHECKED: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


@torch.no_grad()
def check(model: DiffusionModel) -> None:
    """Hold a part of a canvas that sees what is kept of the rest against the whole: the same where nothing changed.

    Raises:
        ModelError: it is not, or the policy's code cannot be called so.
    """
    module, name = model.module, type(model.module).__name__
    if module in _CHECKED:
        return
    if block_size_of(model):
        raise ModelError(f"stp_rollout_cache: {name} is block-causal and has an exact cache, needs none")
    if not hasattr(model, "hidden_window"):
        raise ModelError(f"stp_rollout_cache: {type(model).__name__} has no hidden_window, needs none as the cache")
    draw, device = np.random.default_rng(0), device_of(model)
    vocab = int(getattr(getattr(module, "config", None), "vocab_size", 8))
    ids = torch.from_numpy(draw.integers(0, vocab, (2, 9))).to(device)
    ids[:, 3:6] = model.mask_token_id
    lengths = np.array([9, 7], dtype=np.int32)
    position = torch.tensor([[3, 4, 5], [2, 3, 4]], device=device)
    try:
        with _Recording() as seen:
            whole = encode(model, ids, lengths)
        if not seen.layers:
            raise ModelError("its attention is not torch's (attn_implementation sdpa)")
        inside = torch.ones_like(position, dtype=torch.bool)
        part = window_states(model, ids.gather(1, position), position, inside, position[:, 0], seen.layers)
        there = whole.gather(1, position[..., None].expand(-1, -1, whole.shape[-1]))
        scale = max(1.0, float(there.abs().max()))
        exact = there.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
        if not torch.allclose(part.float(), there.float(), atol=scale * (1e-4 if exact else 6e-2), rtol=0):
            raise ModelError("a part of the canvas is not computed as within the whole")
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError, ModelError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise ModelError(
            f"stp_rollout_cache: {name} cannot be called for a part of its canvas ({why}); use none"
        ) from error
    _CHECKED.add(module)
