"""The gated output head: a model's own forward pass that stops at the hidden states.

A diffusion policy reads the logits of few positions, but a model of transformers makes those of all. The modules of its
output head are gated once: while `hidden_states` is on they return their input, so that calling the *root* module
returns hidden states, and the head is applied to gathered rows afterwards. The root is called, never a part of it, so
that whatever wraps it (adapters, sharding, torch.compile, hooks) takes effect.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from torch import nn

_WANTED: ContextVar[bool] = ContextVar("stp_rs_hidden_states", default=False)
"""Whether gated modules return their input. A context variable, so that threads do not see each other's."""


@contextlib.contextmanager
def hidden_states() -> Iterator[None]:
    """Let gated modules return their input."""
    token = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(token)


def gate(module: nn.Module) -> nn.Module:
    """Return the module, gated: its class becomes a subclass with a `__call__` that looks at `hidden_states`.

    A class survives what an attribute does not: copies keep it, and wrappers that replace `forward` do not undo it.
    """
    if not getattr(type(module), "_stp_gated", False):
        module.__class__ = _gated(type(module))
    return module


def _rebuild(kind: type[nn.Module]) -> nn.Module:
    """Return an empty gated module for pickle and deepcopy to fill: the gated class has no importable name."""
    made = _gated(kind)
    return made.__new__(made)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
"""Gated classes by the class that they are of."""


def _gated(kind: type[nn.Module]) -> type[nn.Module]:
    if kind in _CLASSES:
        return _CLASSES[kind]

    def call(self: nn.Module, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        return hidden if _WANTED.get() else kind.__call__(self, hidden, *args, **kwargs)

    def reduce(self: nn.Module, _protocol: Any) -> Any:
        return _rebuild, (kind,), self.__dict__.copy()

    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    made = type(kind.__name__, (kind,), {"__call__": call, "__reduce_ex__": reduce, "_stp_gated": True, **names})
    return _CLASSES.setdefault(kind, made)
