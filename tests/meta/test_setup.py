"""What a machine that lacks something is told by `make train`: no cargo, no compiler, an old Python, no room."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.meta.tree import ROOT

SYSTEM = ["awk", "cat", "cut", "dirname", "echo", "find", "grep", "rm", "sed", "sh", "tr", "uname"]
OF_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "ARGS", "EXTRAS", "PYTHON", "TORCH", "VENV")
"""What a `make test PYTHON=...` that runs these tests hands down."""
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A checkout that was never set up, and beside it bin/: all the programs of a machine that lacks nothing."""
    checkout, programs = tmp_path / "a checkout", tmp_path / "bin"
    for name in ("Makefile", "Cargo.toml", "Cargo.lock", "pyproject.toml", "constraints.txt", "scripts/tools.sh"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    (checkout / "rust").mkdir()
    programs.mkdir()
    for name in SYSTEM:
        (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    program(programs / "cc", "exit 0")
    program(programs / "cargo", "echo cargo 1.99.0")
    program(programs / "df", "echo; echo disk 9 9 99999999 9% /")
    # a Python that says yes to every question, and stops where the environment would be made
    program(programs / "python3", 'case "$*" in *--version*) echo Python 3.12.0;; "-m venv"*) echo made; exit 9;; esac')
    return tmp_path


def program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make_train(machine: Path, **environment: str) -> list[str]:
    """Return what `make train` says, but for make's own last line; it never gets as far as pip."""
    clean = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    done = subprocess.run(
        [str(shutil.which("make")), "train"],
        check=False,
        cwd=machine / "a checkout",
        env={**clean, "PATH": str(machine / "bin"), "TMPDIR": str(machine), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if not line.startswith("make: ***") and "Entering" not in line]


def test_a_whole_machine_gets_as_far_as_its_environment(machine: Path):
    assert make_train(machine) == ["== .venv, made by Python 3.12.0", "made"]


OLD = "exit 1"
NO_VENV = 'case "$*" in *ensurepip*) exit 1;; esac'
FULL = "echo; echo disk 9 9 1000000 9% /"


@pytest.mark.parametrize(
    ("name", "script", "words"),
    [
        ("cargo", None, ("needs cargo (Rust 1.", "https://rustup.rs")),
        ("cargo", "echo cargo 1.60.0", ("found cargo 1.60.0", "rustup update stable")),
        ("cargo", "echo no toolchain >&2; exit 1", ("needs cargo", "https://rustup.rs")),
        ("cc", None, ("a C compiler (cc)", "build-essential", "xcode-select")),
        ("python3", OLD, ("Python 3.10 or newer", "apt-get install python3")),
        ("python3", None, ("Python 3.10 or newer", "python.org")),
        ("python3", NO_VENV, ("the venv module of python3", "apt-get install python3-venv")),
        ("df", FULL, ("2 GB of free disk", "and 0 are", "free some")),
    ],
)
def test_what_is_missing_is_one_line_that_says_how_to_get_it(machine, name, script, words):
    (machine / "bin" / name).unlink()
    if script:
        program(machine / "bin" / name, script)
    said = make_train(machine)
    assert len(said) == 1, said
    assert said[0].startswith("stp_rs needs ")
    assert [word for word in words if word not in said[0]] == []


def test_a_python_that_was_named_is_named(machine: Path):
    assert make_train(machine, PYTHON="python2.7") == ["stp_rs needs Python 3.10 or newer, and PYTHON=python2.7 is not"]


def test_df_that_says_nothing_stops_nobody(machine: Path):
    for script in ("exit 1", "echo", "echo; echo disk - - - - /"):
        program(machine / "bin" / "df", script)
        assert make_train(machine)[-1] == "made"


def test_after_a_failed_installation_the_disk_is_named_where_it_was_small(machine: Path):
    def after() -> str:
        command = ["sh", "scripts/tools.sh", "failed"]
        where = {"cwd": machine / "a checkout", "env": {"PATH": str(machine / "bin"), "TMPDIR": str(machine)}}
        return subprocess.run(command, check=False, capture_output=True, text=True, **where).stderr

    assert after() == ""
    program(machine / "bin" / "df", "echo; echo disk 9 9 4000000 9% /")
    assert "needs 8 GB of free disk for a torch with CUDA libraries" in after()


@pytest.mark.parametrize(
    ("version", "asked", "taken"),
    [("2.9.0+cpu", "", True), ("2.3.1", "", False), ("1.13", "", False), ("2.9.0", "new", False), (None, "", False)],
)
def test_a_torch_that_the_interpreter_has_is_used(machine: Path, version, asked, taken):
    base = machine / "base packages"
    if version:
        folder = base / f"torch-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    program(machine / "bin" / "python3", f'PYTHONPATH="{base}" exec "{sys.executable}" -S "$@"')
    environment = machine / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    said = subprocess.run(
        ["sh", str(ROOT / "scripts/tools.sh"), "torch", "python3", str(environment)],
        check=True,
        env={"PATH": f"{machine / 'bin'}", "TORCH": asked},
        capture_output=True,
        text=True,
    ).stdout
    lines = list(environment.rglob("torch_of_the_base.pth"))
    assert bool(lines) == (environment / "torch.txt").exists() == taken
    assert said.startswith(f"== torch {version}") == taken
    if taken:
        assert lines[0].read_text() == f"{base}\n"
        assert (environment / "torch.txt").read_text() == f"torch==={version}\n"
