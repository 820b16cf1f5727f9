"""What the documentation promises: public names are explained, snippets run, pointers lead somewhere."""

import ast
import doctest
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.meta.tree import ROOT, files, sources, text

# A path that exists on one machine only. URLs, relative paths and `~` are none.
MACHINE_PATH = re.compile(r"(?<![\w.~/:\-])(?:/(?:home|Users|root|work|mnt|tmp)/|[A-Z]:\\Users\\)[\w.]")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAPER_MAP = Path("docs/paper_map.md")


def module_name(path: Path) -> str:
    """Return the dotted name of a file of the package."""
    return ".".join(path.relative_to("python").with_suffix("").parts).removesuffix(".__init__")


def load(name: str) -> types.ModuleType:
    """Import a module; a test that needs an extra which is not installed is skipped."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("stp_rs"):
            raise
        return pytest.skip(f"{name} needs {error.name}")


def public_names(source: str) -> set[str]:
    """Return the names that a module offers: those in `__all__`, and those imported as themselves."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names if alias.asname == alias.name}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= set(ast.literal_eval(node.value))
    return names


def undocumented(name: str, value: Any) -> bool:
    """Return whether a class or function lacks a docstring whose first line is a sentence."""
    if isinstance(value, types.GenericAlias) or not (inspect.isclass(value) or inspect.isroutine(value)):
        return False
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    first = (own or "").strip().split("\n")[0]
    made_by_dataclass = first.startswith(f"{name}(")
    return made_by_dataclass or not first.endswith(".")


PACKAGE = sources(".py", "python")


@pytest.mark.parametrize("path", PACKAGE, ids=str)
def test_every_public_name_is_documented(path: Path):
    assert ast.get_docstring(ast.parse(text(path))), f"{path} has no docstring"
    names = public_names(text(path))
    if names:
        module = load(module_name(path))
        assert [name for name in sorted(names) if undocumented(name, getattr(module, name))] == []


def test_a_missing_docstring_is_seen():
    assert public_names("from a import b as b, c as d\nfrom e import f\n__all__ = ['g']\n") == {"b", "g"}

    class Bare(Exception):
        pass

    class Told:
        """Says what it is."""

    class Mumbled:
        """says it without an end"""

    assert [undocumented(c.__name__, c) for c in (Bare, Told, Mumbled)] == [True, False, True]
    assert not undocumented("alias", dict[str, int])
    assert not undocumented("constant", 3)


@pytest.mark.parametrize("path", [path for path in PACKAGE if ">>>" in text(path)], ids=str)
def test_the_examples_of_docstrings_run(path: Path):
    result = doctest.testmod(load(module_name(path)))
    assert result.attempted > 0
    assert result.failed == 0


def blocks(path: Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a Markdown file in some languages, in order."""
    return [body for language, body in BLOCK.findall(text(path)) if language in languages]


MARKDOWN = sources(".md")


def test_the_snippets_of_users_documents_run(tmp_path: Path):
    """In order, in one process and an empty folder, as a reader pastes them; other documents show parts."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    for path in MARKDOWN:
        program = "\n".join(blocks(path, "python"))
        ast.parse(program, filename=str(path))
        if program and (path.name == "README.md" or path.parts[0] == "docs"):
            folder = tmp_path / path.stem
            folder.mkdir()
            command = [sys.executable, "-c", program]
            done = subprocess.run(
                command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=800
            )
            assert done.returncode == 0, f"{path}:\n{done.stderr}"


def broken(line: str) -> str | None:
    """Return what is wrong with a shell command of a snippet: a file, target or extra that does not exist."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # a separator inside quotes cut the command; bash has parsed the whole of it
        return None
    if words and words[0] == "$":
        return "a prompt in front of a command cannot be pasted"
    if words[:1] == ["make"]:
        targets = re.findall(r"^([\w-]+):", text(Path("Makefile")), re.MULTILINE)
        missing = [word for word in words[1:] if not re.search("^-|=", word) and word not in targets]
        return f"no target {missing} in the Makefile" if missing else None
    if words and re.fullmatch(r"(.*/)?(python[\d.]*|bash|sh)", words[0]):
        script = next((word for word in words[1:] if word.endswith((".py", ".sh"))), None)
        return f"no file {script}" if script and not (ROOT / script).exists() else None
    asked = re.search(r"(?:\.|stp[-_]rs)\[([\w,-]+)\]", line) if "install" in words else None
    known = re.findall(r"^([\w-]+) = \[", text(Path("pyproject.toml")), re.MULTILINE) if asked else []
    missing = [extra for extra in asked[1].split(",") if extra not in known] if asked else []
    return f"no extra {missing} in pyproject.toml" if missing else None


def commands(block: str) -> Iterator[str]:
    """Yield the commands of a shell block, continued lines joined."""
    for line in block.replace("\\\n", " ").split("\n"):
        yield from re.split(r"&&|\|\||[;|]", line)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_shell_snippets_parse_and_name_what_exists():
    for path in MARKDOWN:
        for block in blocks(path, "bash", "sh", "console"):
            parsed = subprocess.run(["bash", "-n"], check=False, input=block, capture_output=True, text=True)
            assert parsed.returncode == 0, f"{path}: {parsed.stderr}"
            assert [why for line in commands(block) if (why := broken(line))] == [], path


def test_a_broken_command_is_seen():
    assert broken("$ ls") is not None
    assert broken("make no-such-target") == "no target ['no-such-target'] in the Makefile"
    assert broken("python examples/no_such_file.py --fast") == "no file examples/no_such_file.py"
    assert broken('pip install "stp-rs[no-such-extra]"') is not None
    assert broken("git clone somewhere  # it's a comment") is None
    assert list(commands("a \\\n  b && c\n")) == ["a    b ", " c", ""]


def test_no_file_holds_a_path_of_one_machine():
    found = {
        f"{path}:{number}": line.strip()
        for path in files()
        for number, line in enumerate(text(path).split("\n"), start=1)
        if MACHINE_PATH.search(line)
    }
    assert found == {}


def test_a_machine_path_is_told_from_others():
    folder = "home/someone/data"
    for bad in (f"/{folder}", f'"/{folder}"', f"cd /{folder}", f"--out=/{folder}"):
        assert MACHINE_PATH.search(bad), bad
    for good in (f"../{folder}", f"~/{folder}", f"https://host.org/{folder}", f"a/{folder}", "/usr/bin/env"):
        assert not MACHINE_PATH.search(good), good


POINTER = re.compile(r"`([\w./-]+\.(?:rs|py))(?:::([\w:]+))?`")


def rows_without_an_end(markdown: str) -> list[str]:
    """Return what is wrong with the rows of the paper map: each names a source and a test that exist."""
    wrong = []
    for row in re.findall(r"^\|(?!\s*:?-).*\|$", markdown, re.MULTILINE)[1:]:
        pointers = POINTER.findall(row)
        is_test = ["tests" in re.split(r"/|::|\.rs", f"{path}::{name}") for path, name in pointers]
        if not any(is_test) or all(is_test):
            wrong.append(f"names no source or no test: {row}")
        for path, name in pointers:
            last = name.split("::")[-1]
            if path not in {file.as_posix() for file in files()}:
                wrong.append(f"{path} does not exist: {row}")
            elif last and not re.search(rf"\b(?:fn|def|class|struct|enum|mod) {last}\b", text(Path(path))):
                wrong.append(f"{path} has no {last}: {row}")
    return wrong


def test_the_paper_map_leads_to_files_and_tests():
    assert rows_without_an_end(text(PAPER_MAP)) == []


def test_a_row_that_leads_nowhere_is_seen():
    head = "| equation | file | test |\n|---|---|---|\n"
    core, test = "`rust/stp-core/src/rng.rs::RowRng`", "`tests/meta/test_docs.py::broken`"
    vectors = "`rust/stp-core/src/rng.rs::tests::philox_matches_the_random123_vectors`"
    assert rows_without_an_end(f"{head}| x | {core} | {test} |\n| y | {core} | {vectors} |\n") == []
    assert len(rows_without_an_end(f"{head}| x | {core} | soon |\n")) == 1
    assert len(rows_without_an_end(f"{head}| x | - | {test} |\n")) == 1
    assert len(rows_without_an_end(f"{head}| x | `rust/none.rs` | {test} |\n")) == 1
    assert len(rows_without_an_end(f"{head}| x | {core} | `tests/meta/test_docs.py::no_such_test` |\n")) == 1


DEFECTS = Path("docs/defects.md")


def defects_without_a_test(markdown: str) -> list[str]:
    """Return what is wrong with the table of defects: all numbers, and tests that exist for each."""
    rows = {int(number): row for number, row in re.findall(r"^\| (\d+) \|(.*)\|$", markdown, re.MULTILINE)}
    wrong = [f"no row {number}" for number in range(1, 18) if number not in rows]
    for number, row in rows.items():
        pointers = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        wrong += [] if pointers else [f"{number} names no test"]
        for path, name in pointers:
            if Path(path) not in files() or f"def {name}(" not in text(Path(path)):
                wrong.append(f"{number}: no {path}::{name}")
    return wrong


def test_every_defect_has_a_test():
    assert defects_without_a_test(text(DEFECTS)) == []


def test_a_defect_without_a_test_is_seen():
    rows = [f"| {i} | bad | `tests/meta/test_docs.py::test_every_defect_has_a_test` |" for i in range(1, 18)]
    assert defects_without_a_test("\n".join(rows)) == []
    assert defects_without_a_test("\n".join(rows[1:])) == ["no row 1"]
    assert defects_without_a_test("\n".join([*rows[1:], "| 1 | bad | soon |"])) == ["1 names no test"]
    gone = rows[0].replace("every_defect_has", "no_defect_has")
    assert len(defects_without_a_test("\n".join([*rows[1:], gone]))) == 1
