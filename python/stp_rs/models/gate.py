"""The gated output head: a model's own forward pass that stops at the hidden states; and blocks that are recomputed.

A diffusion policy reads the logits of few positions, but a model of transformers makes those of all. The modules of its
output head are gated once: while `hidden_states` is on they return their input, so that calling the *root* module
returns hidden states, and the head is applied to gathered rows afterwards. The root is called, never a part of it, so
that whatever wraps it (adapters, sharding, torch.compile, hooks) takes effect.

Some code has no module for its head: it multiplies by the embedding's weights in a function (LLaDA with
`weight_tying`). `TiedHead` is that head as a module, and the multiplication is what is left out while hidden states are
wanted.

In the same way the blocks of a network are recomputed in the backward pass while `recomputed` is on: transformers does
so in training mode only, and passes of a policy run in eval mode.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from stp_rs.models.acceleration import repeated_blocks

_HIDDEN: ContextVar[bool] = ContextVar("stp_rs_hidden_states", default=False)
"""Whether gated modules return their input. A context variable, so that threads do not see each other's."""

_RECOMPUTED: ContextVar[bool] = ContextVar("stp_rs_recomputed", default=False)


@contextlib.contextmanager
def hidden_states() -> Iterator[None]:
    """Let gated modules return their input."""
    with _switched(_HIDDEN, on=True):
        yield


class TiedHead(nn.Module):
    """The output head of a model that has none: hidden states times its embedding's weights.

    Args:
        embedding: the model's own, which stays a part of the model.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits."""
        return linear(hidden, self.embedding.weight)

    def left_out(self) -> TorchFunctionMode:
        """Return a context in which the model's own multiplication by these weights gives what it multiplies."""
        return _LeftOut(self.embedding)


class _LeftOut(TorchFunctionMode):
    """While it is on, `linear` with an embedding's weights returns its input."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self._embedding = embedding

    def __torch_function__(
        self,
        func: Callable[..., Any],
        _types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what the call returns."""
        given = dict(zip(("input", "weight"), args, strict=False)) | dict(kwargs or {})
        if func is linear and given["weight"] is self._embedding.weight:
            return given["input"]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def recomputed(on: bool) -> Iterator[None]:
    """Keep only the inputs of the blocks that `recompute` marked, and compute them again in the backward pass."""
    with _switched(_RECOMPUTED, on=on and torch.is_grad_enabled()):
        yield


def gate(module: nn.Module) -> nn.Module:
    """Return the module, which now returns its input while `hidden_states` is on."""
    return _with_call(module, "gate")


def recompute(module: nn.Module) -> int:
    """Mark the blocks that a network repeats, and return how many; they are recomputed while `recomputed` is on."""
    blocks = repeated_blocks(module)
    for block in blocks:
        _with_call(block, "recompute")
    return len(blocks)


@contextlib.contextmanager
def _switched(variable: ContextVar[bool], *, on: bool) -> Iterator[None]:
    token = variable.set(on)
    try:
        yield
    finally:
        variable.reset(token)


Call = Callable[..., Any]


def _gate_call(call: Call) -> Call:
    def gated(self: nn.Module, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        return hidden if _HIDDEN.get() else call(self, hidden, *args, **kwargs)

    return gated


def _recompute_call(call: Call) -> Call:
    def kept(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not _RECOMPUTED.get():
            return call(self, *args, **kwargs)
        # no generator's state is kept: passes have no dropout, and the library touches no global generator
        return checkpoint(call, self, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return kept


_CALLS: dict[str, Callable[[Call], Call]] = {"gate": _gate_call, "recompute": _recompute_call}
_CLASSES: dict[tuple[type[nn.Module], str], type[nn.Module]] = {}
"""The classes made so far, by the class that they are of and what they do."""


def _with_call(module: nn.Module, what: str) -> nn.Module:
    """Return the module, whose class is now a subclass with another `__call__`.

    A class survives what an attribute does not: copies keep it, and wrappers that replace `forward` do not undo it.
    """
    if not any(what in vars(kind).get("_stp_rs", ()) for kind in type(module).__mro__):
        module.__class__ = _subclass(type(module), what)
    return module


def _rebuild(kind: type[nn.Module], what: str) -> nn.Module:
    """Return an empty module for pickle and deepcopy to fill: the class made here has no importable name."""
    made = _subclass(kind, what)
    return made.__new__(made)


def _subclass(kind: type[nn.Module], what: str) -> type[nn.Module]:
    if (kind, what) in _CLASSES:
        return _CLASSES[kind, what]

    def reduce(self: nn.Module, _protocol: Any) -> Any:
        return _rebuild, (kind, what), self.__dict__.copy()

    body = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    body |= {"__call__": _CALLS[what](kind.__call__), "__reduce_ex__": reduce, "_stp_rs": (what,)}
    return _CLASSES.setdefault((kind, what), type(kind.__name__, (kind,), body))
