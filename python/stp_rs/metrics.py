"""Metrics: a line of JSON per step, and the ledger of what a run computed."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stp_rs.checkpoint import atomic_file


@dataclass
class Ledger:
    """Canvases computed and seconds spent, by phase."""

    forwards: dict[str, int] = field(default_factory=lambda: {"rollout": 0, "likelihood": 0, "backward": 0})
    """rollout: canvases of rollouts; likelihood: canvases of likelihood passes; backward: those with a gradient."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the block's wall time to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for a checkpoint."""
        return {"forwards": dict(self.forwards), "seconds": dict(self.seconds)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Continue from the numbers of a checkpoint."""
        self.forwards.update(saved["forwards"])
        self.seconds.update(saved["seconds"])


class MetricsFile:
    """`metrics.jsonl` of a run: one flushed line per logged step; a resume drops the lines after its checkpoint."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= resume_step] if resume_step else []
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, values: Mapping[str, float]) -> None:
        """Append one step."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values), allow_nan=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics file; a line cut short by a crash is left out."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines
