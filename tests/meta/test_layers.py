"""Who may know whom: a core without Python, one file that leaves it, modules in the data flow's order."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.meta.tree import sources, text

# The data flow. A module imports only from those before it, so a reader meets nothing that comes later.
# First what knows no step of the pipeline, then the pipeline, then what drives it.
ORDER = [
    *["_core", "errors", "presets", "limits", "config", "flags", "checkpoint", "metrics", "tasks"],
    *["model", "models", "sampling", "prompts", "priors", "engine", "rollout", "rewards", "played", "rescue"],
    *["advantages", "buffer", "likelihood", "replay", "bounds", "analysis", "loss", "reference", "update"],
    *["sft", "trainer"],
    *["spatial", "evaluation", "report", "integrations", "run", "console", "compare", "variance_cli", "cli"],
]

# Imports against the flow, and why.
UPWARD = {
    ("cli", "the whole package"): "`stp-rs env` prints the version",
    ("priors", "rollout"): "OfflineGeneration decodes the prompts with the initial policy",
    ("priors", "likelihood"): "OfflineGeneration keeps the tokens that the initial policy is sure of",
}

CORE_KNOWS_NOT = {"pyo3", "numpy", "rand", "rayon", "tokio"}


def module_of(path: Path) -> str:
    """Return the module directly under the package that a file belongs to."""
    return path.relative_to("python/stp_rs").parts[0].removesuffix(".py")


def imported(source: str, known: set[str]) -> Iterator[str]:
    """Yield the modules directly under the package that a source imports, but not those only for types."""
    tree = ast.parse(source)
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for line in node.body
        for inner in ast.walk(line)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"stp_rs.{'.' * node.level}{node.module or ''}"]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "stp_rs":
                below = rest.split(".")[0]
                yield below if below in known else "the whole package"


def upward(sources_by_path: dict[Path, str]) -> set[tuple[str, str]]:
    """Return the imports (from, to) that go against the data flow."""
    known = set(ORDER)
    rank = {name: at for at, name in enumerate(ORDER)}
    return {
        (here, there)
        for path, source in sources_by_path.items()
        if (here := module_of(path)) != "__init__"
        for there in imported(source, known)
        if there != here and rank.get(there, len(ORDER)) > rank[here]
    }


def package() -> dict[Path, str]:
    return {path: text(path) for path in sources(".py", "python")}


def test_every_python_module_has_its_place_in_the_data_flow():
    unknown = {module_of(path) for path in package()} - set(ORDER) - {"__init__"}
    assert unknown == set(), "say in ORDER what it may import and who may import it"


def test_python_modules_import_only_from_those_before_them():
    assert upward(package()) == set(UPWARD), "turn the import round, or list it in UPWARD with the reason"


def test_an_import_against_the_flow_is_seen():
    files = {
        Path("python/stp_rs/loss.py"): "def f():\n    from stp_rs.trainer import STPTrainer\n",
        Path("python/stp_rs/model.py"): "if TYPE_CHECKING:\n    from stp_rs.trainer import STPTrainer\n",
        Path("python/stp_rs/tasks/x.py"): "import stp_rs.errors\nfrom stp_rs import rollout\n",
        Path("python/stp_rs/rewards.py"): "from stp_rs import STPTrainer\n",
        Path("python/stp_rs/sft.py"): "from .errors import StpError\n",
    }
    assert upward(files) == {
        ("loss", "trainer"),
        ("tasks", "rollout"),
        ("rewards", "the whole package"),
        ("sft", "the whole package"),
    }


def test_the_core_is_safe_rust_that_knows_no_python():
    assert "#![forbid(unsafe_code)]" in text(Path("rust/stp-core/src/lib.rs"))
    manifest = text(Path("rust/stp-core/Cargo.toml"))
    section = re.search(r"^\[dependencies\]\n(.*?)(?=^\[|\Z)", manifest, re.MULTILINE | re.DOTALL)
    depends = set(re.findall(r"^([\w-]+)", section[1], re.MULTILINE)) if section else set()
    assert depends.isdisjoint(CORE_KNOWS_NOT)
    core = [path for path in sources(".rs", "rust") if path.parts[1] == "stp-core"]
    assert core
    for path in core:
        assert not re.search(r"\b(pyo3|Python<|PyResult)", text(path)), path


def binding() -> dict[Path, str]:
    return {path: text(path) for path in sources(".rs", "rust") if path.parts[1] == "stp-py"}


@pytest.mark.parametrize("call", ["detach", "catch_unwind", "attach", "allow_threads", "with_gil"])
def test_only_the_boundary_leaves_and_enters_python(call: str):
    users = {path.name for path, source in binding().items() if re.search(rf"\b{call}\(", code(source))}
    assert users <= {"boundary.rs"}
    if call == "detach":
        assert users == {"boundary.rs"}


def test_no_file_of_the_binding_is_unsafe():
    assert [path for path, source in binding().items() if re.search(r"\bunsafe\b", code(source))] == []


def code(source: str) -> str:
    """Return a Rust source without its line comments."""
    return re.sub(r"//.*", "", source)


def classes(source: str) -> list[str]:
    """Return the attributes that make Python classes; exceptions and enums take the same one."""
    return re.findall(r"#\[(?:pyo3::)?pyclass\b(.*?)\]\s*\n", code(source), re.DOTALL)


def test_every_pyclass_is_frozen():
    found = {path: classes(source) for path, source in binding().items()}
    assert sum(map(len, found.values())) >= 1
    for path, attributes in found.items():
        assert all(re.search(r"\bfrozen\b", attribute) for attribute in attributes), path
    assert "gil_used = false" in text(Path("rust/stp-py/src/lib.rs"))


def test_a_class_that_is_not_frozen_is_seen():
    source = '#[pyclass]\nstruct A;\n#[pyclass(\n  name = "B"\n)]\nstruct B;\n// #[pyclass]\n'
    assert classes(source) == ["", '(\n  name = "B"\n)']
