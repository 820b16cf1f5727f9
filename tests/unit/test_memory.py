"""A long run on the CPU gives freed memory back: the heap is trimmed once the process has grown by half a GiB."""

import mmap
import sys

import pytest

from stp_rs.train import memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="malloc_trim is glibc's")


def trimmed(monkeypatch: pytest.MonkeyPatch, held: list[int]) -> tuple[memory.Trimmer, list[int]]:
    calls: list[int] = []
    monkeypatch.setattr(memory, "_trim_of_libc", lambda: lambda pad: calls.append(pad) or 0)
    return memory.Trimmer(lambda: held[0]), calls


def test_the_heap_is_trimmed_once_for_every_half_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [1 << 30]
    trim, calls = trimmed(monkeypatch, held)
    assert not trim()
    held[0] += memory.GROWTH - 1
    assert not trim()
    held[0] += 1
    assert trim()
    assert calls == [0]
    assert not trim(), "counted from what is held after a trim"
    held[0] += memory.GROWTH
    assert trim()
    assert calls == [0, 0]


def test_without_the_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim_of_libc", lambda: None)
    held = [0]
    trim = memory.Trimmer(lambda: held[0])
    held[0] = 1 << 40
    assert not trim()


@linux
def test_what_a_process_holds_is_read() -> None:
    before = memory.resident()
    with mmap.mmap(-1, 64 << 20) as block:  # new pages: a bytearray may lie where something was freed
        for at in range(0, len(block), 1 << 12):
            block[at] = 1
        assert before > 0
        assert memory.resident() - before > 32 << 20


@linux
def test_libc_has_the_call() -> None:
    trim = memory._trim_of_libc()
    assert trim is not None
    assert trim(0) in (0, 1)
