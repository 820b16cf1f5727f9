"""Metrics: what a metrics file holds, and the ledger of what a run computed."""

import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stp_rs.objective.loss import EXTREMES
from stp_rs.types import Cost

PHASES = ("prior", "rollout", "likelihood", "backward")
"""prior: canvases that priors made their tokens with, before training or at a refresh; likelihood: every canvas of a
likelihood pass; backward: those of them that have a gradient. Others, as `eval`, come with their first entry."""
TRAINING = ("prior", "rollout", "reward", "update")
"""Timed blocks whose seconds are the training's; `scoring` (passes without gradient) is a part of `update`."""
_COUNTS = ("forwards", "tokens", "head_rows")
_CLOCKS = ("seconds", "cpu_seconds", "gpu_seconds")
_MEASURED = tuple(f"diffusion/{name}" for name in (*_CLOCKS, "peak_bytes"))


class Ledger:
    """What a run computed and how long it took, by phase.

    Args:
        device: a CUDA device adds GPU seconds, from events that are read when they are asked for.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.forwards: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.tokens: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.head_rows: dict[str, int] = dict.fromkeys(PHASES, 0)
        self.completions = 0
        """Sampled for training, those of dynamic sampling and of rescues included."""
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        """Of all threads of this process."""
        self.gpu_seconds: dict[str, float] = defaultdict(float)
        self.peak_bytes = 0
        """Highest memory use: of the device's allocator on CUDA, else of the process."""
        self._cuda = device is not None and device.type == "cuda"
        self._flying: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the block's wall, CPU and GPU time to a phase."""
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._cuda else []
        if events:
            events[0].record()
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start
            self.cpu_seconds[phase] += time.process_time() - cpu_start
            if events:
                events[1].record()
                self._flying.append((phase, events[0], events[1]))

    def add(self, cost: Cost, *phases: str) -> None:
        """Add what was computed to each of `phases`."""
        for phase in phases:
            for name in _COUNTS:
                counts = getattr(self, name)
                counts[phase] = counts.get(phase, 0) + getattr(cost, name)

    @property
    def forward_equivalents(self) -> int:
        """Training's canvases, one with a gradient counted as three forwards; evaluation is left out."""
        counted = self.forwards
        return counted["prior"] + counted["rollout"] + counted["likelihood"] + 2 * counted["backward"]

    def counts(self) -> dict[str, float]:
        """Return what was computed so far, as metrics; the same for every run of a seed."""
        named = {name: getattr(self, name) for name in _COUNTS}
        return {
            **{_name(name, phase): float(n) for name, by in named.items() for phase, n in by.items()},
            "diffusion/forward_equivalents": float(self.forward_equivalents),
            "diffusion/completions": float(self.completions),
        }

    def measured(self) -> dict[str, float]:
        """Return seconds and peak memory so far, as metrics; no two runs have the same."""
        self._read_clocks()
        clocks = {clock: getattr(self, clock) for clock in _CLOCKS if self._cuda or clock != "gpu_seconds"}
        by_phase = {_name(clock, phase): s for clock, by in clocks.items() for phase, s in by.items()}
        totals = {_name(clock): sum(by.get(phase, 0.0) for phase in TRAINING) for clock, by in clocks.items()}
        return {**totals, **by_phase, "diffusion/peak_bytes": float(self.peak_bytes)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for a checkpoint and for summary.json."""
        self._read_clocks()
        names = (*_COUNTS, *_CLOCKS)
        numbers = {"completions": self.completions, "peak_bytes": self.peak_bytes}
        return {**{name: dict(getattr(self, name)) for name in names}, **numbers}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from the numbers of a checkpoint."""
        for name in (*_COUNTS, *_CLOCKS):
            getattr(self, name).update(saved.get(name, {}))
        self.completions = saved.get("completions", 0)
        self.peak_bytes = saved.get("peak_bytes", 0)

    def _read_clocks(self) -> None:
        for phase, start, end in self._flying:
            end.synchronize()
            self.gpu_seconds[phase] += start.elapsed_time(end) / 1000
        self._flying.clear()
        self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated() if self._cuda else _resident_bytes())


def _resident_bytes() -> int:
    """Return the highest resident size of this process, 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else 1024 * int(peak)


def read_metrics(path: Path, *, measured: bool = False) -> list[dict[str, float]]:
    """Return a metrics file by step: logs of one step are one line here; one cut short by a crash is left out.

    Without `measured` the seconds and bytes are left out too: what remains is the same for every run of a seed.
    """
    lines: dict[int, dict[str, float]] = {}
    for text in lines_until(path, math.inf):
        line = _numbers(text)
        kept = {k: v for k, v in line.items() if measured or not _is_measured(k)}
        lines.setdefault(int(line["step"]), {}).update(kept)
    return [lines[step] for step in sorted(lines)]


def lines_until(path: Path, step: float) -> list[str]:
    """Return the lines of a metrics file up to a step, those that are whole."""
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
    return [text for text in texts if _numbers(text).get("step", math.inf) <= min(step, sys.maxsize)]


def _numbers(text: str) -> dict[str, float]:
    """Return the numbers of a line by name: what is none (NaN, text, lists) is nothing that we wrote."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    named = found.items() if isinstance(found, dict) else ()
    return {k: v for k, v in named if type(v) is int or (type(v) is float and math.isfinite(v))}


def _name(*parts: str) -> str:
    """Return the name of a metric; one text for all logs, since transformers keeps every log of a run."""
    return sys.intern(f"diffusion/{'_'.join(parts)}")


def mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values, 0 where there is none."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if array.size else 0.0


def averaged(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of each metric's values; of those that are extremes, the extreme."""
    return {name: EXTREMES[name](list(v)) if name in EXTREMES else mean(v) for name, v in values.items()}


def _is_measured(name: str) -> bool:
    return name.startswith(_MEASURED) or name.endswith(("_runtime", "_per_second", "step_time"))
