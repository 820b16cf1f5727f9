"""The files of the project and their functions, as the meta tests see them."""

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {".git", ".venv", "target", "dist", "build", "runs", "__pycache__"}


@dataclass(frozen=True)
class Function:
    """A function of either language: qualified name, lines, and parameters without the receiver."""

    name: str
    lines: int
    parameters: int


@cache
def files() -> tuple[Path, ...]:
    """Return what git tracks or would track, relative to the root; without git, all but products."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        found = {Path(name) for name in listed if name}
    except (OSError, subprocess.CalledProcessError):
        everything = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        found = {path for path in everything if not NOT_OURS.intersection(path.parts)}
    return tuple(sorted(path for path in found if (ROOT / path).is_file()))


def sources(suffix: str, *folders: str) -> list[Path]:
    """Return the files of a language under some folders; all of them where no folder is given."""
    ours = [path for path in files() if path.suffix == suffix]
    return [path for path in ours if not folders or path.parts[0] in folders]


def text(path: Path) -> str:
    """Return the text of a file given relative to the root; empty if it is no text, or not there."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):
        return ""


def python_functions(tree: ast.AST, prefix: str = "") -> Iterator[Function]:
    """Yield the functions and methods of a module, nested ones as `outer.inner`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from python_functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = prefix + node.name
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            static = "staticmethod" in map(ast.unparse, node.decorator_list)
            receiver = isinstance(tree, ast.ClassDef) and not static
            assert node.end_lineno is not None
            yield Function(name, node.end_lineno - node.lineno + 1, len(named) - receiver)
            yield from python_functions(node, f"{name}.")
        else:
            yield from python_functions(node, prefix)


SIGNATURE = re.compile(r"^( *)(?:pub(?:\([\w:]+\))? )?(?:const |async |extern \"C\" )*fn (\w+)", re.MULTILINE)


def rust_functions(source: str) -> Iterator[Function]:
    """Yield the functions of a rustfmt-ed file: each ends at a brace as deep as its first line."""
    for start in SIGNATURE.finditer(source):
        rest = source[start.start() :]
        first = rest.split("\n", 1)[0]
        end = re.search(rf"^{start[1]}\}}|^{start[1]}(?:\) .*|\).*);$", rest, re.MULTILINE)
        whole = first if first.endswith(("}", ";")) or end is None else rest[: end.end()]
        yield Function(start[2], whole.count("\n") + 1, _rust_parameters(rest))


def _rust_parameters(rest: str) -> int:
    """Count the parameters of the signature that starts a text, without `self` and `py`."""
    depth, parts, current = 0, [], ""
    rest = rest[rest.index("fn ") :].replace("->", "  ")
    opened = rest.index("(") if "<" not in rest.split("(")[0] else _after_generics(rest)
    for at in range(opened, len(rest)):
        letter = rest[at]
        depth += (letter in "([{<") - (letter in ")]}>")
        if depth == 0:
            break
        if letter == "," and depth == 1:
            parts.append(current)
            current = ""
        elif at > opened:
            current += letter
    named = [part.strip() for part in [*parts, current] if part.strip()]
    free = re.compile(r"(&(\s*'\w+)? ?(mut )?)?(mut )?self$|slf: |_?py: Python<|_?cls: ")
    return sum(free.match(part) is None for part in named)


def _after_generics(rest: str) -> int:
    """Return where the parameter list opens behind `fn name<...>`."""
    depth = 0
    for at, letter in enumerate(rest):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return at
    return len(rest)
