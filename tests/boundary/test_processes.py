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
from stp_rs import TrajectoryBuffer
from tests.oracles.buffer import columns, random_rows, same_arrays
L = 8
arrays = columns(random_rows(50, L, seed=0), L)
"""

FORK = """
buffer = TrajectoryBuffer(L, 200)
buffer.push(**arrays)
child = os.fork()
if child == 0:
    first = buffer.push(**arrays)
    out = np.empty((1, L), np.int64)
    buffer.replay(np.array([first], np.int32), np.array([3], np.int32), 9, out)
    os._exit(7 if first == 50 and len(buffer) == 100 else 1)
_, status = os.waitpid(child, 0)
assert len(buffer) == 50, "the child wrote into the parent"
sys.exit(os.waitstatus_to_exitcode(status))
"""

LOOP = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test started in the background inherits that it is ignored
buffer = TrajectoryBuffer(L, 50)
try:
    print("ready", flush=True)
    while True:
        buffer.push(**arrays)
        buffer.evict(1)
except KeyboardInterrupt:
    whole = len(buffer) in (0, 50) and len(buffer.to_arrays()["token_ids"]) == len(buffer)
    buffer.clear()
    buffer.push(**arrays)
    stored = buffer.to_arrays()
    same = all(np.array_equal(stored[name], arrays[name])
               for name in ("token_ids", "unmask_step", "logprob", "uid"))
    sys.exit(5 if whole and same else 1)
"""


def start(script: str) -> "subprocess.Popen[str]":
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "error", "-c", PREAMBLE + script]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on_with_its_own_copy() -> None:
    process = start(FORK)
    process.communicate(timeout=600)
    assert process.returncode == 7


@pytest.mark.skipif(os.name != "posix", reason="SIGINT reaches a process on POSIX only")
def test_ctrl_c_ends_a_loop_of_calls_and_leaves_a_whole_buffer() -> None:
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
