"""What goes to a terminal: hostile text has no effect, tables line up, and refused output ends in one line."""

import json
import os
import shlex
import signal
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stp_rs.cli.main import main
from stp_rs.cli.terminal import guarded
from stp_rs.errors import ConfigError
from stp_rs.text import clip, inert, show, table, width

HOSTILE = {
    "escape": ("\x1b[31mred", "\\x1b[31mred"),
    "clear screen": ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
    "title": ("\x1b]0;pwned\x07", "\\x1b]0;pwned\\x07"),
    "link": ("\x1b]8;;http://x\x1b\\y", "\\x1b]8;;http://x\\x1b\\y"),
    "one-byte CSI": ("\x9b2J", "\\x9b2J"),
    "null": ("a\0b", "a\\x00b"),
    "bell and backspaces": ("\a\b\b", "\\x07\\x08\\x08"),
    "lines": ("a\r\nb\vc\fd\x85e\u2028f\u2029g", "a\\r\\nb\\x0bc\\x0cd\\x85e\\u2028f\\u2029g"),
    "right to left": ("\u202eabc\u2066\u200f", "\\u202eabc\\u2066\\u200f"),
    "no width": ("\u200b\ufeff\u00ad\u2060", "\\u200b\\ufeff\\xad\\u2060"),
    "tags": ("\U000e0041", "\\U000e0041"),
    "lone surrogate": ("\ud800", "\\ud800"),
    "private and unassigned": ("\ue000\u0378", "\\ue000\\u0378"),
    "pile of marks": ("a" + "\u0301" * 6, "a" + "\u0301" * 4 + "\\u0301\\u0301"),
    "tab": ("a\tb", "a\\tb"),
}
PLAIN = ["plain", "naïve café", "e\u0301", "日本語", "🦀", "한국어", "עברית", "x ≤ √2 → ∞"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_shown_as_its_escapes(name: str):
    text, shown = HOSTILE[name]
    assert inert(text) == shown


@pytest.mark.parametrize("text", PLAIN)
def test_text_of_any_language_stays_as_it_is(text: str):
    assert inert(text) == text


@given(st.text(st.characters(), max_size=60), st.integers(9, 40))
def test_inert_text_has_no_control_characters_and_fits_its_cell(text: str, columns: int):
    shown = inert(text)
    assert all(unicodedata.category(char)[0] not in "C" for char in shown)
    assert inert(shown) == shown
    assert width(clip(shown, columns)) <= columns


def test_widths_are_those_of_a_terminal():
    assert [width(text) for text in ("abc", "日本", "e\u0301", "🦀", "각", "\u1100\u1161\u11a8")] == [3, 4, 1, 2, 2, 2]


def test_cells_of_wide_characters_line_up():
    lines = table(("prompt", "n"), [("日本語" * 20, "1"), ("a\x1b[2Jb\nc", "2"), ("e\u0301" * 3, "3")]).split("\n")
    assert {width(line[: line.index("|")]) for line in lines if "|" in line} == {width(lines[1].split("+")[0])}
    assert all(line.isprintable() for line in lines)
    assert "..." in lines[2]


def test_every_stream_and_every_error_gets_inert_lines(capsys: pytest.CaptureFixture[str]):
    def refuse() -> int:
        show("one\x1b[2J\ntwo\u202e")
        sys.stderr.write(warnings.formatwarning(UserWarning("three\x07"), UserWarning, "f\x1b", 1))
        raise ConfigError("four\n\x9bfive")

    assert guarded(refuse) == 2
    out, err = capsys.readouterr()
    assert out == "one\\x1b[2J\ntwo\\u202e\n"
    assert err == "f\\x1b:1: UserWarning: three\\x07\nstp-rs: four \\x9bfive\n"


@pytest.mark.parametrize(
    "arguments", [["sample", "/no\x1b[2J"], ["train", "--config", "/\x1b[2J"], ["x\x1b[2J"], ["env", "--x\x1b[2J"]]
)
def test_names_in_errors_of_the_command_line_are_inert(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own
        code = int(stop.code or 0)
    shown = capsys.readouterr()
    assert code == 2
    assert "\\x1b[2J" in shown.err
    assert "\x1b" not in shown.out + shown.err


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "a\x1b/b"), KeyboardInterrupt()])
def test_errors_of_the_system_are_one_line(error: BaseException, capsys: pytest.CaptureFixture[str]):
    def fails() -> int:
        raise error

    assert guarded(fails) == (2 if isinstance(error, OSError) else 130)
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_an_ignored_or_handled_signal_stays_so(capsys: pytest.CaptureFixture[str]):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert guarded(lambda: os.kill(os.getpid(), signal.SIGHUP) or 7) == 7
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not capsys.readouterr().err


def test_memory_that_ends_outside_a_run_is_one_line(capsys: pytest.CaptureFixture[str]):
    def ends() -> int:
        raise MemoryError("Unable to allocate 9.00 GiB for an array with shape (3,)")

    assert guarded(ends) == 2
    assert capsys.readouterr().err == "stp-rs: out of memory: Unable to allocate 9.00 GiB\n"


SCRIPT = """
import sys
from stp_rs.cli.terminal import guarded
from stp_rs.text import show
def run():
    for _ in range(5000):
        show("日本 é " + "x" * 50)
    return 0
sys.exit(guarded(run))
"""


def in_shell(command: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run SCRIPT as `$run` in a shell."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    run = f"{shlex.quote(sys.executable)} -W ignore {shlex.quote(str(tmp_path / 'script.py'))}"
    return subprocess.run(["bash", "-c", command.replace("$run", run)], capture_output=True, text=True, check=False)


def test_a_closed_pipe_ends_in_one_line(tmp_path: Path):
    done = in_shell("$run | head -n 1; exit ${PIPESTATUS[0]}", tmp_path)
    assert (done.returncode, done.stderr) == (2, "stp-rs: Broken pipe\n")
    assert done.stdout.startswith("日本 é x")


@pytest.mark.parametrize("arguments", ["grade --task gsm8k answers.jsonl --explain", "train --help"])
@pytest.mark.parametrize("into", ["| head -n 0; exit ${PIPESTATUS[0]}", "> /dev/full", "| cat > out"])
def test_commands_end_in_one_line_where_their_output_goes_nowhere(arguments: str, into: str, tmp_path: Path):
    if "full" in into and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    record = {"completion": "日本 \\boxed{1} <answer>2</answer>", "answer": "1", "ground_truth": "1"}
    (tmp_path / "answers.jsonl").write_text((json.dumps(record) + "\n") * 3, encoding="utf-8")
    python = f"PYTHONIOENCODING=ascii {shlex.quote(sys.executable)} -W ignore"
    run = f"cd '{tmp_path}'; {python} -m stp_rs.cli {arguments} {into}"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {run}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    if "out" in into:
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "out").read_text(encoding="ascii")
    elif "full" in into and ("help" not in arguments or done.returncode):  # argparse keeps silent from 3.11 on
        assert (done.returncode, done.stderr) == (2, "stp-rs: No space left on device\n")
    else:
        assert done.returncode in (0, 2)
        assert done.stderr in ("", "stp-rs: Broken pipe\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_ends_in_one_line(tmp_path: Path):
    done = in_shell("$run > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (2, "stp-rs: No space left on device\n")
    done = in_shell("$run > /dev/full 2>&1", tmp_path)
    assert done.returncode == 2


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "\\u65e5\\u672c \\xe9 x"), ("latin-1", "\\u65e5\\u672c ")])
def test_a_terminal_of_another_encoding_gets_escapes(encoding: str, shown: str, tmp_path: Path):
    done = in_shell(f"PYTHONIOENCODING={encoding} $run | iconv -f latin1 -t utf-8", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(shown)


def test_closed_streams_are_no_fault(tmp_path: Path):
    assert in_shell("$run >&- 2>&-", tmp_path).returncode == 0
