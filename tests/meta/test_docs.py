"""What the documentation promises: public names are explained, snippets run, pointers lead somewhere."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
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


@pytest.fixture
def as_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to run in; tasks that a page adds are gone afterwards, and warnings are shown, as to a reader."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("stp_rs.tasks")
    monkeypatch.setattr(module, "TASKS", dict(module.TASKS))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield tmp_path


USERS_PAGES = [p for p in MARKDOWN if (p.name == "README.md" or p.parts[0] == "docs") and blocks(p, "python")]


@pytest.mark.parametrize("path", USERS_PAGES, ids=str)
def test_the_snippets_of_a_users_page_run(path: Path, as_a_reader: Path):
    """In order, in one process and an empty folder, as a reader pastes them; other documents show parts."""
    program = as_a_reader / "page.py"
    program.write_text("\n".join(blocks(path, "python")), encoding="utf-8")
    runpy.run_path(str(program), run_name="__main__")


def test_every_python_snippet_parses():
    for path in MARKDOWN:
        ast.parse("\n".join(blocks(path, "python")), filename=str(path))


HOW_TO = re.compile(r"docs/howto/own_(reward|prior|model|task)\.md")


@pytest.mark.parametrize("path", [path for path in MARKDOWN if HOW_TO.match(path.as_posix())], ids=str)
def test_a_part_of_ones_own_takes_few_lines(path: Path):
    """A page wires it in under 40 lines of code, imports and the trainer included."""
    code = [line for block in blocks(path, "python") for line in block.splitlines() if line.strip()]
    assert 10 < len(code) < 40


NOTEBOOKS = [path for path in files() if path.suffix == ".ipynb"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path):
    nbformat = pytest.importorskip("nbformat", reason="the extra docs")
    nbclient = pytest.importorskip("nbclient", reason="the extra docs")
    pytest.importorskip("ipykernel", reason="the extra docs")
    notebook = nbformat.read(ROOT / path, as_version=4)
    nbformat.validate(notebook)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == [], "outputs are made, not stored"
    # a user's Jupyter settings, and those of this machine, decide nothing
    environment = {**os.environ, "JUPYTER_PLATFORM_DIRS": "1", "IPYTHONDIR": str(tmp_path / "ipython")}
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    client = nbclient.NotebookClient(notebook, timeout=800, kernel_name="python3")
    client.km = client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable
    client.execute(cwd=str(tmp_path), env=environment)
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    first, last = re.findall(r"mean reward ([0-9.]+) to ([0-9.]+)", said)[0]
    assert float(last) > float(first) + 0.3


def test_the_pictures_of_the_concepts_are_current(monkeypatch: pytest.MonkeyPatch):
    drawn = importlib.import_module("scripts.draw_concepts").PICTURES
    assert drawn
    for name, draw in drawn.items():
        assert text(Path("docs/img") / name) == draw(), f"docs/img/{name} is old: make pictures"
        assert f"img/{name}" in text(Path("docs/concepts.md"))


def logged_names() -> set[str]:
    """Return the names of metrics that the package's sources state, parts in braces as *."""
    literal = re.compile(r"f?\"((?:diffusion|clip_ratio|completions|rewards)/[\w/{}]+|kl|entropy|num_tokens)\"")
    found = {name for path in sources(".py", "python") for name in literal.findall(text(path))}
    return {re.sub(r"\{\w+\}", "*", name) for name in found}


def unexplained(names: Iterable[str], page: str) -> list[str]:
    """Return the metrics that no row of the page is about; NAME and PHASE stand for anything."""
    rows = [re.sub("NAME|PHASE", "*", name) for name in re.findall(r"`([\w/]+)`", page)]
    return sorted(name for name in names if name not in rows and not any(fnmatchcase(name, row) for row in rows))


def test_every_metric_is_explained():
    names = logged_names() - {"diffusion/*", "diffusion/*_*"}  # of the ledger: the counts and clocks below
    clocks = {f"diffusion/{of}seconds{phase}" for of in ("", "cpu_", "gpu_") for phase in ("", "_eval")}
    counts = {f"diffusion/{count}_rollout" for count in ("forwards", "tokens", "head_rows")}
    assert len(names) > 20
    assert unexplained(names | clocks | counts, text(Path("docs/metrics.md"))) == []


def test_a_metric_without_a_row_is_seen():
    page = "| `reward` | x |\n| `rewards/NAME/mean` | y |\n| `diffusion/seconds_PHASE` | z |"
    assert unexplained(["reward", "rewards/*/mean", "rewards/f/mean", "diffusion/seconds_rollout"], page) == []
    assert unexplained(["rewards/f/std", "kl"], page) == ["kl", "rewards/f/std"]


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
    if words and re.fullmatch(r"(.*/)?stp-rs", words[0]):
        return refused(words[1:])
    asked = re.search(r"(?:\.|stp[-_]rs)\[([\w,-]+)\]", line) if "install" in words else None
    known = re.findall(r"^([\w-]+) = \[", text(Path("pyproject.toml")), re.MULTILINE) if asked else []
    missing = [extra for extra in asked[1].split(",") if extra not in known] if asked else []
    return f"no extra {missing} in pyproject.toml" if missing else None


def refused(arguments: list[str]) -> str | None:
    """Return what the command line has against some arguments: its own parser and configuration are asked."""
    from stp_rs.cli.flags import given_options
    from stp_rs.cli.main import build_parser
    from stp_rs.config import TaskConfig
    from stp_rs.errors import StpError

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            args = build_parser(arguments).parse_args(arguments)
        if arguments[0] == "train":
            flags = {name: value for name, value in given_options(args).items() if name not in ("output_dir", "data")}
            TaskConfig.from_yaml(ROOT / args.config, **flags) if args.config else TaskConfig(**flags)
    except SystemExit as end:
        return None if end.code == 0 else said.getvalue().splitlines()[-1]
    except (StpError, OSError) as error:
        return str(error)
    return None


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
    assert broken(".venv/bin/stp-rs train --preset grpo --dry_run") is None
    assert broken("stp-rs train --help") is None
    assert "no_such_option" in str(broken("stp-rs train --no_such_option 3"))
    assert "no_such_preset" in str(broken("stp-rs train --preset no_such_preset"))
    assert "no_such.yaml" in str(broken("stp-rs train --config no_such.yaml"))
    assert broken("stp-rs no-such-command") is not None
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
