"""What is imported when: names of the package on first use, and for help and version no torch at all."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stp_rs


def test_lazy_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(stp_rs.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (node.module, alias.name) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    lazy = {(f"stp_rs.{module}", name) for module, names in stp_rs._LAZY.items() for name in names.split()}
    assert seen == lazy
    for module, name in lazy:
        assert getattr(stp_rs, name) is getattr(sys.modules[module], name)
        assert name in dir(stp_rs)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        stp_rs.nonsense  # noqa: B018 - asking is the test


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["report", "--help"], ["watch", "--help"]])
def test_help_and_version_import_neither_torch_nor_transformers(arguments: list[str]):
    script = f"""import sys
sys.modules |= dict.fromkeys(("torch", "transformers"))
from stp_rs.cli.main import main
main({arguments})"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == stp_rs.__version__ if arguments == ["--version"] else "usage: stp-rs" in done.stdout


@pytest.mark.parametrize("command", ["variance", "grade"])
def test_commands_that_are_slow_to_import_have_their_options_when_asked(command: str):
    script = f"from stp_rs.cli.main import main; main(['{command}', '--help'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "--json" in done.stdout
