"""Calls every function, method and constructor of the Rust core with every argument at its extremes, or at random.

What there is to call is read from the stub `_core.pyi`, so that a new function is called too. The calls are made in a
child process whose memory is limited and whose calls may take some seconds of CPU time each: a process that ends is a
finding, as is every error that is not one of ours or Python's own for arguments of the wrong kind.

    python -m tests.reliability.calls                      # every argument at its extremes, one at a time
    python -m tests.reliability.calls --random 1000000     # arguments of all kinds together
    python -m tests.reliability.calls --random 500 --first 1200 --seed 3    # these calls again
"""

import argparse
import ast
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import stp_rs
from stp_rs import _core, errors

STUB = Path(stp_rs.__file__).with_name("_core.pyi")
ROWS, LENGTH, SLOTS = 2, 4, 3
MEMORY = 1 << 30
"""Bytes that a child may allocate beyond what it has at its start."""
CHUNK = 50_000
"""Random calls of a child."""
SECONDS = 20
"""CPU time of one call; the slowest takes a tenth of a second."""
FINE = (errors.StpError, TypeError, OverflowError, UnicodeEncodeError)
"""What a call may raise: ours, and what Python itself says of arguments of the wrong kind, or too large to be read."""


# --- what there is to call ---


@dataclass(frozen=True)
class Parameter:
    """A parameter of the stub."""

    name: str
    kind: str
    """Its annotation."""
    optional: bool


@dataclass(frozen=True)
class Entry:
    """A function of the module, or a method, constructor or property of one of its classes."""

    owner: str
    name: str
    parameters: tuple[Parameter, ...]
    called: str
    """function, constructor, static, method or property."""

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}" if self.owner else self.name


def entries() -> list[Entry]:
    """Return everything that the stub declares."""
    found: list[Entry] = []
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.append(_entry("", node))
        elif isinstance(node, ast.ClassDef):
            found += [_entry(node.name, method) for method in node.body if isinstance(method, ast.FunctionDef)]
    return found


def _entry(owner: str, node: ast.FunctionDef) -> Entry:
    decorators = {ast.unparse(d) for d in node.decorator_list}
    called = "method" if owner else "function"
    if node.name == "__new__":
        called = "constructor"
    elif "staticmethod" in decorators:
        called = "static"
    elif "property" in decorators:
        called = "property"
    plain = [*node.args.posonlyargs, *node.args.args]
    required = len(plain) - len(node.args.defaults)
    arguments = [(argument, place >= required) for place, argument in enumerate(plain)]
    arguments += [(a, d is not None) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    parameters = [
        Parameter(argument.arg, ast.unparse(argument.annotation or ast.Constant(None)), optional)
        for argument, optional in arguments
        if argument.arg not in ("self", "cls")
    ]
    return Entry(owner, node.name, tuple(parameters), called)


# --- calls that are right ---

SHAPES = {
    **dict.fromkeys(("uids", "prompt_lengths", "completion_lengths", "nfe", "stop"), (ROWS,)),
    **dict.fromkeys(("lengths", "starts", "rows"), (SLOTS,)),
    **dict.fromkeys(("ids", "candidates", "uniforms"), (SLOTS * 2 * LENGTH,)),
    "free": (LENGTH,),
    "row": (ROWS,),
}
"""Shapes of arrays by the names of their parameters; the others are [R, L]."""
TEXTS = {"selector": "random", "name": "cover", "operators": "+-*/"}
PUZZLE = "1234340021434321"
NINE = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
GIVEN: dict[str, dict[str, Any]] = {
    "PriorSet.from_dense": {"ids": lambda: np.full((ROWS, LENGTH), -1, np.int64)},
    "PriorSet.fill": {"ids": lambda: np.zeros((ROWS, LENGTH), np.int64)},
    "PriorSet.select": {"rows": lambda: [0, 1]},
    "PriorSet.row": {"row": lambda: 1},
    "RolloutScheduler": {"slots": lambda: SLOTS},
    "RolloutScheduler.submit": {
        "prompt_ids": lambda: np.full((ROWS, LENGTH), 5, np.int64),
        "completion_lengths": lambda: np.full(ROWS, LENGTH, np.int32),
    },
    "RolloutScheduler.places": {"out": lambda: np.zeros(SLOTS * LENGTH, np.int32)},
    "RolloutScheduler.blocks": {"rows": lambda: np.zeros(1, np.int32), "starts": lambda: np.zeros(1, np.int32)},
    "RolloutScheduler.commit": {"packed": lambda: np.full((ROWS * LENGTH, 7), 3, np.float32)},
    "Design.draw": {"row": lambda: np.zeros(2 * ROWS, np.int32)},
    "Design.law": {
        "limit": lambda: 10_000,
        "eligible": lambda: np.ones((1, LENGTH), np.uint8),
        "unmask_counts": lambda: np.arange(LENGTH, 0, -1, dtype=np.int32)[None],
        "unmask_step": lambda: np.arange(LENGTH, dtype=np.int32)[None],
        "mass": lambda: np.ones((1, LENGTH), np.float32),
    },
    "prompt_mask": {"prompt": lambda: np.ones((ROWS, LENGTH), np.uint8), "ratio": lambda: 0.5},
    "sudoku4_grade": {"out": lambda: np.zeros((ROWS, 5), np.float32), "puzzles": lambda: [PUZZLE] * ROWS},
    "sudoku9_grade": {
        "out": lambda: np.zeros((ROWS, 5), np.float32),
        "solutions": lambda: [NINE, ""],
        "puzzles": lambda: [NINE] * ROWS,
    },
    "countdown_grade": {"out": lambda: np.zeros(ROWS, np.uint8)},
    "choose_anchors": {"share": lambda: 0.5},
    "grid_answers": {"n": lambda: 16},
    "tag_layout": {"tags": lambda: ["<a>", "</a>"]},
}
"""What a call needs that its annotations do not say."""


def right(entry: Entry, parameter: Parameter) -> Any:
    """Return a value with which the call works."""
    given = GIVEN.get(str(entry), GIVEN.get(entry.owner, {}) if entry.called == "constructor" else {})
    if parameter.name in given:
        return given[parameter.name]()
    kind = parameter.kind.removesuffix(" | None")
    if kind.startswith("NDArray"):
        dtype = kind.split(".")[-1].rstrip("]")
        shape = SHAPES.get(parameter.name, (ROWS, LENGTH))
        if parameter.name in ("mask", "weight"):
            shape = (2 * ROWS, LENGTH) if entry.owner else (ROWS, LENGTH)
        plan = np.arange(LENGTH, 0, -1)
        if parameter.name == "unmask_counts":
            return np.tile(plan, (ROWS, 1)).astype(dtype)
        return np.arange(ROWS, dtype=dtype) if parameter.name == "uids" else np.ones(shape, dtype)
    if parameter.name in TEXTS:
        return TEXTS[parameter.name]
    simple: dict[str, Callable[[], Any]] = {
        "int": lambda: 3,
        "float": lambda: 0.5,
        "bool": lambda: True,
        "str": lambda: "none",
        "list[str]": lambda: ["<answer>1+2</answer>", "x"],
        "list[int]": lambda: [3, 5],
        "Sequence[int]": lambda: [1, 0],
        "list[list[int]]": lambda: [[1, 2], [3, 4]],
        "tuple[float, float]": lambda: (0.1, 0.9),
        "PriorSet": lambda: _core.PriorSet.empty(ROWS),
        "Unmasking | Sequence[Unmasking]": lambda: _core.Unmasking(LENGTH),
    }
    if kind.startswith("tuple[int"):
        return tuple(range(1, kind.count("int") + 1))
    return simple[kind]()


def instance(owner: str, stage: str = "fresh") -> Any:
    """Return an object whose methods are called; a scheduler at any stage of its work."""
    if owner == "RolloutScheduler":
        return _scheduler(stage)
    made: dict[str, Callable[[], Any]] = {
        "Unmasking": lambda: _core.Unmasking(LENGTH),
        "PriorSet": lambda: _core.PriorSet.from_dense(np.array([[-1, 5, 6, -1]] * ROWS)),
        "Design": lambda: _core.Design("cover", 2),
    }
    return made[owner]()


STAGES = ("fresh", "submitted", "pending", "finished")


def _scheduler(stage: str) -> _core.RolloutScheduler:
    made = _core.RolloutScheduler(mask_token_id=1, pad_token_id=0, slots=SLOTS, seed=0)
    by_name = {str(entry): entry for entry in ENTRIES}

    def do(name: str, **given: Any) -> Any:
        entry = by_name[f"RolloutScheduler.{name}"]
        return getattr(made, name)(**{p.name: right(entry, p) for p in entry.parameters} | given)

    if stage != "fresh":
        do("submit", prior=None)
    while stage in ("pending", "finished"):
        *_, count, _reads = do("next_step")
        if stage == "pending" or count == 0:
            break
        do("commit", packed=np.full((count, 7), 3, np.float32))
    return made


# --- extremes ---

INTEGERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 63, 255, 2**15, 2**16 - 1, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62),
    *(2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), 10**30, True, None, 1.5, "1", np.int64(3), np.uint8(9)),
)
FLOATS: tuple[Any, ...] = (
    *(0.0, -0.0, 1.0, -1.0, 5e-324, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"), 1 - 2**-53),
    *(10**400, 3, None, "0.5", np.float32(0.5)),
)
WORDS: tuple[str, ...] = (
    *("", "none", "top_k", "prob", "random", "prefix", "span", "not_answer", "top_confidence", "custom", "last"),
    *("truncate", "llada", "dllm", "dream", "powers_of_two", "bernoulli", "ceil_remaining", "leftmost", "gumbel"),
    *(f"{name}:{number}" for name in ("threshold", "factor", "entropy_bound") for number in ("0", "nan", "1e308", "")),
    *(f"{n}:{v}" for n in ("fill_ratio", "steps", "confidence", "entropy", "stable") for v in ("0", "inf", "-1", "x")),
    *("threshold:0.5:18446744073709551616", "margin:1:0", "margin:nan:nan", "stable:18446744073709551615", ":", "::"),
    *("+", "-*/", "++", "%", "template", "offline_generation"),
    *(name for name, _ in _core.Design.names()),
)
TEXT: tuple[Any, ...] = (
    *("", "\0", "\ud800", "\u202e", "٣", "é" * 50, "9" * 5000, "(" * 20000, "<answer>" * 3000, "\\frac{" * 5000),
    *("0" * 81, "1" * 16, "-" * 5000, "1/" * 5000, "^" * 5000, "1e999999999", "x" * (1 << 20), PUZZLE, NINE),
    *("<answer>" + "(1+" * 4000 + "1" + ")" * 4000 + "</answer>", "\\boxed{" + "{" * 5000 + "}" * 5000),
    *("<answer>" + "9" * 400 + "^" + "9" * 400 + "</answer>", "#### 1,000,000.50", None, b"x", 3),
)
WIDTHS: tuple[tuple[int, ...], ...] = (
    *((), (0,), (1,), (0, 0), (ROWS, 0), (0, LENGTH), (1 << 42, 0), (0, 1 << 42), (1 << 24, 0), ((1 << 24) + 1, 0)),
    *((1, LENGTH), (ROWS, 1), (ROWS, 1 << 16), (1 << 16, 1), (ROWS, LENGTH, 1), (1 << 42, 0, 1), (4096,), (1 << 20,)),
)


def extremes(entry: Entry, parameter: Parameter) -> Iterator[Callable[[], Any]]:
    """Yield what makes each extreme value of a parameter."""
    kind = parameter.kind.removesuffix(" | None")
    yield lambda: None
    yield object
    if kind.startswith("NDArray"):
        yield from _arrays(right(entry, parameter))
    elif kind == "str":
        yield from (functools.partial(_same, text) for text in (*WORDS, *TEXT))
    elif kind in ("list[int]", "Sequence[int]"):
        yield from (functools.partial(_same, [number] * count) for number in INTEGERS for count in (1, ROWS))
        yield from (functools.partial(_same, value) for value in ([], [0] * (1 << 16), range(3), "12", 3))
        yield lambda: [0] * ((1 << 24) + 1)
    elif kind == "list[str]":
        yield from (functools.partial(_same, [text] * count) for text in TEXT for count in (1, ROWS))
        yield from (functools.partial(_same, value) for value in ([], ["a"] * (1 << 16), "ab", ("a", "b"), 3))
    elif kind == "list[list[int]]":
        yield from (functools.partial(_same, [[number] * 4] * ROWS) for number in INTEGERS)
        yield from (functools.partial(_same, [[1] * count] * ROWS) for count in (0, 1, 6, 7, 8, 64, 1 << 16))
        others: tuple[object, ...] = ([], [[]], [3], "12", [[100, 75, 50, 25, 10, 5]] * ROWS)
        yield from (functools.partial(_same, value) for value in others)
    elif kind.startswith("tuple[int"):
        count = kind.count("int")
        yield from (functools.partial(_same, (number,) * count) for number in INTEGERS)
        yield from (functools.partial(_same, (1,) * other) for other in (0, count - 1, count + 1, 1000))
    elif kind.startswith("tuple[float"):
        yield from (functools.partial(_same, pair) for pair in zip(FLOATS, FLOATS[::-1], strict=True))
        yield from (functools.partial(_same, (0.1,) * other) for other in (0, 1, 3))
    elif kind == "PriorSet":
        for rows in (0, 1, ROWS, 1 << 20):
            yield functools.partial(_core.PriorSet.empty, rows)
        yield lambda: _core.PriorSet.from_dense(np.full((ROWS, 1 << 16), 2**63 - 1))
    elif kind.startswith("Unmasking"):
        yield from (functools.partial(_same, value) for value in ([], [3], (_core.Unmasking(1),) * ROWS, "ab"))
        yield from (functools.partial(_core.Unmasking, steps) for steps in (1, 1 << 20))
        yield lambda: _core.Unmasking(1 << 20, block_length=1, selection="threshold:0.5:1", temporal="stable:1")
    else:
        yield from (
            functools.partial(_same, value) for value in {"int": INTEGERS, "float": FLOATS, "bool": INTEGERS}[kind]
        )


def _same(value: Any) -> Any:
    return value


def _arrays(fitting: np.ndarray[Any, Any]) -> Iterator[Callable[[], Any]]:
    dtype = fitting.dtype
    yield from (functools.partial(np.zeros, shape, dtype) for shape in WIDTHS)
    yield functools.partial(np.ones, (*fitting.shape[:-1], fitting.shape[-1] + 1), dtype)
    if dtype.kind == "f":
        values: Sequence[Any] = (0, -1, np.nan, np.inf, -np.inf, np.finfo(dtype).max, np.finfo(dtype).tiny)
    else:
        limits = np.iinfo(dtype)
        values = (0, 1, 2, 7, limits.min, limits.max, limits.max // 2)
    yield from (functools.partial(np.full, fitting.shape, value, dtype) for value in values)
    for other in (np.float64, np.int8, np.uint16, np.complex64, object, "V8", "U3", "M8[s]", dtype.newbyteorder()):
        yield functools.partial(np.zeros, fitting.shape, other)
    yield lambda: np.repeat(fitting, 2, axis=-1)[..., ::2]
    yield lambda: fitting.copy().T if fitting.ndim > 1 else fitting.copy()[::-1]
    yield lambda: np.broadcast_to(dtype.type(1), fitting.shape)
    yield lambda: np.frombuffer(bytearray(fitting.nbytes), dtype).reshape(fitting.shape)
    yield fitting.tolist
    yield lambda: _read_only(fitting.copy())
    yield lambda: np.ndarray(fitting.shape, dtype, bytearray(fitting.nbytes + 1), offset=1)  # not aligned


def _read_only(array: np.ndarray[Any, Any]) -> Any:
    array.flags.writeable = False
    return array


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


ENTRIES = entries()


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
