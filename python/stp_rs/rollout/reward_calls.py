"""Calls of reward functions: what they raise, how long they take, and what they leave behind in the process.

A reward function is anybody's code, and it reads whatever a policy writes. A call ends with what it returns or with a
`RewardError`, `sys.exit` and a forked child that comes back included, and the process is then as it was before.
"""

import asyncio
import concurrent.futures
import contextlib
import ctypes
import functools
import inspect
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from stp_rs.errors import RewardError
from stp_rs.text import shown

MOST_PRINTED = 1 << 16
"""Characters that a call may print; the rest is left out."""
_GRACE = 5.0
"""Seconds beyond its timeout after which a coroutine that does not let go of its thread is given up."""


def call_together(calls: Mapping[str, Callable[[], Any]], timeout: float | None = None) -> dict[str, Any]:
    """Return what each call returned, or the RewardError that it ended with; coroutines are awaited at the same time.

    They run on one event loop of a thread of its own: a client that belongs to a loop is good for the next batch too,
    and a caller that has a loop running (a notebook) is not disturbed.

    Args:
        calls: by the names of the reward functions.
        timeout: seconds for each; None waits for ever. With one the calls are made in a thread, where `signal.signal`
            is not allowed; a call that is too late is told to end and left behind.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    results: dict[str, Any] = {}
    waiting: dict[str, Any] = {}
    try:
        for name, call in calls.items():
            with _as_before(name):
                results[name] = _outcome(name, call) if timeout is None else _in_time(name, call, timeout)
            if inspect.isawaitable(results[name]):
                waiting[name] = results[name]
    except BaseException:
        for coroutine in waiting.values():
            getattr(coroutine, "close", lambda: None)()  # no warning about one that was never awaited
        raise
    if waiting:
        with _as_before(", ".join(waiting)):
            results |= _awaited(waiting, timeout)
    return results


def _outcome(name: str, call: Callable[[], Any]) -> Any:
    process = os.getpid()
    try:
        returned: Any = call()
    except (KeyboardInterrupt, GeneratorExit):
        _end_of_a_child(name, process)
        raise
    except BaseException as error:
        _end_of_a_child(name, process)
        return _failed(name, error)
    _end_of_a_child(name, process)
    return returned


def _end_of_a_child(name: str, process: int) -> None:
    """End a process that a reward function forked: it would train on beside its parent, on the same files."""
    if os.getpid() != process:
        with contextlib.suppress(OSError):
            os.write(2, f"reward {name}: forked a process that came back from it; that process is ended\n".encode())
        os._exit(1)


def _failed(name: str, error: BaseException) -> RewardError:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if len(frames) > 1 else ""
    how = f"called sys.exit({shown(error.code)})" if isinstance(error, SystemExit) else f"raised {shown(error, 300)}"
    made = RewardError(f"reward {name}: {how}{place}")
    made.__cause__ = error
    return made


def _late(name: str, timeout: float) -> RewardError:
    return RewardError(f"reward {name}: did not return within reward_timeout ({timeout:g} s)")


def _in_time(name: str, call: Callable[[], Any], timeout: float) -> Any:
    """Return what a call in a thread returns, or the error of one that is late."""
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(_outcome(name, call)), name=f"reward {name}", daemon=True)
    thread.start()
    thread.join(timeout)
    if box:
        return box[0]
    if thread.ident is not None:  # ends a loop in Python; what waits inside a C function is left behind
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
    return _late(name, timeout)


def _awaited(waiting: Mapping[str, Any], timeout: float | None) -> dict[str, Any]:
    async def outcome(name: str, awaitable: Any) -> Any:
        try:
            return await awaitable
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit would end the loop, and its caller would wait for ever
            return _failed(name, error)

    async def one(name: str, awaitable: Any) -> Any:
        try:
            return await asyncio.wait_for(outcome(name, awaitable), timeout)
        except asyncio.TimeoutError:
            return _late(name, timeout or 0.0)

    async def gathered() -> list[Any]:
        return await asyncio.gather(*(one(name, awaitable) for name, awaitable in waiting.items()))

    future = asyncio.run_coroutine_threadsafe(gathered(), _event_loop(os.getpid()))
    try:
        found = future.result(None if timeout is None else timeout + _GRACE)
    except concurrent.futures.TimeoutError:  # Python's own from 3.11 on
        _event_loop.cache_clear()  # its thread is stuck in one of them
        return {name: _late(name, timeout or 0.0) for name in waiting}
    return dict(zip(waiting, found, strict=True))


@functools.cache
def _event_loop(process: int) -> asyncio.AbstractEventLoop:
    """Return the running loop of a process: a fork has its parent's memory, and none of its threads."""
    del process
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="stp_rs rewards", daemon=True).start()
    return loop


# --- the process, before and after ---


class _Bounded:
    """A stream that takes a bounded number of characters."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.left, self.cut = stream, MOST_PRINTED, 0

    def write(self, text: str) -> int:
        """Write what still fits."""
        kept = text[: self.left]
        self.left -= len(kept)
        self.cut += len(text) - len(kept)
        if kept:
            self._stream.write(kept)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _as_before(name: str) -> Iterator[None]:
    """Put back what a reward function changed of the process, and warn of it; bound what it prints."""
    main = threading.current_thread() is threading.main_thread()
    before = _settings(main)
    printed = {stream: _Bounded(getattr(sys, stream)) for stream in ("stdout", "stderr") if getattr(sys, stream)}
    streams = {stream: (getattr(sys, stream), bounded) for stream, bounded in printed.items()}
    for stream, bounded in printed.items():
        setattr(sys, stream, bounded)
    try:
        yield
    finally:
        changed = [stream for stream, bounded in printed.items() if getattr(sys, stream) is not bounded]
        for stream, (own, _) in streams.items():
            setattr(sys, stream, own)
        changed += [what for what, (value, _) in _settings(main).items() if value != before[what][0]]
        for what in changed:
            if what in before:
                before[what][1]()
            warnings.warn(f"reward {name}: changed {what}; it is put back after the call", stacklevel=2)
        for stream, bounded in printed.items():
            if bounded.cut:
                warnings.warn(
                    f"reward {name}: printed {MOST_PRINTED + bounded.cut:,} characters to {stream} in one call; all "
                    f"but the first {MOST_PRINTED:,} are left out",
                    stacklevel=2,
                )


def _settings(main: bool) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Return what a function may not change of the process: name -> (value, what puts it back)."""
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    strict = torch.are_deterministic_algorithms_enabled()
    precision = torch.get_float32_matmul_precision()
    found: dict[str, tuple[Any, Callable[[], Any]]] = {
        "torch.set_grad_enabled": (grad, lambda: torch.set_grad_enabled(grad)),
        "torch.set_default_dtype": (dtype, lambda: torch.set_default_dtype(dtype)),
        "torch.set_num_threads": (threads, lambda: torch.set_num_threads(threads)),
        "torch.use_deterministic_algorithms": (strict, lambda: torch.use_deterministic_algorithms(strict)),
        "torch.set_float32_matmul_precision": (precision, lambda: torch.set_float32_matmul_precision(precision)),
    }
    with contextlib.suppress(OSError):  # a folder that is gone cannot be gone back to
        folder = os.getcwd()
        found["the working folder"] = (folder, lambda: os.chdir(folder))
    if main and hasattr(signal, "getitimer"):
        watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
        handlers = {number: signal.getsignal(number) for number in watched}
        found["signal handlers"] = (handlers, functools.partial(_set_handlers, handlers))
        armed = signal.getitimer(signal.ITIMER_REAL)[0] > 0
        found["an alarm"] = (armed, lambda: None if armed else signal.setitimer(signal.ITIMER_REAL, 0))
    return found


def _set_handlers(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None:  # one that was not set in Python cannot be set from it
            signal.signal(number, handler)
