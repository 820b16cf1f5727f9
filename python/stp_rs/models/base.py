"""What rollouts and likelihoods need of a policy: the protocol `DiffusionModel`, and how canvases go through it.

Shapes: B canvases, S canvas width, N candidate positions, H hidden size, V vocabulary.
"""

import contextlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

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
    """False when pads are attended: canvases of one call must then have equal lengths."""

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return final hidden states [B, S, H] of right-padded canvases; lengths None means no padding."""
        ...

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return logits [N, V] of gathered hidden states."""
        ...


def encode(model: DiffusionModel, ids_BS: Tensor, lengths_B: NDArray[np.int32]) -> Tensor:
    """Return hidden states [B, S, H] of right-padded canvases; positions past a row's length are undefined.

    A model that attends to pads is called once per distinct length, so that a row never depends on its batch.
    """
    width = ids_BS.shape[1]
    if bool((lengths_B == width).all()):
        return model.hidden(ids_BS, None)
    if model.respects_padding:
        return model.hidden(ids_BS, torch.from_numpy(lengths_B).to(ids_BS.device, non_blocking=True))
    parts: list[tuple[Tensor, Tensor]] = []
    for length in np.unique(lengths_B):
        rows = torch.from_numpy(np.flatnonzero(lengths_B == length)).to(ids_BS.device)
        hidden = model.hidden(ids_BS[rows, : int(length)], None)
        parts.append((rows, nn.functional.pad(hidden, (0, 0, 0, width - int(length)))))
    order = torch.cat([rows for rows, _ in parts]).argsort()
    return torch.cat([hidden for _, hidden in parts])[order]


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
"""Logits of one head chunk: bounds memory at large vocabularies."""


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
    """Return how many candidates go through the head at a time."""
    vocab = int(getattr(getattr(model.module, "config", None), "vocab_size", 1 << 15))
    return max(1, HEAD_ELEMENTS // vocab)
