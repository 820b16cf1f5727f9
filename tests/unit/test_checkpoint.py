"""Checkpoints and metrics files that survive an interruption at any point."""

import gc
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.trainer_callback import TrainerControl, TrainerState

from stp_rs.errors import CheckpointError
from stp_rs.train import checkpoint
from stp_rs.train.callbacks import MetricsFile
from stp_rs.train.checkpoint import (
    atomic_file,
    newest_checkpoint,
    policy_folder,
    remove_checkpoints,
    rotate_checkpoints,
    save_checkpoint,
    write_json,
)
from stp_rs.train.lock import clear_leftovers
from stp_rs.train.metrics import Ledger, read_metrics
from stp_rs.train.report import write_report
from stp_rs.types import Cost


class Saved:
    """Writes one file, as a model or a tokenizer does."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text

    def save_pretrained(self, folder: Path) -> None:
        (Path(folder) / self.name).write_text(self.text)


def save(run: Path, step: int, text: str = "old") -> Path:
    return save_checkpoint(
        run,
        model=Saved("config.json", text),
        tokenizer=Saved("tokenizer.json", text),
        parts={"optimizer": {"state": torch.tensor([float(step)])}},
        state={"step": step, "text": text},
    )


def contents(folder: Path) -> tuple[str, str, str, float]:
    found = checkpoint.Checkpoint(folder, json.loads((folder / checkpoint.STATE).read_text()))
    number = float(found.part("optimizer")["state"])
    return (folder / "config.json").read_text(), (folder / "tokenizer.json").read_text(), found.state["text"], number


def test_the_newest_complete_checkpoint_is_found(tmp_path: Path):
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 10, 2):
        save(tmp_path, step)
    (tmp_path / "checkpoint-50").mkdir()  # no state: not complete
    (tmp_path / "checkpoint-60").mkdir()
    (tmp_path / "checkpoint-60" / checkpoint.STATE).write_text('{"step": 6')
    with pytest.warns(UserWarning, match="checkpoint-[56]0/manifest.json: is missing") as told:
        newest = newest_checkpoint(tmp_path)
    assert len(told) == 2
    assert newest is not None
    assert (newest.step, newest.path.name) == (10, "checkpoint-10")
    assert contents(newest.path) == ("old", "old", "old", 10.0)
    with pytest.warns(UserWarning, match="checkpoint-10 is used instead"):
        assert policy_folder(tmp_path) == newest.path
    assert policy_folder(newest.path) == newest.path
    with pytest.raises(CheckpointError, match="no model and no checkpoint-N in it"):
        policy_folder(tmp_path / "elsewhere")


class Stop(BaseException):
    """Stands for kill -9: nothing may catch it."""


CALLS = [
    (os, "fsync"),
    (Path, "mkdir"),
    (Path, "replace"),
    (Path, "unlink"),
    (Path, "write_text"),
    (checkpoint, "write_state_dict"),
    (checkpoint.shutil, "rmtree"),
]


def half(name: str, original: Any, args: tuple[Any, ...]) -> None:
    """Do the part of a file operation that a kill in its middle leaves done."""
    if name == "write_text":
        original(args[0], args[1][: len(args[1]) // 2])
    elif name == "write_state_dict":
        Path(args[0]).write_bytes(b"half a file")
    elif name == "rmtree" and Path(args[0]).is_dir():
        sorted(Path(args[0]).iterdir())[0].unlink()


def interrupt(patch: pytest.MonkeyPatch, at: int) -> None:
    """Stop in the middle of the file operation number `at`; nothing runs after it, as after a kill."""
    done = 0

    def stopping(name: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done == at + 1:
                patch.undo()
                half(name, original, args)
                interrupt(patch, -1)
            if done > at:
                raise Stop
            return original(*args, **kwargs)

        return call

    for owner, name in CALLS:
        patch.setattr(owner, name, stopping(name, getattr(owner, name)))


@pytest.mark.parametrize("step", [4, 3], ids=["the next step", "the same step again"])
def test_a_save_stopped_anywhere_leaves_an_old_or_a_new_checkpoint(step: int, tmp_path: Path):
    stops = 0
    for at in range(60):
        run = tmp_path / str(at)
        save(run, 3)
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, at)
            try:
                save(run, step, "new")
            except Stop:
                stops += 1
            else:
                break
        newest = newest_checkpoint(run)
        assert newest is not None
        assert contents(newest.path) in [("old", "old", "old", 3.0), ("new", "new", "new", float(step))], at
        clear_leftovers(run)
        again = newest_checkpoint(run)
        assert again is not None
        assert again.state == newest.state
        assert not list(run.glob(".*"))
        assert contents(save(run, step, "new")) == ("new", "new", "new", float(step)), "the next save works"
    assert stops > 8
    assert contents(run / f"checkpoint-{step}") == ("new", "new", "new", float(step))
    assert sorted(p.name for p in run.iterdir()) == sorted({"checkpoint-3", f"checkpoint-{step}"})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "deep" / "summary.json"
    write_json(path, {"a": 0})
    first = path.stat().st_ino
    write_json(path, {"a": 1})
    assert path.stat().st_ino != first, "another file, renamed into place: a reader of the old one keeps it"
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})

    def interrupted() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise Stop

    with pytest.raises(Stop):
        interrupted()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["summary.json"]


# --- metrics ---


def opened(path: Path, step: int) -> MetricsFile:
    """Return the metrics file of a run that goes on from a step."""
    file = MetricsFile(path)
    file.on_train_begin(None, TrainerState(global_step=step), TrainerControl())
    return file


def test_a_line_cut_short_is_left_out_and_the_rest_survives(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    file = opened(path, 0)
    for step in (1, 2, 3):
        file.on_log(None, TrainerState(global_step=step), TrainerControl(), {"reward": step / 8})
    with path.open("a") as broken:
        broken.write('{"step": 4, "rew')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    resumed = opened(path, 2)
    resumed.on_log(None, TrainerState(global_step=3), TrainerControl(), {"reward": 9.0})
    resumed.on_log(None, TrainerState(global_step=3), TrainerControl(), {"eval_reward": 1.0})
    assert [(line["step"], line["reward"]) for line in read_metrics(path)] == [(1, 0.125), (2, 0.25), (3, 9.0)]
    assert read_metrics(path)[-1]["eval_reward"] == 1.0, "the logs of one step are one line to a reader"
    assert path.read_text().count("\n") == 4
    opened(path, 0)
    assert read_metrics(path) == [], "a run from the start is a new file"
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_resume_stopped_anywhere_keeps_the_lines_of_its_steps(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    stops = 0
    for at in range(20):
        path.write_text('{"step": 1}\n{"step": 2}\n{"st')
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, at)
            try:
                opened(path, 2)
            except Stop:
                stops += 1
        assert [line["step"] for line in read_metrics(path)] == [1, 2], at
    assert 0 < stops < 20


def test_the_names_of_a_ledgers_metrics_are_one_text_for_all_logs():
    """Transformers keeps every log of a run."""
    ledger = Ledger()
    ledger.add(Cost(5, 40, 10), "rollout")
    logs = [{**ledger.counts(), **ledger.measured()} for _ in range(2)]
    assert len(logs[0]) > 10
    for names in zip(*logs, strict=True):
        assert names[0] is names[1]


def test_the_ledger_goes_on_from_a_checkpoint():
    ledger = Ledger()
    ledger.add(Cost(5, 40, 10), "rollout")
    ledger.completions = 8
    with ledger.time("update"):
        pass
    other = Ledger()
    other.restore(json.loads(json.dumps(ledger.to_dict())))
    with other.time("update"):
        pass
    assert other.forwards == {"prior": 0, "rollout": 5, "likelihood": 0, "backward": 0}
    assert other.completions == 8
    assert other.seconds["update"] > ledger.seconds["update"] > 0
    assert other.seconds["rollout"] == 0


def test_checkpoints_of_a_long_run_are_not_remembered(tmp_path: Path):
    def held(steps: range) -> int:
        for step in steps:
            save(tmp_path, step)
            remove_checkpoints(tmp_path, after=-1)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first = held(range(200))  # the last 256 files are remembered, and no more
        assert held(range(200, 500)) - first < 50_000
    finally:
        tracemalloc.stop()


def test_the_oldest_go_by_their_step_and_not_by_the_clock(tmp_path: Path):
    for place, step in enumerate((2, 4, 6, 8, 50)):
        os.utime(save(tmp_path, step), (1e9 - place, 1e9 - place))  # a clock that goes backwards

    def left() -> list[int]:
        return sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))

    rotate_checkpoints(tmp_path, None, newest=8)
    rotate_checkpoints(tmp_path, 0, newest=8)
    assert left() == [2, 4, 6, 8, 50]
    rotate_checkpoints(tmp_path, 4, newest=8)
    assert left() == [2, 4, 6, 8], "one of a later step is not of this run"
    rotate_checkpoints(tmp_path, 2, newest=8, best=4)
    assert left() == [4, 8]
    rotate_checkpoints(tmp_path, 1, newest=8, best=4)
    assert left() == [4, 8]
    rotate_checkpoints(tmp_path, 1, newest=8)
    assert left() == [8]


def spoil(folder: Path, name: str, text: str, *, seal: bool = False) -> None:
    (folder / name).write_text(text)
    if seal:
        (folder / checkpoint.MANIFEST).write_text(json.dumps(checkpoint._contents(folder)))


SPOILT = {
    "manifest of nothing": lambda new: spoil(new, checkpoint.MANIFEST, "{}"),
    "manifest without the weights": lambda new: spoil(
        new, checkpoint.MANIFEST, json.dumps({checkpoint.STATE: checkpoint._contents(new)[checkpoint.STATE]})
    ),
    "manifest that is deep": lambda new: spoil(new, checkpoint.MANIFEST, "[" * 100_000),
    "manifest of an endless file": lambda new: spoil(
        new, checkpoint.MANIFEST, '{"/dev/zero": {"bytes": 1e999, "sha256": ""}}'
    ),
    "manifest of names that are none": lambda new: spoil(
        new, checkpoint.MANIFEST, '{"a\\u0000b": {"bytes": 1, "sha256": ""}}'
    ),
    "manifest of another folder's file": lambda new: spoil(
        new, checkpoint.MANIFEST, '{"../checkpoint-1/config.json": {"bytes": 1, "sha256": ""}}'
    ),
    "state of an infinite step": lambda new: spoil(new, checkpoint.STATE, '{"step": 1e999}', seal=True),
    "state that is deep": lambda new: spoil(new, checkpoint.STATE, "[" * 100_000, seal=True),
    "state that is a list": lambda new: spoil(new, checkpoint.STATE, "[2]", seal=True),
    "state of a step before the first": lambda new: spoil(new, checkpoint.STATE, '{"step": -2}', seal=True),
    "another's name": lambda new: new.rename(new.with_name("checkpoint-9")),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_a_checkpoint_that_does_not_say_what_it_is_is_not_used(spoilt: str, tmp_path: Path):
    save(tmp_path, 1)
    SPOILT[spoilt](save(tmp_path, 2))
    with pytest.warns(UserWarning, match="checkpoint-1 is used instead"):
        found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1


STRANGE = [
    *(
        '{"step": 1e999}',
        '{"step": NaN}',
        '{"step": "2"}',
        '{"step": null}',
        f'{{"step": 1{"0" * 400}}}',
        "[2]",
        "2",
        '"a"',
    ),
    *("[" * 100_000, '{"step": {"a": 1}}', "null", '{"step": 2'),
]
VALUES = ["NaN", "Infinity", "1e999", '"high"', "null", "[1]", '{"a": 1}', "true"]


def test_lines_of_metrics_that_nobody_wrote_are_left_out(tmp_path: Path):
    path, rows = tmp_path / "metrics.jsonl", [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.75}]
    for text in STRANGE:
        path.write_text("\n".join([json.dumps(rows[0]), text, json.dumps(rows[1])]) + "\n")
        assert read_metrics(path) == rows, text[:40]
        write_report(tmp_path)
    for value in VALUES:
        text = f'{{"step": 2, "eval_solved": {value}, "kl": {value}, "a\u2028b": 1}}'
        path.write_text("\n".join([*map(json.dumps, rows), text]) + "\n", encoding="utf-8")
        assert read_metrics(path) == [rows[0], {**rows[1], "a\u2028b": 1}], value
        write_report(tmp_path)
