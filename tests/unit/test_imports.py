"""What is imported when: names of the package on first use, and for help and version no torch at all."""

import ast
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import stp_rs
from stp_rs.cli.main import build_parser


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


COMMANDS = ["train", "sample", "eval", "report", "inspect", "watch", "probe", "estimate", "variance", "grade", "env"]


def test_help_of_the_package_is_a_tour_of_its_names():
    tour = pydoc.render_doc(stp_rs, renderer=pydoc.plaintext).split("PACKAGE CONTENTS")[0]
    names = {name for names in stp_rs._LAZY.values() for name in names.split()} | {"Design", "PriorSet", "Unmasking"}
    assert not {name for name in names | {"StpError"} if not re.search(rf"\b{name}\b", tour)}


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["--help"], ["--version"], ["--nonsense"], ["trian"], ["train", "--lr=1"], ["eval", "r", "--sampels=1"]),
        *([command, "--help"] for command in COMMANDS),
    ],
)
def test_help_and_typing_errors_import_neither_torch_nor_transformers(arguments: list[str]):
    script = f"""import sys
sys.modules |= dict.fromkeys(("torch", "transformers"))
from stp_rs.cli.main import main
sys.exit(main({arguments}))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if arguments and arguments[-1] in ("--help", "--version"):
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == stp_rs.__version__ if "--version" in arguments else "usage: stp-rs" in done.stdout
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_every_command_is_in_that_list():
    commands = next(action for action in build_parser()._actions if action.choices)
    assert list(commands.choices or ()) == COMMANDS
