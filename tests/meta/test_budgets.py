"""The sizes that keep the code readable: files, functions, parameters, fields, inheritance."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.meta.tree import python_functions, rust_functions, sources, text

BUDGETS = {"file lines": 400, "function lines": 60, "parameters": 6, "fields": 15, "inheritance": 1}

# What may exceed a budget, up to the number given, and why. Take a line out when its reason is gone.
EXCEPTIONS: dict[tuple[str, str], tuple[int, str]] = {
    ("python/stp_rs/evaluation.py::evaluate", "parameters"): (7, "who, on what, and how; two by keyword"),
    ("python/stp_rs/evaluation.py::evaluate_cells", "parameters"): (7, "as evaluate, for many ways and a file"),
    ("python/stp_rs/likelihood.py::token_elbo", "parameters"): (7, "policy, rows, masks; the law and costs by keyword"),
    ("python/stp_rs/bounds.py::pass_logprobs", "parameters"): (7, "as token_elbo"),
    ("python/stp_rs/rollout.py::generate", "parameters"): (
        9,
        "one call is a whole rollout; six by keyword",
    ),
    ("python/stp_rs/sft.py::warm_up", "parameters"): (9, "one call is a whole phase; six by keyword"),
    ("python/stp_rs/trainer.py::STPTrainer.__init__", "parameters"): (7, "TRL's five, priors and evaluate"),
    ("rust/stp-core/src/rollout.rs", "file lines"): (500, "one state machine with the rows that it moves"),
}

Size = tuple[str, str, int]

# Bases that add a contract or a record, no behaviour to trace through levels.
CONTRACTS = {"Protocol", "Generic", "NamedTuple", "TypedDict", "Enum", "IntEnum", "StrEnum", "ABC", "object"}


def python_sizes(path: str, source: str) -> Iterator[Size]:
    """Yield (what, budget, size) for a Python file; a test takes as many parameters as it draws values."""
    tree = ast.parse(source)
    yield path, "file lines", source.count("\n")
    for function in python_functions(tree):
        yield f"{path}::{function.name}", "function lines", function.lines
        if not path.startswith(("tests/", "benches/")):
            yield f"{path}::{function.name}", "parameters", function.parameters
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and is_dataclass(node):
            fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
            count = sum("ClassVar" not in ast.unparse(line.annotation) for line in fields)
            yield f"{path}::{node.name}", "fields", count


def rust_sizes(path: str, source: str) -> Iterator[Size]:
    """Yield (what, budget, size) for a Rust file; the parameters of the binding are Python's keywords."""
    yield path, "file lines", source.count("\n")
    for function in rust_functions(source):
        yield f"{path}::{function.name}", "function lines", function.lines
        if not path.startswith("rust/stp-py/"):
            yield f"{path}::{function.name}", "parameters", function.parameters


def is_dataclass(node: ast.ClassDef) -> bool:
    """Return whether a class has a dataclass decorator."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def inheritance(sources_by_path: dict[str, str]) -> Iterator[Size]:
    """Yield the inheritance depth of every class; contracts, exceptions and dataclasses count as no level."""
    classes = {
        node.name: (path, node)
        for path, source in sources_by_path.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }

    def bases(name: str) -> list[str]:
        return [ast.unparse(base).split("[")[0].split(".")[-1] for base in classes[name][1].bases]

    def light(base: str) -> bool:
        if base in CONTRACTS or base.endswith(("Error", "Exception", "Warning")):
            return True
        return base in classes and (is_dataclass(classes[base][1]) or "Protocol" in bases(base))

    def depth(name: str) -> int:
        if name not in classes:
            return 0
        return max((1 + depth(base) for base in bases(name) if not light(base)), default=0)

    for name, (path, _) in classes.items():
        yield f"{path}::{name}", "inheritance", depth(name)


def over(sizes: Iterator[Size]) -> dict[tuple[str, str], int]:
    """Return the sizes above their budgets."""
    return {(what, budget): size for what, budget, size in sizes if size > BUDGETS[budget]}


def everything() -> dict[tuple[str, str], int]:
    """Return what exceeds a budget in the whole tree."""

    def read(paths: list[Path]) -> dict[str, str]:
        return {path.as_posix(): text(path) for path in paths}

    found: dict[tuple[str, str], int] = {}
    for path, source in read(sources(".py")).items():
        found |= over(python_sizes(path, source))
    for path, source in read(sources(".rs")).items():
        found |= over(rust_sizes(path, source))
    return found | over(inheritance(read(sources(".py", "python"))))


def test_nothing_exceeds_its_budget():
    allowed = {what: most for what, (most, _) in EXCEPTIONS.items()}
    excess = {what: size for what, size in everything().items() if size > allowed.get(what, 0)}
    assert excess == {}, "split it, or list it in EXCEPTIONS with the reason"


def test_every_exception_is_still_needed_and_says_why():
    unneeded = EXCEPTIONS.keys() - everything().keys()
    assert unneeded == set(), "within its budget by now, or gone: take the line out"
    assert all(reason.strip() for _, reason in EXCEPTIONS.values())


def test_the_measures_see_what_they_are_for():
    body = "    pass\n" * 60
    python = f"def long():\n{body}\n\nclass A:\n    def wide(self, a, b, /, c, d, *, e, f, g): pass\n"
    record = "@dataclass(frozen=True)\nclass Big:\n" + "".join(f"    f{i}: int\n" for i in range(16))
    assert over(python_sizes("p.py", python + record)) == {
        ("p.py::long", "function lines"): 61,
        ("p.py::A.wide", "parameters"): 7,
        ("p.py::Big", "fields"): 16,
    }
    assert over(python_sizes("p.py", "\n" * 401)) == {("p.py", "file lines"): 401}
    lines = "        x();\n" * 60
    wide = "a: u8, b: (u8, u8), c: &[u8], d: impl Fn(u8, u8) -> u8, e: u8, f: u8, g: Vec<(u8, u8)>"
    rust = (
        f"impl A {{\n    pub(crate) fn long<T: Fn(u8) -> u8>(&mut self, a: u8) -> u8 {{\n{lines}    }}\n"
        f"    fn wide(&self, {wide}) {{}}\n"
        f"    fn short(&self);\n}}\n"
    )
    assert over(rust_sizes("r.rs", rust)) == {
        ("r.rs::long", "function lines"): 62,
        ("r.rs::wide", "parameters"): 7,
    }


def test_inheritance_counts_levels_of_behaviour_only():
    source = """
class Contract(Protocol): ...
class Adapter(Contract): ...
class Network(nn.Module): ...
class Special(Network): ...
class BadError(ValueError): ...
class WorseError(BadError): ...
@dataclass
class Record: ...
@dataclass
class Longer(Record): ...
"""
    depths = {what.split("::")[1]: depth for what, _, depth in inheritance({"p.py": source})}
    nothing = dict.fromkeys(["Contract", "Adapter", "BadError", "WorseError", "Record", "Longer"], 0)
    assert depths == {**nothing, "Network": 1, "Special": 2}
