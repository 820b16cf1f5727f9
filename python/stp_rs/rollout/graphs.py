"""CUDA graphs of a rollout's step, for policies so small that launching their kernels costs more than running them.

A step of one shape (canvases, width, candidates up to a power of two) is captured the second time it is seen and
replayed from then on. Whatever cannot be captured runs as it is, with one line of log.

Shapes: B canvases, S their width, N candidates, C columns, V vocabulary.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from stp_rs.models.acceleration import adapter_layers, is_compiled
from stp_rs.models.base import DiffusionModel, device_of
from stp_rs.rollout.logits import COLUMNS

_LOG = logging.getLogger(__name__)

MOST_GRAPHS = 32
"""Graphs of one policy; its oldest go first."""
_MOST_FLOPS = 5e11
"""Of a captured forward: one of a millisecond or so is no longer bound by its launches."""
_MOST_LOGITS = 1 << 21

Capture = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass(frozen=True)
class Inputs:
    """What a step reads and writes, on the device and at fixed addresses."""

    ids_BS: Tensor
    lengths_B: Tensor | None
    """None where all canvases are full."""
    at_N: Tensor
    uniforms_N: Tensor
    places_N: Tensor
    """Empty where the law allows the same tokens everywhere."""
    out_NC: Tensor

    @staticmethod
    def empty(shape: tuple[int, int, int], device: torch.device, *, ragged: bool, placed: bool) -> "Inputs":
        """Return buffers for B canvases of S tokens and N candidates."""
        rows, width, count = shape

        def made(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return Inputs(
            made((rows, width), torch.int64),
            made((rows,), torch.int32) if ragged else None,
            made((count,), torch.int32),
            made((count,), torch.float32),
            made((count if placed else 0,), torch.int32),
            made((count, COLUMNS), torch.float32),
        )


class Replays:
    """The captured steps of one policy.

    Args:
        capture: takes what launches kernels and returns what replays them.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._known: dict[Hashable, tuple[Inputs, Callable[[], None]]] = {}
        self._seen: Counter[Hashable] = Counter()
        self._refused: set[bool] = set()
        self._weights: tuple[int, ...] = ()
        self._allowed: dict[tuple[int, ...], Tensor] = {}

    def begin(self, module: nn.Module) -> None:
        """Forget what was captured of other tensors than the module's parameters are now."""
        weights = tuple(parameter.data_ptr() for parameter in module.parameters())
        if weights != self._weights:
            self._known.clear()
            self._weights = weights

    def allowed(self, table: Tensor | None) -> Tensor | None:
        """Return a table of allowed tokens at the address that captured steps read."""
        if table is None:
            return None
        kept = self._allowed.setdefault(tuple(table.shape), table)
        return kept if kept is table else kept.copy_(table)

    def step(
        self, key: Hashable, make: Callable[[], tuple[Inputs, Callable[[], None]]], *, ragged: bool
    ) -> tuple[Inputs, Callable[[], None]] | None:
        """Return the buffers of a step and what replays it; None where it is to be run as it is.

        Args:
            key: all that a captured step depends on.
            make: makes the buffers, and what computes the step on them.
            ragged: whether a padding mask is read: a model's code may be captured without one only.
        """
        if key in self._known:
            return self._known[key]
        self._seen[key] += 1
        if ragged in self._refused or self._seen[key] < 2:
            return None
        inputs, work = make()
        try:
            replay = self._capture(work)
        except RuntimeError as error:
            self._refused.add(ragged)
            _LOG.warning("a rollout's step was not captured and runs as it is: %s", str(error).splitlines()[0][:200])
            return None
        if len(self._known) >= MOST_GRAPHS:
            del self._known[next(iter(self._known))]
        self._known[key] = inputs, replay
        return inputs, replay


def captured(work: Callable[[], None]) -> Callable[[], None]:
    """Return what replays the kernels that `work` launches on the current CUDA device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries allocate and choose at their first calls
        for _ in range(2):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    replay: Callable[[], None] = graph.replay
    return replay


_REPLAYS: WeakKeyDictionary[nn.Module, Replays] = WeakKeyDictionary()


def replays_of(model: DiffusionModel, tokens: int) -> Replays | None:
    """Return the captured steps of a policy, or None where its steps are not captured.

    They are for a model of transformers without adapters on a CUDA device, whose forward of `tokens` tokens is short,
    and which runs as its class says: no compiled blocks, hooks or replaced methods, no autocast that keeps its casts.
    """
    device = device_of(model)
    if device.type != "cuda" or not getattr(model, "replayable", False) or {"hidden", "head"} & vars(model).keys():
        return None
    module = model.module
    flops = 2.0 * tokens * sum(parameter.numel() for parameter in module.parameters())
    if flops > _MOST_FLOPS or adapter_layers(module) or is_compiled(module):
        return None
    if any(part._forward_hooks or part._forward_pre_hooks for part in module.modules()):
        return None
    if torch.is_autocast_enabled("cuda") and torch.is_autocast_cache_enabled():
        return None
    found = _REPLAYS.setdefault(module, Replays(captured))
    found.begin(module)
    return found


def candidates_of(count: int, capacity: int, vocab: int) -> int:
    """Return the candidates of the captured step that computes `count`; 0 where it would be too large."""
    size = min(1 << max(0, count - 1).bit_length(), capacity)
    return size if size * vocab <= _MOST_LOGITS else 0
