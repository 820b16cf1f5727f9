"""Progress of long work: what a pipe, a terminal and a run's own console show."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import termios
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import TrainerControl, TrainerState

from stp_rs.progress import Bar, duration
from stp_rs.text import table, width
from stp_rs.train.callbacks import RolloutCallback
from stp_rs.train.console import Console, best_and_worst
from tests.fixtures import trainer


def lines_of(total: int, seconds_each: float, **readings: str) -> list[str]:
    """Return what a pipe gets of `total` units of work that take so long each."""
    now = [0.0]
    out = io.StringIO()
    bar = Bar(total, "RL", file=out, clock=lambda: now[0])
    for _ in range(total):
        now[0] += seconds_each
        bar.update(1, readings)
    bar.close()
    assert "\r" not in out.getvalue()
    return out.getvalue().splitlines()


def test_a_pipe_gets_plain_lines_with_readings_and_time_left():
    lines = lines_of(40, 1.0, reward="0.500", nfe="5.0")
    assert lines[0] == "RL: 5 of 40 steps, 5 s, 35 s left; reward 0.500 nfe 5.0"
    assert lines[-1] == "RL: 40 of 40 steps, 40 s; reward 0.500 nfe 5.0"


@pytest.mark.parametrize(("total", "seconds", "most"), [(10, 0.01, 1), (1000, 1.0, 50), (100_000, 1.0, 100)])
def test_the_lines_of_a_long_run_are_few(total: int, seconds: float, most: int):
    assert 1 <= len(lines_of(total, seconds)) <= most


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_gets_one_bar_that_fits_it(columns: int):
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with os.fdopen(follower, "w") as out:
        bar = Bar(4, "RL (stp)", file=out)
        for _ in range(4):
            bar.update(1, {"reward": "0.500"})
        bar.note("a\x1b[2Jb")
        bar.close()
        shown = ""
        while select.select([leader], [], [], 0.2)[0]:
            shown += os.read(leader, 100_000).decode()
    os.close(leader)
    assert "\r" in shown
    assert "a\\x1b[2Jb" in shown
    assert re.search(r"RL \(stp\) \|.*\| 4/4, \S+ left, reward 0.500", shown)
    assert max(map(width, re.split("[\r\n]", shown))) <= columns


def test_a_run_that_is_rolled_back_ends_at_its_last_step_and_not_behind_it():
    console, state = Console(quiet=True), TrainerState(max_steps=10, global_step=2)  # a resumed run
    console.on_train_begin(SimpleNamespace(preset="stp"), state, TrainerControl())
    assert console.bar is not None
    seen = []
    for step in (3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 10):  # from 6 back to 3
        state.global_step = step
        console.on_step_end(SimpleNamespace(), state, TrainerControl())
        seen.append(console.bar.done)
    assert console.bar.total == 8
    assert seen == [1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8]


def test_a_quiet_bar_shows_nothing():
    out = io.StringIO()
    bar = Bar(2, "x", quiet=True, file=out)
    assert list(bar.over([1, 2])) == [1, 2]
    bar.note("nothing")
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.4, "59 s"), (96, "1 min 36 s"), (3600, "1 h 00 min"), (7505, "2 h 05 min")]
)
def test_durations_are_said_as_people_do(seconds: float, said: str):
    assert duration(seconds) == said


def test_samples_are_the_best_and_worst_of_several_prompts():
    group = np.array([7, 7, 7, 3, 3, 5])
    rewards = [0.5, float("nan"), 1.0, 0.0, 0.25, 0.1]
    expected = [("best", 2), ("worst", 1), ("best", 4), ("worst", 3), ("best", 5)]
    assert best_and_worst(group, rewards, 6) == expected
    assert best_and_worst(group, rewards, 3) == expected[:3]


@pytest.mark.parametrize("total", [80, 120])
def test_a_table_fits_its_terminal(total: int):
    text = table(["prompt", "completion", "reward"], [["p" * 200, "日本語" * 50, "0.5"]], columns=100, total=total)
    assert max(map(width, text.split("\n"))) <= total
    assert "..." in text


def test_a_trainer_alone_prints_bar_table_and_result_and_writes_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    made = trainer(tmp_path, beta=0.1, disable_tqdm=False)
    made.train()
    printed = capsys.readouterr()
    assert re.search(r"RL \(stp\): (\d+) of \1 steps, .*; reward 0\.\d+ nfe \d.*kl \d", printed.err)
    assert "mean reward" in printed.err
    assert "worst" in printed.err
    assert f"report: {tmp_path / 'report.html'}" in printed.out
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'"title": "{tmp_path.name} / stp"' in report
    assert "(not finished)" not in report
    assert {"report.html", "config.yaml", "environment.json"} <= {path.name for path in tmp_path.iterdir()}


def test_a_trainer_that_is_stopped_has_a_report_of_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    class Stop(RolloutCallback):
        def on_rollout_end(self, args, state, control, result) -> None:
            if result.step >= 2:
                raise KeyboardInterrupt

    made = trainer(tmp_path, logging_steps=1, disable_tqdm=False)
    made.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert "(not finished)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "report:" not in capsys.readouterr().out


def test_a_console_outside_of_training_shows_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = trainer(tmp_path, disable_tqdm=False)
    assert any(isinstance(callback, Console) for callback in made.callback_handler.callbacks)
    made.train_step()
    assert capsys.readouterr().err == ""
