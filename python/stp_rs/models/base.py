"""What rollouts and likelihoods need of a policy: the protocol `DiffusionModel`, and how canvases go through it.

Shapes: B canvases, S canvas width, N candidate positions, H hidden size, V vocabulary.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stp_rs.errors import ModelError


@runtime_checkable
class DiffusionModel(Protocol):
    """What rollouts and likelihoods need of a policy. Implement these members to bring any model."""

    module: nn.Module
    mask_token_id: int
    pad_token_id: int
    eos_token_id: int
    logit_shift: int
    """0: the logits at row p predict token p. 1: row p - 1 predicts token p (Dream)."""
    respects_padding: bool
    """False when pads are attended: canvases of one call must then have equal lengths. A policy may say besides that it
    `masks_pads`: passes without gradient then take unequal lengths."""

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return final hidden states [B, S, H] of right-padded canvases; lengths None means no padding."""
        ...

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return logits [N, V] of gathered hidden states."""
        ...


class BlockCausalModel(DiffusionModel, Protocol):
    """A policy whose blocks see themselves and earlier blocks only (SDAR, LLaDA2).

    Its law of a block is conditional on *clean* earlier blocks, while `hidden` sees one canvas: it is the law of a
    rollout's state, whose earlier blocks are complete, but not of a canvas with masks in several blocks.
    """

    block_size: int
    """Tokens per block, counted from the start of the prompt."""

    def hidden_pair(self, noisy_BS: Tensor, clean_BS: Tensor, lengths_B: Tensor | None, start: int = 0) -> Tensor:
        """Return hidden states [B, S, H] of noisy canvases, each block with the clean canvas's earlier blocks.

        Before the position `start`, a block's first, both are equal.
        """
        ...


def block_size_of(model: DiffusionModel) -> int:
    """Return the tokens per block of a block-causal policy; 0 for one that sees the whole canvas."""
    return int(getattr(model, "block_size", 0) or 0)


def encode(
    model: DiffusionModel,
    ids_BS: Tensor,
    lengths_B: NDArray[np.int32],
    clean_BS: Tensor | None = None,
    start: int = 0,
) -> Tensor:
    """Return hidden states [B, S, H] of right-padded canvases; positions past a row's length are undefined.

    A model that attends to pads is called once per distinct length, so that a row never depends on its batch: in passes
    with gradient, whose groups share a prompt, and where its attention is not torch's.

    Args:
        model: the policy.
        ids_BS: canvases.
        lengths_B: tokens of each before padding.
        clean_BS: the canvases without masks, which block-causal policies condition on; None where masks are in the
            last block that holds text, as in a rollout.
        start: where the first block starts in which they differ.
    """
    width = ids_BS.shape[1]
    lengths = None
    if not bool((lengths_B == width).all()):
        lengths = torch.from_numpy(lengths_B).to(ids_BS.device, non_blocking=True)
    if clean_BS is not None and block_size_of(model):
        return cast(BlockCausalModel, model).hidden_pair(ids_BS, clean_BS, lengths, start)
    masked = getattr(model, "masks_pads", False) and not torch.is_grad_enabled()
    if lengths is None or model.respects_padding or masked:
        return _hidden(model, ids_BS, lengths)
    parts: list[tuple[Tensor, Tensor]] = []
    for length in np.unique(lengths_B):
        rows = torch.from_numpy(np.flatnonzero(lengths_B == length)).to(ids_BS.device)
        hidden = _hidden(model, ids_BS[rows, : int(length)], None)
        parts.append((rows, nn.functional.pad(hidden, (0, 0, 0, width - int(length)))))
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return torch.cat([hidden for _, hidden in parts])[order]


def _hidden(model: DiffusionModel, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
    try:
        return model.hidden(ids_BS, lengths_B)
    except IndexError as error:
        raise ModelError(
            f"model: its hidden raised IndexError ({error}) for token ids up to {int(ids_BS.max())}; it needs an "
            f"embedding for each id of the prompts, for mask_token_id ({model.mask_token_id}) and pad_token_id "
            f"({model.pad_token_id}), and {ids_BS.shape[1]} positions"
        ) from error


def is_sharded(module: nn.Module) -> bool:
    """Return whether FSDP2 shares a module's weights out over the processes."""
    return callable(getattr(module, "set_requires_gradient_sync", None))


def in_step(model: DiffusionModel, *, graded: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Run a block of passes of which each process of a run may make another number; see `stp_rs.models.sharding`."""
    block = getattr(model, "in_step", None)
    return contextlib.nullcontext() if block is None else cast(Any, block)(graded=graded)


def whole_weights(model: DiffusionModel) -> contextlib.AbstractContextManager[Any]:
    """Hold the whole weights of a policy in a block of passes without gradient, where they are shared out and fit."""
    gathered = getattr(model, "rollout_weights", None)
    return contextlib.nullcontext() if gathered is None else cast(Any, gathered)()


def check_ids(model: DiffusionModel, ids: NDArray[np.int64]) -> None:
    """Refuse ids that the policy has no embedding for.

    Raises:
        ModelError: the tokenizer has more tokens than the model, and one of them is among the ids.
    """
    rows, most = int(getattr(model, "embedding_rows", 0) or 0), int(ids.max(initial=0))
    if rows and most >= rows:
        raise ModelError(
            f"prompts: got the token id {most}, but the model has embeddings for the ids 0 to {rows - 1} only; use the "
            "tokenizer that the model was trained with, or call model.resize_token_embeddings(len(tokenizer)) and "
            "train the new rows first"
        )


def end_token_ids(model: DiffusionModel) -> tuple[int, ...]:
    """Return the ids that end a text: the policy's `eos_token_ids` where it has several, else its `eos_token_id`."""
    return tuple(getattr(model, "eos_token_ids", ())) or (model.eos_token_id,)


def device_of(model: DiffusionModel) -> torch.device:
    """Return the device of the policy's parameters."""
    return next(model.module.parameters()).device


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    if torch.is_grad_enabled():
        # code after DeepSeek's runs its experts under no_grad unless they are in training mode
        for part in module.modules():
            if hasattr(part, "moe_infer"):
                part.training = True
    try:
        yield
    finally:
        module.train(training)


def passes_without_dropout(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Run model passes in eval mode and restore the mode after; gradients still flow, to every expert too.

    Rollout, old and new log-likelihoods must come from one law, so that the ratio is 1 at the first inner step.
    """
    return _eval_mode(module)


HEAD_ELEMENTS = 1 << 24
"""Least logits of one head chunk: its size on the CPU, where more would only leave the caches."""

_MOST_ELEMENTS = 1 << 28
_LOGIT_BYTES = 28
"""Of one logit at the peak: what the head returns, fp32 copies of it, and their gradients."""


def autocast(device: torch.device, bf16: bool | None) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a run with `bf16` makes its passes; without, one that does nothing."""
    if not bf16:
        return contextlib.nullcontext()
    # no cache of casts: it would outlive an optimiser step, and the next inner iteration would see old weights
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's generators as of a seed, and leave them as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []):
        torch.manual_seed(seed % (1 << 63))
        yield


def trainable(model: DiffusionModel) -> list[nn.Parameter]:
    """Return the parameters that training changes.

    Raises:
        ModelError: there are none.
    """
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    if not parameters:
        how = "load adapters with is_trainable=True" if hasattr(model.module, "peft_config") else "unfreeze some"
        raise ModelError(f"model: got no parameter that requires a gradient, so there is nothing to train; {how}")
    return parameters


def head_rows(model: DiffusionModel) -> int:
    """Return how many rows go through the head at a time: on a CUDA device as many as a quarter of what is free holds.

    A small chunk reads all of the head's weights for few rows.
    """
    vocab = int(getattr(getattr(model.module, "config", None), "vocab_size", 1 << 15))
    return max(1, _head_elements(device_of(model)) // vocab)


def _head_elements(device: torch.device) -> int:
    if device.type != "cuda":
        return HEAD_ELEMENTS
    return min(_MOST_ELEMENTS, max(HEAD_ELEMENTS, int(free_bytes(device) / 4 / _LOGIT_BYTES)))


def free_bytes(device: torch.device) -> float:
    """Return the bytes that a device has free, those that the allocator holds unused included; no bound on the CPU."""
    if device.type != "cuda":
        return float("inf")
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


_ALIGNED = 16


def upload(device: torch.device, *arrays: NDArray[Any]) -> list[Tensor]:
    """Return arrays as tensors on a device: on CUDA views of one pinned copy that the host does not wait for."""
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    packed, places = pack(arrays, pin=device.type == "cuda")
    return unpack(packed.to(device, non_blocking=True), arrays, places)


def pack(arrays: Sequence[NDArray[Any]], *, pin: bool) -> tuple[Tensor, list[int]]:
    """Return arrays one after the other as bytes, and where each begins."""
    ends = np.cumsum([-(-array.nbytes // _ALIGNED) * _ALIGNED for array in arrays]).tolist()
    places = [0, *ends[:-1]]
    packed = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pin)
    view = packed.numpy()
    for array, place in zip(arrays, places, strict=True):
        view[place : place + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return packed, places


def unpack(packed: Tensor, arrays: Sequence[NDArray[Any]], places: Sequence[int]) -> list[Tensor]:
    """Return the arrays that `pack` put into bytes, as views of them on the bytes' device."""
    found = []
    for array, place in zip(arrays, places, strict=True):
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        found.append(packed[place : place + array.nbytes].view(dtype).view(array.shape))
    return found
