"""math-verify in a process of its own: a comparison that hangs or eats memory is ended from outside.

The library's own timeouts are signals, which work in a main thread only, while a reward often runs in another one. The
child has a main thread of its own, where an alarm ends what takes too long; what no alarm can end, the system kills.
So the limit holds in any thread. It counts the child's CPU seconds, so that a busy machine changes no verdict; what
waits without computing, the caller kills. Pairs go to the child in batches, and verdicts are kept.
"""

import atexit
import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stp_rs.errors import ConfigError

_START_SECONDS = 300.0
"""What a start may take by the clock: some seconds of computing, on a machine that may be busy."""
_GRACE_SECONDS = 2.0
"""How much longer than its alarm the child lives when the alarm cannot end a comparison."""
_WAIT_SECONDS = 120.0
"""How much longer, by the clock, the caller waits for a child that has its CPU seconds limited."""
_BATCH = 64
"""Pairs written ahead of their answers: few enough that neither side's pipe fills up."""
_KEPT = 65_536
"""Verdicts that are kept."""


class TimedWorker:
    """A child process that answers one JSON line per JSON line, within a time limit per line.

    The child is started when first needed, in this process, and again after it was ended for being too slow. Threads
    take turns.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Keep the command; nothing is started yet."""
        self._command = list(command)
        self._child: subprocess.Popen[str] | None = None
        self._owner = 0
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._lock = threading.Lock()

    def ask(self, questions: Sequence[Any], seconds: float) -> list[Any]:
        """Return the child's answer to each question; None where it took longer than `seconds`, or died.

        Raises:
            ConfigError: the child cannot start; the message is what it printed.
        """
        answers: list[Any] = []
        with self._lock:
            while len(answers) < len(questions):
                answers += self._batch(questions[len(answers) : len(answers) + _BATCH], seconds)
        return answers

    def _batch(self, questions: Sequence[Any], seconds: float) -> Iterator[Any]:
        """Yield answers in order, up to the first that does not come."""
        child = self._child if self._child is not None and self._owner == os.getpid() else self._start()
        with contextlib.suppress(BrokenPipeError):
            if child.stdin is not None:
                child.stdin.writelines(json.dumps(question) + "\n" for question in questions)
                child.stdin.flush()
        for _ in questions:
            line = None
            with contextlib.suppress(queue.Empty):
                line = self._lines.get(timeout=seconds)
            if line is None:
                self._end()
                yield None
                return
            yield json.loads(line)

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
        self._child, self._owner = child, os.getpid()
        return child

    def _end(self) -> None:
        if self._child is not None and self._owner == os.getpid():
            self._child.kill()
            self._child.communicate()
        self._child = None


def _pump(child: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    if child.stdout is not None:
        for line in child.stdout:
            lines.put(line)
    lines.put(None)


_CHILD = """
import contextlib, json, logging, signal, sys, time
try:
    import resource
except ImportError:
    resource = None
if resource:
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from math_verify import parse, verify
logging.disable(logging.CRITICAL)
class Expired(BaseException):  # an `except Exception` of the library must not make a verdict of it
    pass
late = False
def expired(*_):
    global late
    late = True
    raise Expired
def same(gold, answer, decimals):
    gold, answer = (parse(text, parsing_timeout=None) for text in (gold, answer))
    options = dict(timeout_seconds=None, allow_set_relation_comp=True)
    if verify(gold, answer, float_rounding=300, numeric_precision=320, **options):
        return True
    return decimals is not None and bool(verify(gold, answer, float_rounding=decimals, **options))
def limit(seconds):
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
    if resource and seconds:
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds + GRACE) + 1, hard))
with contextlib.suppress(Exception):
    same("x + 1", "1 + x", None)  # what the library loads when first asked is no part of an answer's time
if hasattr(signal, "setitimer"):
    signal.signal(signal.SIGPROF, expired)
print("ready", flush=True)
for line in sys.stdin:
    gold, answer, decimals, seconds = json.loads(line)
    found, late = None, False
    try:
        try:
            limit(seconds)
            found = same(gold, answer, decimals)
        finally:
            limit(0)
    except Expired:
        pass
    except Exception:
        found = False
    print(json.dumps(None if late else found), flush=True)
""".replace("GRACE", repr(_GRACE_SECONDS))
_WORKER = TimedWorker([sys.executable, "-c", _CHILD])
atexit.register(_WORKER.close)


class Pair(NamedTuple):
    """Two texts to compare, in which math-verify finds the expressions itself."""

    gold: str
    answer: str
    decimals: int | None = None
    """Decimals of a gold that may be rounded: an answer that rounds to it is equal."""


_VERDICTS: OrderedDict[Pair, bool] = OrderedDict()
_GUARD = threading.Lock()


def available() -> bool:
    """Return whether the `math` extra is installed."""
    return importlib.util.find_spec("math_verify") is not None


def verify(pairs: Sequence[Pair], seconds: float = 3.0) -> list[bool | None]:
    """Return for each pair whether math-verify finds them equal; None where that took more CPU time than `seconds`.

    Works in any thread. A pair is compared once: verdicts are kept, of the last 65,536 pairs.

    Raises:
        ConfigError: the `math` extra is not installed.
    """
    if not pairs:
        return []
    if not available():
        raise ConfigError("math-verify is not installed: pip install 'stp-rs[math]'")
    with _GUARD:
        known = {pair: _VERDICTS[pair] for pair in pairs if pair in _VERDICTS}
    left = [pair for pair in dict.fromkeys(pairs) if pair not in known]
    by_clock = _WAIT_SECONDS if hasattr(signal, "setitimer") else _GRACE_SECONDS
    found = _WORKER.ask([[*pair, seconds] for pair in left], seconds + by_clock)
    fresh = dict(zip(left, found, strict=True))
    with _GUARD:
        _VERDICTS.update({pair: same for pair, same in fresh.items() if same is not None})
        while len(_VERDICTS) > _KEPT:
            _VERDICTS.popitem(last=False)
    return [known[pair] if pair in known else fresh[pair] for pair in pairs]
