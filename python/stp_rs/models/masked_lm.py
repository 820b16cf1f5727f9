"""The adapter that makes a `DiffusionModel` of a masked-diffusion language model of transformers.

Shapes: B canvases, S canvas width, N candidate positions, H hidden size, V vocabulary.
The head never sees positions whose logits nobody reads: [B, S, V] is never made.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from stp_rs.errors import ModelError
from stp_rs.models.base import DiffusionModel
from stp_rs.models.blocks import pair_mask, state_mask, with_padding
from stp_rs.models.families import Family, family_named, family_of
from stp_rs.models.gate import TiedHead, gate, hidden_states, recompute, recomputed
from stp_rs.models.padding import PadsMasked
from stp_rs.models.probes import check, pads_are_hidden
from stp_rs.models.tokens import embedding_rows, end_ids, special_ids

if TYPE_CHECKING:
    from stp_rs.models.prefix import Prefix


class MaskedLMAdapter:
    """A model of transformers (BERT, RoBERTa, ModernBERT, ..., LLaDA, Dream, SDAR) as a `DiffusionModel`.

    Its own root module is called, with the output head gated (`stp_rs.models.gate`). How it is called stands in its
    family (`stp_rs.models.families`), by its `model_type`; every trait can be given by hand instead. On construction it
    is probed on the model's device: the gathered head must give the model's own logits, attention must be what the
    family says, and a row alone must equal the row in a padded batch (else `respects_padding` is
    False, and pads are hidden at torch's attention where that is exact: `stp_rs.models.padding`).

    Args:
        model: a model whose output has `.logits` [B, S, V].
        tokenizer: gives mask, pad and end-of-text ids (`eos_token_id`, or `sep_token_id` where there is none).
        logit_shift: 1 for models whose row p - 1 predicts token p; the family's by default.
        family: the name of a family, for a model whose configuration does not say it.
        mask_token_id: the tokenizer's or the configuration's by default.
        pad_token_id: the tokenizer's by default.
        eos_token_ids: all ids that end a text, the one that fills the rest first.
        block_size: tokens per block of a block-causal model; the configuration's or the family's by default.

    Raises:
        ModelError: a special token that is missing or beyond the embedding, a model that is no masked-diffusion model,
            or a head that cannot be split off.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        logit_shift: int | None = None,
        family: str | None = None,
        mask_token_id: int | None = None,
        pad_token_id: int | None = None,
        eos_token_ids: Sequence[int] | None = None,
        block_size: int | None = None,
    ) -> None:
        self._root, self.module = model, unwrapped(model)
        config = getattr(self.module, "config", None)
        if config is None:
            raise ModelError(
                f"{type(self.module).__name__}: it has no config, so it is no model of transformers; pass an object "
                "with the members of stp_rs.DiffusionModel"
            )
        self.family: Family = family_of(config) if family is None else family_named(family)
        for name, value in self.family.settings:
            setattr(config, name, value)
        self.logit_shift = self.family.logit_shift if logit_shift is None else logit_shift
        self.block_size = _block_size(config, self.family) if block_size is None else block_size
        if self.block_size and self.logit_shift:
            raise ModelError(
                "block_size and logit_shift: a shifted block-causal model is not supported; give one of them"
            )
        given = {"mask_token_id": mask_token_id, "pad_token_id": pad_token_id}
        ends = end_ids(tokenizer, self.family) if eos_token_ids is None else tuple(eos_token_ids)
        self.mask_token_id, self.pad_token_id = special_ids(tokenizer, self.family, self.module, ends, given)
        self.eos_token_id, self.eos_token_ids = ends[0], ends
        self.context_length = _context_length(self.module, self.family)
        self._head = _find_head(self.module)
        self._every_call = _every_call(self.module)
        self.gradient_checkpointing = False
        self._blocks = recompute(self.module)
        self.respects_padding = True
        self.masks_pads = False
        """Whether pads are hidden from attention that would see them; in passes without gradient."""
        self.respects_padding = check(self)
        if not self.respects_padding:
            self.masks_pads = True
            self.masks_pads = pads_are_hidden(self)

    @property
    def embedding_rows(self) -> int:
        """How many ids the model has embeddings for."""
        return embedding_rows(self.module)

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return final hidden states [B, S, H]; see `DiffusionModel.hidden`."""
        width = ids_BS.shape[1]
        self._check_width(width)
        pads: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if lengths_B is not None and self.masks_pads and not self.respects_padding:
            pads, lengths_B = PadsMasked(lengths_B, width), None
        with self._stopped(), recomputed(self._recomputes()), pads:
            return _states(self.own_output(ids_BS, lengths_B))

    def hidden_pair(self, noisy_BS: Tensor, clean_BS: Tensor, lengths_B: Tensor | None, start: int = 0) -> Tensor:
        """Return hidden states [B, S, H] of noisy canvases, each block with the clean canvas's earlier blocks.

        One call of a doubled canvas: the noisy half from `start` on, the first block in which both differ, the clean
        half up to the last block's start.
        """
        width, size = noisy_BS.shape[1], self.block_size
        self._check_width(width)
        end = (width - 1) // size * size
        position_S = torch.arange(width, device=noisy_BS.device)
        noisy_Q, clean_Q = position_S[start:], position_S[:end]
        position_Q = torch.cat([noisy_Q, clean_Q])
        seen_BQQ = with_padding(pair_mask(noisy_Q, clean_Q, size), position_Q, lengths_B)
        with self._stopped(), recomputed(self._recomputes()):
            output = self._root(
                input_ids=torch.cat([noisy_BS[:, start:], clean_BS[:, :end]], dim=1),
                position_ids=position_Q.expand(len(noisy_BS), -1),
                **self._every_call | self.family.mask(seen_BQQ.expand(len(noisy_BS), -1, -1), self._dtype()),
            )
        hidden = _states(output)
        return torch.cat([hidden[:, width - start :][:, :start], hidden[:, : width - start]], dim=1)

    def hidden_cached(self, ids_BQ: Tensor, position_BQ: Tensor, seen_BQK: Tensor, prefix: "Prefix") -> Tensor:
        """Return hidden states [B, Q, H] of tokens behind committed ones; see `stp_rs.models.blocks`."""
        with self._stopped():
            output = self._root(
                input_ids=ids_BQ,
                position_ids=position_BQ,
                past_key_values=prefix,
                use_cache=True,
                **dict(self.family.cache_inputs),
                **self.family.mask(seen_BQK, self._dtype()),
            )
        return _states(output)

    def hidden_window(self, ids_BQ: Tensor, position_BQ: Tensor | None) -> Tensor:
        """Return hidden states [B, Q, H] of a part of canvases; see `stp_rs.models.keys`."""
        positions = {} if position_BQ is None else {"position_ids": position_BQ}
        with self._stopped():
            return _states(self._root(input_ids=ids_BQ, attention_mask=None, **positions))

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        """Let the root return hidden states where its logits would be."""
        tied = self._head[0]
        with hidden_states(), tied.left_out() if isinstance(tied, TiedHead) else contextlib.nullcontext():
            yield

    def _check_width(self, width: int) -> None:
        if self.context_length and width > self.context_length:
            raise ModelError(
                f"a canvas of {width} tokens does not fit the model's {self.context_length} positions; shorten the "
                "prompts or the completion length"
            )

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return logits [N, V]."""
        # code that makes its logits float makes the hidden states float too; this takes the exact way back
        dtype = self._dtype()
        if dtype != torch.float32 and not torch.is_autocast_enabled(hidden_NH.device.type):
            hidden_NH = hidden_NH.to(dtype)
        for part in self._head:
            hidden_NH = part(hidden_NH)
        return hidden_NH

    def own_output(self, ids_BS: Tensor, lengths_B: Tensor | None = None) -> Any:
        """Return what the root module returns for canvases, called as its family needs it."""
        rows, width = ids_BS.shape
        position_S = torch.arange(width, device=ids_BS.device)
        inputs = dict(self._every_call)
        if self.block_size:
            seen_BSS = with_padding(state_mask(width, self.block_size, ids_BS.device), position_S, lengths_B)
            inputs |= self.family.mask(seen_BSS.expand(rows, -1, -1), self._dtype())
        elif lengths_B is not None:
            inputs |= self.family.mask(position_S < lengths_B[:, None], self._dtype())
        return self._root(input_ids=ids_BS, **inputs)

    def _recomputes(self) -> bool:
        """Return whether blocks are recomputed in the backward pass: as asked here, or of the model itself."""
        if not torch.is_grad_enabled() or not self._blocks:
            return False
        asked = any(getattr(part, "gradient_checkpointing", False) for part in self.module.modules())
        return self.gradient_checkpointing or asked

    def _dtype(self) -> torch.dtype:
        return next((p.dtype for p in self._head[0].parameters() if p.is_floating_point()), torch.float32)


def as_diffusion_model(model: Any, tokenizer: Any = None, **traits: Any) -> DiffusionModel:
    """Return `model` as a `DiffusionModel`: itself if it is one, else a `MaskedLMAdapter` of it and its tokenizer.

    Args:
        model: a model of transformers, as it is or with adapters of peft or compiled; or a `DiffusionModel`.
        tokenizer: the model's.
        traits: what `MaskedLMAdapter` takes by name, `logit_shift=1` for example.
    """
    if isinstance(model, DiffusionModel):
        return model
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: got {type(model).__name__}, needs a transformers masked LM or a DiffusionModel")
    if tokenizer is None:
        raise ModelError("tokenizer: got None, needs the model's tokenizer (processing_class)")
    return MaskedLMAdapter(model, tokenizer, **traits)


def _states(output: Any) -> Tensor:
    """Return what the gated head returned: the hidden states, where the logits would be."""
    return cast(Tensor, output.logits if hasattr(output, "logits") else output[0])


def _block_size(config: Any, family: Family) -> int:
    """Return the tokens per block: what the configuration says, else the family's; 0 for families without blocks."""
    return int(getattr(config, "block_size", None) or family.block_size) if family.block_size else 0


_REFUSED_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside `torch.compile`'s wrapper, or the module itself.

    Raises:
        ModelError: it is wrapped in something whose own forward pass must see every step.
    """
    name = type(model).__name__
    if name in _REFUSED_WRAPPERS:
        raise ModelError(f"model: got {name}, which stp_rs does not drive; pass the module inside it (model.module)")
    return cast(nn.Module, getattr(model, "_orig_mod", model))


def _every_call(module: nn.Module) -> dict[str, Any]:
    """Return what a root is told in every call, as far as its code takes it: to see all tokens, and to make no cache.

    Nobody reads such a cache, and a block that is recomputed would put its keys and values in twice.
    """
    inner = cast(Any, module)
    if callable(getattr(inner, "get_base_model", None)):
        inner = inner.get_base_model()
    taken = inspect.signature(inner.forward).parameters
    return {name: value for name, value in (("attention_mask", None), ("use_cache", False)) if name in taken}


def _context_length(module: nn.Module, family: Family) -> int:
    """Return how many tokens fit, 0 where the configuration does not say.

    Code after RoBERTa's gives a canvas's first token the position behind the pad token's id: its table of positions has
    that id as its padding index, and the rows up to it are no token's.
    """
    config = getattr(module, "config", None)
    rooms = [int(getattr(config, name)) for name in family.context if getattr(config, name, None)]
    if not rooms:
        return 0
    tables = [table for name, table in module.named_modules() if name.endswith("position_embeddings")]
    padding = [cast("int | None", getattr(table, "padding_idx", None)) for table in tables]
    return max(0, rooms[0] - max((index + 1 for index in padding if index is not None), default=0))


_HEADS = (
    ("cls",),
    ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    ("generator_predictions", "generator_lm_head"),
    ("head", "decoder"),
    ("lm_head",),
    ("predictions",),
)
"""Modules that a root applies one after the other to hidden states: all of the head or none of it is gated, so that its
transform, where it has one, runs on gathered rows only."""


def _find_head(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the output head, gated, in the order in which they apply."""
    m = cast(Any, model)
    if callable(getattr(m, "get_base_model", None)):  # peft: the adapters live inside the model that it wraps
        m = m.get_base_model()
    for names in _HEADS:
        parts = [getattr(m, name, None) for name in names]
        if all(isinstance(part, nn.Module) for part in parts):
            return [gate(cast(nn.Module, part)) for part in parts]
    decoder = m.get_output_embeddings() if hasattr(m, "get_output_embeddings") else None
    if isinstance(decoder, nn.Embedding):
        return [TiedHead(decoder)]
    if not isinstance(decoder, nn.Module):
        raise ModelError(
            f"{type(m).__name__}: no output head was found; pass an object with the members of stp_rs.DiffusionModel"
        )
    return [gate(decoder)]
