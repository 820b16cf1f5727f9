"""What a careless caller can do to the core: extreme sizes, numbers and shared memory end in typed errors, at once."""

import mmap
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from stp_rs import Design, PriorSet, errors
from stp_rs._core import choose_anchors, permutation, plan_counts, scored_counts

HUGE = 1 << 42


def test_an_empty_array_of_many_rows_takes_no_memory() -> None:
    with pytest.raises(errors.InvalidValueError, match="rows: got"):
        PriorSet.from_dense(np.empty((HUGE, 0), np.int64))
    with pytest.raises(errors.InvalidValueError, match="rows: got"):
        PriorSet.empty(HUGE)
    counts = np.empty((HUGE, 0), np.int32)
    for name, _ in Design.names():
        with pytest.raises(errors.InvalidValueError, match="rows: got"):
            Design(name, 2, block_length=1).passes(np.empty((HUGE, 0), np.uint8), counts)


def test_steps_of_any_size_make_a_plan_of_the_rows_size() -> None:
    out = np.zeros((1, 3), np.int32)
    steps = np.array([[2**31 - 1, 5, 2**31 - 1]], np.int32)
    scored_counts(steps, out, score_prior=False, diffusion_steps=1)
    assert out.tolist() == [[3, 2, 0]]
    scored_counts(steps, out, score_prior=True, diffusion_steps=3)
    assert out[0, 0] == 3


@pytest.mark.parametrize("quota", ["ceil_remaining", "llada", "dllm", "dream", "powers_of_two", "bernoulli"])
def test_a_million_steps_are_planned_at_once_and_more_are_refused(quota: str) -> None:
    out = np.zeros((512, 8), np.int32)
    steps = np.zeros((512, 8), np.int32)
    scored_counts(steps, out, score_prior=True, diffusion_steps=1 << 20, quota=quota)
    assert (out[:, 0] == 8).all()
    with pytest.raises(errors.InvalidValueError, match="diffusion_steps"):
        scored_counts(steps, out, score_prior=True, diffusion_steps=1 << 40, quota=quota)
    with pytest.raises(errors.InvalidValueError, match="n, steps"):
        plan_counts(8, 1 << 40, quota)


def test_a_permutation_is_an_array_and_has_a_bound() -> None:
    order = permutation(3, 4, 1000)
    assert order.dtype == np.uint32
    assert sorted(order.tolist()) == list(range(1000))
    with pytest.raises(errors.InvalidValueError, match="n: got 4294967295, needs at most"):
        permutation(0, 0, 2**32 - 1)


def keep_anchors(eligible: np.ndarray, keep: np.ndarray) -> None:
    confidence = np.zeros(eligible.shape, np.float32)
    uids = np.zeros(len(eligible), np.uint64)
    choose_anchors("random", 0.5, confidence=confidence, eligible=eligible, seed=0, uids=uids, keep=keep)


@pytest.mark.parametrize("shift", [0, 1, 7])
def test_two_arrays_over_one_memory_are_refused(shift: int) -> None:
    memory = bytearray(64)
    eligible = np.frombuffer(memory, np.uint8, count=8, offset=0).reshape(2, 4)
    keep = np.frombuffer(memory, np.uint8, count=8, offset=shift).reshape(2, 4)
    with pytest.raises(errors.AliasError, match="keep: the array's memory is used twice"):
        keep_anchors(eligible, keep)
    beside = np.frombuffer(memory, np.uint8, count=8, offset=8).reshape(2, 4)
    keep_anchors(eligible, beside)


def test_memory_that_is_mapped_twice_as_arrays_of_other_types_is_refused() -> None:
    mapped = mmap.mmap(-1, 4096)
    steps = np.frombuffer(mapped, np.int32, count=8).reshape(2, 4)
    out = np.frombuffer(memoryview(mapped)[4:36], np.int32).reshape(2, 4)
    with pytest.raises(errors.AliasError, match="out"):
        scored_counts(steps, out, score_prior=False, diffusion_steps=1)
    scored_counts(steps.copy(), out, score_prior=False, diffusion_steps=1)


def test_a_claim_ends_with_its_call_whether_it_failed_or_not() -> None:
    eligible, keep = np.ones((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    for _ in range(3):
        with pytest.raises(errors.ShapeError):
            keep_anchors(eligible, np.zeros((3, 4), np.uint8))
        keep_anchors(eligible, keep)


def test_threads_may_read_one_array_and_write_their_own() -> None:
    eligible = np.ones((64, 64), np.uint8)
    failures: list[BaseException] = []

    def work() -> None:
        keep = np.zeros_like(eligible)
        try:
            for _ in range(200):
                keep_anchors(eligible, keep)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


CALLS = {
    "views of arrays": """
    steps, out = np.zeros((256, 256), np.int32), np.zeros((256, 256), np.int32)
    _core.scored_counts(steps, out, score_prior=True, diffusion_steps=64)""",
    "an error": """
    try:
        _core.scored_counts(np.zeros((2, 2)), np.zeros((2, 2), np.int32), score_prior=True, diffusion_steps=64)
    except errors.DtypeError:
        pass""",
    "a class": "assert 'steps' in repr(_core.Unmasking(8, temporal='steps:0.5'))",
    "an array made there": "assert len(_core.permutation(0, 0, 8)) == 8",
    "texts": "_core.sudoku4_grade(['1234'], ['1200341221434321'], np.zeros((1, 5), np.float32))",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", CALLS)
def test_a_child_forked_in_the_middle_of_the_first_calls_can_call_too(name: str) -> None:
    """What a first call makes once gives the interpreter up on its way; another thread's child would wait for it."""
    program = f"""
import os, signal, sys, threading, numpy as np
from stp_rs import _core, errors
sys.setswitchinterval(1e-6)
begun = threading.Event()
def call():
    {CALLS[name]}
def work():
    begun.set()
    while True:
        call()
threading.Thread(target=work, daemon=True).start()
begun.wait()
for _ in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # of a call of microseconds
        call()
        os._exit(7)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 7:
        os._exit(1)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=False, timeout=800)
    assert done.returncode == 0
