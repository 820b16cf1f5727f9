"""What was measured: clocks, budgets, a table, and a JSON file that is written anew after every line."""

import contextlib
import gc
import json
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import torch

GIB = 1 << 30


class OutOfTimeError(Exception):
    """A part used up its budget."""


class Report:
    """The lines of a run. A part that fails or runs out of time keeps the lines it has, and the next one starts.

    Args:
        path: the JSON file, or None.
        device: where the policies are.
        budget: seconds of each part.
    """

    def __init__(self, path: Path | None, device: torch.device, budget: float) -> None:
        self.path, self.device, self.budget = path, device, budget
        self._end = float("inf")
        self.tests: dict[str, Any] = {}
        """What the tests that need a card said, where they were run before."""
        self.lines: list[dict[str, Any]] = []
        self.errors: list[dict[str, str]] = []
        self.parts: dict[str, float] = {}
        self._part, self._deadline = "", float("inf")

    @contextlib.contextmanager
    def part(self, name: str, *, times: float = 1.0) -> Iterator[None]:
        """Run a part: its exceptions become an entry of `errors`, and it is stopped when its budget is used up.

        `times`: budgets that it has.
        """
        self._part, start = name, time.perf_counter()
        budget = max(1e-3, min(times * self.budget, self.remaining()))
        self._deadline = start + budget
        print(f"-- {name}", flush=True)
        previous = signal.signal(signal.SIGALRM, _out_of_time)
        signal.setitimer(signal.ITIMER_REAL, budget, 5.0)  # again, where a compiler caught the first
        try:
            yield
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}:{last.lineno}"
            self.errors.append({"part": name, "error": f"{type(error).__name__}: {error}"[:600], "at": place})
            print(f"   {type(error).__name__} at {place}: {str(error)[:300]}", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.signal(signal.SIGALRM, previous)
            self.parts[name] = round(time.perf_counter() - start, 2)
            free_memory(self.device)
            self.write()

    def bound(self, seconds: float) -> None:
        """Let all parts from here on take so many seconds together; each gets no more than what is left of them."""
        self._end = time.perf_counter() + seconds

    def remaining(self) -> float:
        """Return the seconds that all parts together have left."""
        return self._end - time.perf_counter()

    def left(self) -> float:
        """Return the seconds that the part has left."""
        return self._deadline - time.perf_counter()

    def affords(self, seconds: float, name: str) -> bool:
        """Return whether so many seconds are left; where they are not, a line says what was left out."""
        if self.left() >= seconds:
            return True
        self.leave_out(name, f"no time: {seconds:.0f} s needed, {max(0.0, self.left()):.0f} s left")
        return False

    def leave_out(self, name: str, why: str) -> None:
        """Add a line that says what was not measured, and why."""
        self.add(name, None, "left out", why=why)

    def add(self, name: str, value: float | None, unit: str, **notes: Any) -> None:
        """Add a line and write the file."""
        self.lines.append({"part": self._part, "name": name, "value": value, "unit": unit, **notes})
        shown = "-" if value is None else f"{value:.4g}"
        extra = "  ".join(f"{k}={_short(v)}" for k, v in notes.items())
        print(f"   {name:58} {shown:>10} {unit:10} {extra}", flush=True)
        self.write()

    def time(self, name: str, work: Callable[[], object], *, repeats: int = 5, warm: int = 2, **notes: Any) -> float:
        """Add a line with the median time of a call in ms, device time on CUDA; return it in ms."""
        for _ in range(warm):
            work()
        found = []
        for _ in range(repeats):
            found.append(self._once(work))
            if self.left() < 2 * found[-1] / 1e3:
                break
        value = statistics.median(found)
        self.add(name, value, "ms", repeats=len(found), spread=max(found) - min(found), **notes)
        return value

    def _once(self, work: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - start)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)

    def wall(self, name: str, work: Callable[[], Any], **notes: Any) -> tuple[float, Any]:
        """Add a line with the wall seconds of one call and its peak memory; return (seconds, its result)."""
        before = reset_peak(self.device)
        self.wait()
        start = time.perf_counter()
        result = work()
        self.wait()
        took = time.perf_counter() - start
        counts = notes.pop("counts", None)
        notes |= {} if counts is None else counts(result)
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            notes |= {"peak_gib": peak / GIB, "over_gib": (peak - before) / GIB}
        self.add(name, took, "s", **notes)
        return took, result

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with the card and the versions."""
        tests = {"tests": self.tests} if self.tests else {}
        found = {"seconds": self.parts, "results": self.lines, "errors": self.errors}
        return {**environment(self.device), **tests, **found}

    def write(self) -> None:
        """Write the JSON file."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def environment(device: torch.device) -> dict[str, Any]:
    """Return the card, the versions and the date."""
    import transformers

    import stp_rs

    found = {
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "date": datetime.now(timezone.utc).date().isoformat(),
        "stp_rs": stp_rs.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with contextlib.suppress(ImportError):
        import peft

        found["peft"] = peft.__version__
    return found


def reset_peak(device: torch.device) -> int:
    """Start a new peak of the allocator; return the bytes allocated now, 0 on the CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _out_of_time(_signal: int, _frame: FrameType | None) -> None:
    raise OutOfTimeError("the part's budget is used up")
