"""The short form of `make kills`, `make fuzz` and `make soak`: nothing is lost, wrong or held; every error is ours."""

import mmap
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.reliability import determinism, kills, mutations, soak


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_kills_and_disk_faults_lose_nothing_and_the_run_is_the_same():
    counts, wrong = kills.run(6, 8, seed=1)
    assert wrong == []
    assert counts[kills.KILLED] == 6
    assert counts[kills.FAILED] == 8
    assert counts["runs finished"] >= 1


def test_mutated_files_are_refused_in_words_or_read():
    counts, wrong = mutations.run(150, seed=1)
    assert wrong == []
    assert counts["checkpoint: refused"] > 10
    assert counts["file: typed error"] > 20


def test_a_run_stopped_before_its_first_log_goes_on_to_the_same_weights(tmp_path: Path):
    whole = determinism.weights(tmp_path / "whole")
    assert determinism.weights(tmp_path / "stopped", stops=(1, 3)) == whole


LEFT: list[Any] = []
LEAKS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "handles": lambda: open(os.devnull, "rb"),  # noqa: SIM115 - it is to stay open
    "threads": lambda: _started(threading.Event()),
    "memory": lambda: _mapped(1 << 22),
}


def _mapped(size: int) -> mmap.mmap:
    """Return pages of their own: what the heap has left from earlier tests could hold a leak without growing."""
    pages = mmap.mmap(-1, size)
    pages.write(b"1" * size)
    return pages


def _started(event: threading.Event) -> threading.Event:
    threading.Thread(target=event.wait, daemon=True).start()
    return event


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("leak", LEAKS)
def test_a_long_run_holds_what_it_held_and_a_leak_is_seen(leak: str, tmp_path: Path):
    def leaking(completions: Sequence[str], **_: Any) -> list[float]:
        LEFT.append(LEAKS[leak]())
        return [float(text.count("1")) for text in completions]

    try:
        steps, held = soak.one_run(tmp_path, lambda done: done < 60, every=4, reward=leaking)
        _, wrong = soak.judged("one run", held)
    finally:
        for left in LEFT:
            getattr(left, "close", getattr(left, "set", lambda: None))()
        LEFT.clear()
    assert steps == 60
    assert [line.split(" grew")[0] for line in wrong] == ([f"one run: {leak}"] if leak != "nothing" else [])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_killing_runs_leaves_nothing_in_their_parent():
    counts, held, wrong = soak.killed_runs(lambda done: done < 6, seed=3, each=2)
    assert wrong == []
    assert counts[kills.KILLED] == 6
    assert soak.judged("kills", held)[1] == []
