"""Fork and Ctrl-C: the core in processes that begin and end in the middle of something."""

import os
import signal
import subprocess
import sys
import time

import pytest

PREAMBLE = """
import os, sys
import numpy as np
from tests.boundary.test_scheduler import call_arrays, finished, made, result_arrays
"""

FORK = """
scheduler = made()
child = os.fork()
if child == 0:
    arrays = call_arrays()
    *_, count, _reads = scheduler.next_step(**arrays)
    scheduler.commit(np.full((count, 7), 3, np.float32))
    os._exit(7)
_, status = os.waitpid(child, 0)
scheduler.next_step(**call_arrays())  # refused if the child's pending step or its commit were the parent's
assert scheduler.stats()["calls"] == 1
sys.exit(os.waitstatus_to_exitcode(status))
"""

THREADS = """
import threading, time
from stp_rs import Design, errors

def beside(work):
    def forever():
        while True:
            work()
    threading.Thread(target=forever, daemon=True).start()

def forks(times, child):
    for _ in range(times):
        pid = os.fork()
        if pid == 0:
            child()
            os._exit(7)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code != 7:
            os._exit(code or 1)
"""

DESIGN = (
    THREADS
    + """
design, rows, length = Design("cover", 4), 256, 64
eligible, counts = np.ones((rows, length), np.uint8), np.tile(np.arange(length, 0, -1, dtype=np.int32), (rows, 1))
steps, uids = np.tile(np.arange(length, dtype=np.int32), (rows, 1)), np.arange(rows, dtype=np.uint64)

def draw():
    passes = int(design.passes(eligible, counts).sum())
    out = np.zeros((passes, length), np.uint8), np.zeros((passes, length), np.float32), np.zeros(passes, np.int32)
    design.draw(eligible, counts, steps, 0, uids, 0, *out)
    return out[0].tobytes() + out[1].tobytes()

right = draw()
beside(draw)
forks(40, lambda: draw() == right or os._exit(3))
os._exit(7)
"""
)

SCHEDULER = (
    THREADS
    + """
scheduler = made()
rows = np.arange(3, 100_000, dtype=np.uint64)
many = {
    "uids": rows,
    "prompt_ids": np.full((len(rows), 2), 5, np.int64),
    "prompt_lengths": np.full(len(rows), 2, np.int32),
    "completion_lengths": np.zeros(len(rows), np.int32),
}
from stp_rs import Unmasking

def submit():
    scheduler.submit(**{name: array.copy() for name, array in many.items()}, unmasking=Unmasking(5))
    many["uids"] += np.uint64(len(rows))

met = 0
def child():
    try:
        len(scheduler), scheduler.unfinished, scheduler.stats(), scheduler.capacity()
    except errors.StateError as error:
        assert "make a new scheduler in the child" in str(error)
        finished()
        os._exit(8)
    finished()

for turn in range(100):
    thread = threading.Thread(target=submit)
    thread.start()
    time.sleep(turn % 8 / 1000)
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    met += code == 8
    if code not in (7, 8):
        os._exit(code or 1)
    thread.join()
    scheduler = made()
    if met:
        break
print(met)
os._exit(7)
"""
)

LOOP = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test started in the background inherits that it is ignored
try:
    print("ready", flush=True)
    while True:
        scheduler = finished()
except KeyboardInterrupt:
    arrays = result_arrays()
    finished().results(**arrays)
    sys.exit(5 if (arrays["token_ids"] == 3).all() else 1)
"""


def start(script: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    # Python warns of a fork beside threads, which is what is tried here
    warn = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    command = [sys.executable, *warn, "-c", PREAMBLE + script]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on_with_its_own_copy() -> None:
    process = start(FORK)
    process.communicate(timeout=600)
    assert process.returncode == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("script", [DESIGN, SCHEDULER], ids=["design", "scheduler"])
def test_a_child_forked_while_another_thread_holds_a_lock_does_not_wait_for_it(script: str) -> None:
    """A design has memory for each that asks; a scheduler that may be half changed says so."""
    process = start(script)
    try:
        process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 7


@pytest.mark.skipif(os.name != "posix", reason="SIGINT reaches a process on POSIX only")
def test_ctrl_c_ends_a_loop_of_calls_and_leaves_a_core_that_works() -> None:
    process = start(LOOP)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)  # well into the loop
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 5
