"""math-verify in a process of its own: a comparison that hangs is ended from outside.

The library's own timeouts are signals, which work in the main thread only; a reward often runs in another
one. Here the time limit is kept by the caller, so it works in any thread, and no comparison can outlive it.
"""

import atexit
import contextlib
import importlib.util
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from stp_rs.errors import ConfigError

_START_SECONDS = 60.0


class TimedWorker:
    """A child process that answers one JSON line per JSON line, within a time limit per line.

    Not shared between threads at the same time: `ask` holds a lock. The child is started when first needed
    and again after it was ended for being too slow.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Keep the command; nothing is started yet."""
        self._command = list(command)
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._lock = threading.Lock()

    def ask(self, question: Any, seconds: float) -> Any:
        """Return the child's answer; None if it took longer than `seconds` or died.

        Raises:
            ConfigError: if the child cannot start; the message is what it printed.
        """
        with self._lock:
            child = self._child or self._start()
            line = None
            with contextlib.suppress(queue.Empty, BrokenPipeError):
                if child.stdin is not None:
                    child.stdin.write(json.dumps(question) + "\n")
                    child.stdin.flush()
                line = self._lines.get(timeout=seconds)
            if line is None:
                self._end()
                return None
            return json.loads(line)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines: queue.Queue[str | None] = queue.Queue()
        self._lines = lines
        threading.Thread(target=_pump, args=(child, lines), daemon=True).start()
        try:
            ready = lines.get(timeout=_START_SECONDS)
        except queue.Empty:
            ready = None
        if ready is None:
            child.kill()
            _, printed = child.communicate()
            last = (printed.strip().splitlines() or ["it printed nothing"])[-1]
            raise ConfigError(f"the comparison process did not start: {last}")
        self._child = child
        return child

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


def _pump(child: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    if child.stdout is not None:
        for line in child.stdout:
            lines.put(line)
    lines.put(None)


_CHILD = """
import json, sys
from math_verify import parse, verify
print("ready", flush=True)
for line in sys.stdin:
    gold, answer = (parse(text, parsing_timeout=None) for text in json.loads(line))
    try:
        same = bool(verify(gold, answer, timeout_seconds=None))
    except Exception:
        same = False
    print(json.dumps(same), flush=True)
"""
_WORKER = TimedWorker([sys.executable, "-c", _CHILD])
atexit.register(_WORKER.close)


def available() -> bool:
    """Return whether the `math` extra is installed."""
    return importlib.util.find_spec("math_verify") is not None


def verify(golds: Sequence[str], answers: Sequence[str], seconds: float = 5.0) -> list[bool | None]:
    """Return for each pair whether math-verify finds them equal; None where it took longer than `seconds`.

    Works in any thread; pairs are compared one after the other in one child process.

    Raises:
        ConfigError: if the `math` extra is not installed.
    """
    if not golds and not answers:
        return []
    if not available():
        raise ConfigError("math-verify is not installed: pip install 'stp-rs[math]'")
    return [_WORKER.ask([gold, answer], seconds) for gold, answer in zip(golds, answers, strict=True)]
