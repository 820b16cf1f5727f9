"""Calls every function, method and constructor of the Rust core with every argument at its extremes, or at random.

What there is to call is read from the stub `_core.pyi`, so that a new function is called too. The calls are made in a
child process whose memory is limited and whose calls may take some seconds of CPU time each: a process that ends is a
finding, as is every error that is not one of ours or Python's own for arguments of the wrong kind.

    python -m tests.reliability.calls                      # every argument at its extremes, one at a time
    python -m tests.reliability.calls --random 1000000     # arguments of all kinds together
    python -m tests.reliability.calls --random 500 --first 1200 --seed 3    # these calls again
"""

import argparse
import faulthandler
import functools
import json
import mmap
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stp_rs import _core, errors
from tests.reliability.arguments import ENTRIES, ROWS, STAGES, WORDS, Entry, Parameter, extremes, instance, right

MEMORY = 1 << 30
"""Bytes that a child may allocate beyond what it has at its start."""
CHUNK = 50_000
"""Random calls of a child."""
SECONDS = 20
"""CPU time of one call; the slowest takes a tenth of a second."""
FINE = (errors.StpError, TypeError, OverflowError, UnicodeEncodeError)
"""What a call may raise: ours, and what Python itself says of arguments of the wrong kind, or too large to be read."""


# --- calls ---


@dataclass(frozen=True)
class Call:
    """A call: what is called, at which stage of its object, and with what."""

    entry: Entry
    stage: str
    arguments: dict[str, Any]

    def make(self, target: Any = None) -> Any:
        """Make the call and return what it returns."""
        entry = self.entry
        if not entry.owner:
            return getattr(_core, entry.name)(**self.arguments)
        owner = getattr(_core, entry.owner)
        if entry.called == "constructor":
            return owner(**self.arguments)
        if entry.called == "static":
            return getattr(owner, entry.name)(**self.arguments)
        target = instance(entry.owner, self.stage) if target is None else target
        member = getattr(target, entry.name)
        return member if entry.called == "property" else member(**self.arguments)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={_shown(value)}" for name, value in self.arguments.items())
        return f"{self.entry}({given}) at stage {self.stage}"


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        few = value.reshape(-1)[:4].tolist() if value.size and value.dtype.kind not in "VM" else []
        return f"{value.dtype}{list(value.shape)}{few}"
    return ascii(value)[:80]


def stages(entry: Entry) -> tuple[str, ...]:
    """Return the stages at which something is called."""
    return STAGES if entry.owner == "RolloutScheduler" and entry.called in ("method", "property") else STAGES[:1]


def calls_at_extremes() -> Iterator[Callable[[], Call]]:
    """Yield every right call, and it again with each argument in turn at each of its extremes."""
    for entry in ENTRIES:
        for stage in stages(entry):
            yield functools.partial(right_call, entry, stage)
            for parameter in entry.parameters:
                for value in extremes(entry, parameter):
                    yield functools.partial(right_call, entry, stage, parameter.name, value)


def right_call(entry: Entry, stage: str, name: str = "", value: Callable[[], Any] | None = None) -> Call:
    """Return a call that works, or with one argument made by `value`."""
    arguments = {p.name: right(entry, p) for p in entry.parameters if not p.optional or p.kind[:3] in ("NDA", "int")}
    if value is not None:
        arguments[name] = value()
    return Call(entry, stage, arguments)


class RandomCalls:
    """Calls with arguments that are right, extreme, random, or those of another argument."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.light: dict[tuple[str, str], list[Callable[[], Any]]] = {}
        self.heavy: dict[tuple[str, str], list[Callable[[], Any]]] = {}
        for entry in ENTRIES:
            for parameter in entry.parameters:
                key, known = (str(entry), parameter.name), list(extremes(entry, parameter))
                self.light[key] = [make for make in known if _size(make()) <= 1 << 12]
                self.heavy[key] = known

    def __call__(self, number: int) -> Call:
        """Return the call of this number; the same at every call."""
        draw = random.Random(self.seed * 1_000_003 + number)
        entry = draw.choice(ENTRIES)
        share = draw.choice((0.05, 0.3, 0.6))
        arguments: dict[str, Any] = {}
        for parameter in entry.parameters:
            if parameter.optional and draw.random() < 0.5:
                continue
            arguments[parameter.name] = self._value(draw, entry, parameter, share)
        if len(arguments) > 1 and draw.random() < 0.05:  # one array as two arguments
            to, of = draw.sample(sorted(arguments), 2)
            arguments[to] = arguments[of]
        return Call(entry, draw.choice(stages(entry)), arguments)

    def _value(self, draw: random.Random, entry: Entry, parameter: Parameter, share: float) -> Any:
        if draw.random() < share:
            known = self.heavy if draw.random() < 0.002 else self.light
            return draw.choice(known[str(entry), parameter.name])()
        value = right(entry, parameter)
        if isinstance(value, np.ndarray) and draw.random() < 0.7:
            value = self._array(draw, value)
        elif isinstance(value, int) and not isinstance(value, bool) and draw.random() < 0.7:
            value = draw.choice((draw.randint(0, 8), draw.randint(0, 1000), draw.getrandbits(draw.randint(1, 66))))
        elif isinstance(value, float):
            value = draw.choice((draw.random(), struct.unpack("d", draw.randbytes(8))[0]))
        elif parameter.kind == "list[str]" and draw.random() < 0.8:
            value = [self._text(draw) for _ in range(draw.choice((ROWS, ROWS, ROWS, 1, 0)))]
        elif parameter.kind == "str" and draw.random() < 0.6:
            value = draw.choice((draw.choice(WORDS), self._text(draw)))
        return value

    @staticmethod
    def _array(draw: random.Random, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        generator = np.random.default_rng(draw.getrandbits(32))
        if draw.random() < 0.3:
            value = np.resize(value, [max(0, size + draw.randint(-1, 2)) for size in value.shape])
        if draw.random() < 0.5:  # any bytes at all
            noise = generator.integers(0, 256, value.nbytes, np.uint8)
            anything: np.ndarray[Any, Any] = np.frombuffer(bytearray(noise), value.dtype).reshape(value.shape)
            return anything
        small = generator.integers(-3, 7, value.shape)
        near: np.ndarray[Any, Any] = (np.abs(small) if value.dtype.kind == "u" else small).astype(value.dtype)
        return near

    @staticmethod
    def _text(draw: random.Random) -> str:
        pieces = (
            *("<answer>", "</answer>", "\\boxed{", "}", "{", "(", ")", "+", "-", "*", "/", "=", "^", "_", "####", ","),
            *(
                "1",
                "23",
                "0",
                "9" * 40,
                ".",
                "%",
                "$",
                "\\frac",
                "\\sqrt",
                "e",
                " ",
                "\n",
                "\0",
                "\ud800",
                "é",
                "٣",
                "\U0001d7d8",
            ),
            *("x", "\\pi", "\\le", "[", "]", "&", "\\\\", "\\text{", "Puzzle", "answer is", "<", ">", "|", "!", "'"),
        )
        return "".join(draw.choices(pieces, k=draw.choice((1, 3, 10, 40, 200))))


def _size(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list):  # of equal elements
        return len(value) * (1 + _size(value[0])) if value else 0
    return len(value) if isinstance(value, str) else 0


# --- in a child, and over it ---


def watched(calls: Iterator[tuple[int, Callable[[], Call]]], note: mmap.mmap) -> Counter[str]:
    """Make calls in this process, under limits; return how they ended and print what may not happen as JSON lines.

    The number of the current call stands in `note`, so that whoever finds this process dead knows it.
    """
    _limit_memory()
    ended: Counter[str] = Counter()
    scheduler, age = None, 0
    for number, make in calls:
        struct.pack_into("q", note, 0, number)
        call = make()
        target = None
        if call.entry.owner == "RolloutScheduler" and call.entry.called in ("method", "property"):
            if scheduler is None or age % 16 == 0 or call.stage != "fresh":
                scheduler = instance("RolloutScheduler", call.stage)
            target, age = scheduler, age + 1
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends this process, however deaf the call is to signals
        wrong = ""
        try:
            call.make(target)
            ended["returned"] += 1
        except FINE as error:
            ended["typed error"] += 1
            wrong = repr(error) if isinstance(error, errors.InternalError) else ""
        except BaseException as error:
            wrong = f"{type(error).__mro__[0].__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        if wrong:
            ended["wrong"] += 1
            print(json.dumps({"number": number, "call": str(call), "wrong": wrong[:300]}), flush=True)
    return ended


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) if sys.platform == "linux" else 1 << 20
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(
    random_calls: int = 0, *, first: int = 0, seed: int = 0, patience: float = 3600
) -> tuple[Counter[str], list[str]]:
    """Make calls in children and return how many ended how, and what is wrong; one that dies is replaced."""
    ended: Counter[str] = Counter()
    wrong: list[str] = []
    last = first + random_calls if random_calls else sum(1 for _ in calls_at_extremes())
    while first < last:
        with tempfile.NamedTemporaryFile() as file:
            file.write(struct.pack("q", -1))
            file.flush()
            command = [sys.executable, "-W", "ignore", "-m", "tests.reliability.calls", "--child", file.name]
            share = min(last - first, CHUNK) if random_calls else 0
            command += [f"--first={first}", f"--seed={seed}", f"--random={share}"]
            path = os.pathsep.join(entry for entry in ("", *sys.path) if entry or not sys.path)
            environment = {**os.environ, "PYTHONPATH": path, "RUST_BACKTRACE": "0"}
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, check=False, timeout=patience
            )
            number: int = struct.unpack("q", Path(file.name).read_bytes()[:8])[0]
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        for line in lines:
            if "ended" in line:
                ended.update(line["ended"])
            else:
                wrong.append(f"call {line['number']}: {line['call']}: {line['wrong']}")
        if done.returncode == 0:
            first = first + share if random_calls else last
            continue
        if number < first:
            raise RuntimeError(f"the child did not begin: {done.stderr[-2000:]}")
        ended["process ended"] += 1
        wrong.append(f"call {number}: ended its process with {done.returncode}: {done.stderr.strip()[-300:]}")
        first = number + 1
    return ended, wrong


def child(args: argparse.Namespace) -> None:
    """Make the calls of a command line, print how they ended."""
    faulthandler.enable()
    with open(args.child, "r+b") as file:
        note = mmap.mmap(file.fileno(), 8)
    if args.random:
        made = RandomCalls(args.seed)
        numbers = range(args.first, args.first + args.random)
        ended = watched(((n, functools.partial(made, n)) for n in numbers), note)
    else:
        numbered = ((n, call) for n, call in enumerate(calls_at_extremes()) if n >= args.first)
        ended = watched(numbered, note)
    print(json.dumps({"ended": ended}))


def main() -> int:
    """Run a command line; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="N random calls instead of the extremes")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args)
        return 0
    started = time.monotonic()
    ended, wrong = run(args.random, first=args.first, seed=args.seed)
    print(f"{sum(ended.values()):,} calls in {time.monotonic() - started:.0f} s: {dict(ended)}")
    print(*wrong[:50], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
