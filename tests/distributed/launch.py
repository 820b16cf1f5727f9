"""Runs a function of `tests.distributed.scenarios` in several processes that meet over gloo, with a limit on time."""

import multiprocessing
import os
import pickle
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 120.0
"""Seconds until what hangs is ended."""
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.distributed.scenarios"])


@dataclass(frozen=True)
class Ended:
    """How one process ended."""

    code: int | None
    """Its exit code; minus a signal's number; None where it had to be ended."""
    result: Any = None
    error: str = ""
    """Class and message of what it raised."""


def launch(
    name: str, processes: int, folder: Path, *, seconds: float = 60.0, hung: int | None = None, **arguments: Any
) -> list[Ended]:
    """Return how each process ended: `name(folder, **arguments)` is called in all of them.

    Args:
        name: of a function of the scenarios.
        processes: their number; one runs without a process group, as a run without a launcher.
        folder: of the run; results travel through files beside it.
        seconds: that a collective call waits.
        hung: the rank of a process that is not waited for.
        arguments: of the function.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [folder.parent / f".{folder.name}.{rank}.{port}" for rank in range(processes)]
    started = [
        _CONTEXT.Process(target=_run, args=(name, rank, processes, port, file, folder, seconds, arguments))
        for rank, file in enumerate(files)
    ]
    for process in started:
        process.start()
    deadline = time.monotonic() + LIMIT
    for process in (process for rank, process in enumerate(started) if rank != hung):
        process.join(max(0.0, deadline - time.monotonic()))
    ended = []
    for process, file in zip(started, files, strict=True):
        if process.is_alive():
            process.kill()
            process.join()
            ended.append(Ended(None))
            continue
        result, error = pickle.loads(file.read_bytes()) if file.is_file() else (None, "")
        ended.append(Ended(process.exitcode, result, error))
    return ended


def results(ended: list[Ended]) -> list[Any]:
    """Return what the processes returned; all must have ended well."""
    assert [e.code for e in ended] == [0] * len(ended), [e.error or e.code for e in ended]
    return [e.result for e in ended]


def _run(
    name: str, rank: int, world: int, port: int, file: Path, folder: Path, seconds: float, arguments: dict[str, Any]
) -> None:
    import torch

    from tests.distributed import scenarios

    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code, result, error = 0, None, ""
    try:
        result = getattr(scenarios, name)(folder, seconds=seconds, **arguments)
    except Exception as raised:  # what the test asks about
        code, error = 3, f"{type(raised).__name__}: {raised}"
    file.write_bytes(pickle.dumps((result, error)))
    os._exit(code)
