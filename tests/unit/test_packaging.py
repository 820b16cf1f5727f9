"""The package as installed: one version, five dependencies, a light import, types for its users."""

import functools
import importlib
import importlib.metadata
import importlib.resources
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import stp_rs
from stp_rs import _renamed

ROOT = Path(__file__).resolve().parents[2]
CORE = {"torch", "transformers", "numpy", "safetensors", "tqdm", "filelock"}
EXTRAS = {"dev", "peft", "datasets", "tasks", "math", "plot", "pretrained", "tensorboard", "docs", "release"}


def requirements() -> list[str]:
    return importlib.metadata.requires("stp-rs") or []


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return found.group().lower()


def test_the_version_has_one_source() -> None:
    section = (ROOT / "Cargo.toml").read_text().split("[workspace.package]")[1]
    version = re.search(r'^version = "(.*)"$', section, flags=re.MULTILINE)
    assert version
    assert importlib.metadata.version("stp-rs") == stp_rs.__version__ == version.group(1)
    for manifest in [*ROOT.glob("rust/*/Cargo.toml"), ROOT / "benches" / "Cargo.toml"]:
        assert "version.workspace = true" in manifest.read_text(), manifest
    assert not re.search(r"^version\s*=", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)


def test_the_core_dependencies_are_exactly_these() -> None:
    core = [requirement for requirement in requirements() if "extra ==" not in requirement]
    assert {name_of(requirement) for requirement in core} == CORE
    assert len(core) == len(CORE)


def test_every_extra_exists_and_asks_for_something() -> None:
    assert set(importlib.metadata.metadata("stp-rs").get_all("Provides-Extra") or []) == EXTRAS
    for extra in EXTRAS:
        assert [r for r in requirements() if re.search(rf"""extra == ['"]{extra}['"]""", r)], extra


def test_every_dependency_is_pinned_for_development() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert {name_of(requirement) for requirement in requirements()} <= pinned
    assert all(line.startswith("#") or "==" in line for line in lines)


def test_the_command_is_installed() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="stp-rs")
    assert [script.value for script in scripts] == ["stp_rs.cli.main:main"]


def test_the_types_are_shipped() -> None:
    package = importlib.resources.files("stp_rs")
    assert package.joinpath("py.typed").is_file()
    assert package.joinpath("_core.pyi").is_file()


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement, less those it starts with."""
    program = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in out.stdout.split()}


def test_importing_the_package_asks_for_no_extra_and_no_development_tool() -> None:
    loaded = modules_after("import stp_rs")
    assert "stp_rs" in loaded
    assert not loaded & {"peft", "datasets", "reasoning_gym", "math_verify", "trl", "accelerate"}
    assert not loaded & {"matplotlib", "tensorboard", "hypothesis", "mypy", "pytest", "_pytest"}


def test_tests_cannot_reach_the_network() -> None:
    with socket.socket() as outside, pytest.raises(RuntimeError, match="no network"):
        outside.connect(("192.0.2.1", 80))


@pytest.mark.parametrize("name", _renamed.NAMES)
def test_a_name_of_0_1_says_the_new_one(name: str):
    with pytest.raises(ImportError, match=f"stp_rs.{name} is stp_rs"):
        getattr(stp_rs, name)
    new = _renamed.NAMES[name].split("(")[0].split(".")[1:]
    assert functools.reduce(getattr, new, stp_rs) is not None


@pytest.mark.parametrize("module", _renamed.MODULES)
def test_a_module_of_0_1_says_the_new_one(module: str):
    with pytest.raises(ImportError, match=f"stp_rs.{module} is stp_rs"):
        importlib.import_module(f"stp_rs.{module}")
    assert importlib.import_module(f"stp_rs.{_renamed.MODULES[module].split()[0]}") is not None
