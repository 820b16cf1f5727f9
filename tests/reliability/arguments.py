"""What there is to call in the Rust core, by its stub `_core.pyi`, and its arguments: right ones, and extremes."""

import ast
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import stp_rs
from stp_rs import _core

STUB = Path(stp_rs.__file__).with_name("_core.pyi")
ROWS, LENGTH, SLOTS = 2, 4, 3


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


ENTRIES = entries()
