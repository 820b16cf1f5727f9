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
    command = [sys.executable, "-W", "error", "-c", PREAMBLE + script]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on_with_its_own_copy() -> None:
    process = start(FORK)
    process.communicate(timeout=600)
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
