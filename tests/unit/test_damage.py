"""Checkpoints that are not what was written, folders that cannot be written, and runs that go on longer."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stp_rs.errors import CheckpointError, ConfigError
from stp_rs.train.checkpoint import MANIFEST, damage, newest_checkpoint, policy_folder
from tests.fixtures import SMALL, trainer

TWO = {"stp_rollouts": 2, "num_iterations": 1, "save_strategy": "steps", "save_steps": 1}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with checkpoints of one and of two updates."""
    run = tmp_path_factory.mktemp("damage") / "run"
    trainer(run, **TWO).train()
    assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def empty(file: Path) -> None:
    file.write_bytes(b"")


HARM = {"flip": flip, "cut": cut, "empty": empty, "remove": Path.unlink}
FILES = [
    *[
        "model.safetensors",
        "optimizer.safetensors",
        "scheduler.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
    *["trainer_state.json", "stp_state.json", MANIFEST],
]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_is_used(run: Path, name: str, harm: str):
    file = run / "checkpoint-2" / name
    assert file.is_file()
    HARM[harm](file)
    if name == MANIFEST and harm == "flip":
        file.write_text(file.read_text()[1:])  # a digit of a hash would name another file
    with pytest.warns(UserWarning, match=rf"checkpoint-2/{name}: .*; checkpoint-1 is used instead"):
        found = newest_checkpoint(run)
    assert found is not None
    assert found.step == 1
    with pytest.raises(CheckpointError, match=f"checkpoint-2/{name}"):
        trainer(run, **TWO).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    if name != MANIFEST:
        with pytest.raises(CheckpointError, match=f"checkpoint-2/{name}"):
            policy_folder(run / "checkpoint-2")


def test_a_run_goes_on_from_the_intact_checkpoint_with_the_same_numbers(run: Path, saved: Path):
    flip(run / "checkpoint-2" / "model.safetensors")
    with pytest.warns(UserWarning, match="sha256 differs"):
        trainer(run, **TWO).train(resume_from_checkpoint=True)
    weights = [(folder / "checkpoint-2" / "model.safetensors").read_bytes() for folder in (run, saved)]
    assert weights[0] == weights[1]


def test_where_nothing_is_intact_nothing_is_started_anew(run: Path):
    for folder in run.glob("checkpoint-*"):
        flip(folder / "optimizer.safetensors")
    for asked in (True, "auto"):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact"):
            trainer(run, **TWO).train(resume_from_checkpoint=asked)
    assert newest_checkpoint(run / "nothing here") is None


def test_the_manifest_is_of_every_file_and_ignores_what_came_later(run: Path):
    folder = run / "checkpoint-2"
    written = json.loads((folder / MANIFEST).read_text())
    assert written.keys() == {path.name for path in folder.iterdir()} - {MANIFEST, "README.md"}
    (folder / "README.md").write_text("a card")
    assert damage(folder) is None


LONGER = {**TWO, "stp_rollouts": 3, "lr_scheduler_type": "constant"}


def test_a_finished_run_with_a_constant_rate_goes_on(tmp_path: Path):
    trainer(tmp_path / "run", **LONGER | {"stp_rollouts": 2}).train()
    made = trainer(tmp_path / "run", **LONGER)
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 3
    whole = trainer(tmp_path / "whole", **LONGER)
    whole.train()
    weights = [(tmp_path / name / "checkpoint-3" / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


def test_a_longer_run_under_a_schedule_says_what_changes_and_how_to_accept_it(tmp_path: Path):
    options = {**TWO, "lr_scheduler_type": "linear"}
    trainer(tmp_path, **options).train()
    more = {**options, "stp_rollouts": 3}
    with pytest.raises(CheckpointError, match=r"was made for 2 updates, not 3; .*stp_allow_changed=max_steps"):
        trainer(tmp_path, **more).train(resume_from_checkpoint=True)
    made = trainer(tmp_path, **more, stp_allow_changed="max_steps")
    made.train(resume_from_checkpoint=True)
    assert made.state.global_step == 3


@pytest.mark.parametrize(
    ("changed", "blocks"),
    [
        ({"stp_num_threads": 2}, True),
        ({"stp_slots": 3}, False),
        ({"learning_rate": 1.0}, True),
        ({"logging_steps": 7}, False),
    ],
)
def test_what_decides_numbers_blocks_a_resume(run: Path, changed: dict[str, object], blocks: bool):
    made = trainer(run, **{**TWO, **changed})
    if not blocks:
        assert made.find_checkpoint(True) is not None
        return
    with pytest.raises(CheckpointError, match=next(iter(changed))):
        made.find_checkpoint(True)
    accepted = trainer(run, **{**TWO, **changed, "stp_allow_changed": next(iter(changed))})
    assert accepted.find_checkpoint(True) is not None


def test_slots_decide_numbers_where_the_temporal_rule_reads_the_batch(tmp_path: Path):
    options = {**TWO, "stp_temporal": "fill_ratio_batch:0.9"}
    trainer(tmp_path, **options).train()
    with pytest.raises(CheckpointError, match="stp_slots"):
        trainer(tmp_path, **options, stp_slots=3).find_checkpoint(True)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below"):
        with pytest.raises(ConfigError, match=r"output_dir: .* cannot be written"):
            trainer(place, **TWO).train()
    assert file.read_text() == "mine"
    assert "~" not in str(trainer(Path("~") / "x", **SMALL).args.output_dir), os.environ.get("HOME")


def test_metrics_of_any_kind_of_number_neither_end_a_run_nor_its_checkpoint(tmp_path: Path):
    made = trainer(tmp_path, **TWO)
    values = {"f32": np.float32(0.5), "i64": np.int64(3), "tensor": torch.tensor(2.0), "nan": np.float32("nan")}
    made.log(values)
    wrong = {"text": "high", "pair": [1, 2], "none": None, "two": np.zeros(2), "mapping": {"a": 1}}
    for name, value in wrong.items():
        with pytest.warns(UserWarning, match=f"metric {name}: got .*, needs one number"):
            made.log({name: value, "kept": 1.0})
    made.train()
    history = made.state.log_history
    assert history[0]["f32"] == 0.5
    assert (history[0]["i64"], history[0]["tensor"]) == (3, 2.0)
    assert all(not wrong.keys() & line.keys() for line in history)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 2
