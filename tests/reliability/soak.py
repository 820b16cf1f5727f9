"""A soak: one long run whose memory, file handles and threads must stay flat, then runs that are killed and go on.

The first half of the time is one run of a very small policy in this process, with checkpoints and logs; what it holds
is read from /proc after a warm-up and until its end. In the second half children are killed with SIGKILL at random
moments and gone on with (see `kills`), while what their parent holds must stay flat too.

    python -m tests.reliability.soak --minutes 30
"""

import argparse
import contextlib
import gc
import io
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.reliability import kills

GROWTH = 8.0
"""MiB of memory by which a part may grow after its warm-up, however long it is."""
WARM = 0.2
"""Share of a part's readings that are its warm-up: caches, allocators and imports on demand fill up."""


class Held(NamedTuple):
    """What a process holds."""

    memory: float
    """Resident, in MiB."""
    handles: int
    threads: int

    @classmethod
    def now(cls) -> "Held":
        """Return what this process holds, garbage collected."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        return cls(memory, len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))


def one_run(folder: Path, more: Callable[[int], bool], every: int, reward: Any = None) -> tuple[int, list[Held]]:
    """Train while there is `more` (of a number of steps); return the steps, and what was held after every so many."""
    from transformers import TrainerCallback
    from transformers.utils.logging import disable_progress_bar

    from tests.fixtures import ones, trainer

    disable_progress_bar()
    found: list[Held] = []

    class Read(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % every == 0:
                found.append(Held.now())
                state.log_history.clear()  # transformers keeps every log for its caller: some KiB each
            control.should_training_stop |= not more(state.global_step)

    saved = {"save_strategy": "steps", "save_steps": every, "save_total_limit": 2, "logging_steps": every}
    made = trainer(folder, reward=reward or ones, max_steps=10**6, **saved)
    made.add_callback(Read())
    made.train()
    return int(made.state.global_step), found


def killed_runs(more: Callable[[int], bool], seed: int, each: int = 10) -> tuple[Counter[str], list[Held], list[str]]:
    """Kill runs and go on with them while there is `more` (of a number of kills).

    Returns:
        What happened how often, what this process held after `each` kills, and what is wrong.
    """
    counts: Counter[str] = Counter()
    found: list[Held] = []
    wrong: list[str] = []
    while more(counts[kills.KILLED]):
        seed += 1
        now, told = kills.run(each, 0, seed=seed)
        counts += now
        wrong += told
        found.append(Held.now())
    return counts, found, wrong


def judged(name: str, readings: Sequence[Held]) -> tuple[str, list[str]]:
    """Return the first and last readings after the warm-up as cells of a table, and what grew."""
    settled = readings[int(len(readings) * WARM) :]
    if len(settled) < 2:
        return "too short to say | |", [f"{name}: {len(readings)} readings are too few"]
    first, last = settled[0], settled[-1]
    wrong = []
    if last.memory - first.memory > GROWTH:
        wrong.append(f"{name}: memory grew from {first.memory:.1f} to {last.memory:.1f} MiB")
    for what in ("handles", "threads"):
        before, after = getattr(first, what), getattr(last, what)
        if after > before:
            wrong.append(f"{name}: {what} grew from {before} to {after}")
    memory = f"{first.memory:.1f} to {last.memory:.1f}"
    return f"{memory} | {first.handles} to {last.handles} | {first.threads} to {last.threads}", wrong


def soak(minutes: float, seed: int) -> tuple[list[str], list[str]]:
    """Return the lines of the table, and what is wrong."""
    import tests.fixtures  # noqa: F401 - before the clock runs: it takes seconds

    started = time.monotonic()

    def until(share: float) -> Callable[[int], bool]:
        return lambda _done: time.monotonic() - started < 60 * minutes * share

    with tempfile.TemporaryDirectory(prefix="stp rs ") as room:
        steps, held = one_run(Path(room) / "run", until(0.5), every=50)
    cells, wrong = judged("one run", held)
    lines = [f"| one run, {steps:,} updates | {cells} |"]
    counts, held, told = killed_runs(until(1.0), seed)
    cells, grew = judged("killed runs", held)
    lines.append(f"| {counts[kills.KILLED]:,} kills, {counts['runs finished']:,} runs finished | {cells} |")
    return lines, [*wrong, *told, *grew]


def main() -> int:
    """Run a command line; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        lines, wrong = soak(args.minutes, args.seed)
    print(f"{time.monotonic() - started:.0f} s, {time.process_time():.0f} s of the processor in this process")
    print("| part | MiB resident | file handles | threads |\n|---|---|---|---|", *lines, sep="\n")
    print(f"{len(wrong)} wrong", *wrong[:20], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
