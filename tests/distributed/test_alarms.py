"""What follows an alarm is the same in every process, and as with one."""

import json
from pathlib import Path

import pytest

from tests.distributed.launch import launch, results
from tests.distributed.test_same_run import ENGINES, FORWARD, same_run

OPTIONS = {"stp_rollouts": 3, "stp_alarm_patience": 1}


def test_a_rollback_is_that_of_one_process(tmp_path: Path):
    (alone,) = results(launch("alarmed", 1, tmp_path / "one", action="rollback", **OPTIONS))
    assert [line["rolled_back_to"] for line in alone["history"]] == [2]
    for engine in ("copies", FORWARD):
        for told in results(launch("alarmed", 2, tmp_path / engine, action="rollback", **ENGINES[engine], **OPTIONS)):
            same_run(told, alone, steps=4)
            assert [(line["alarm"], line["rolled_back_to"]) for line in told["history"]] == [("kl", 2)]
            assert told["rate"] == alone["rate"]


@pytest.mark.parametrize("engine", ["copies", FORWARD])
def test_an_alarm_that_stops_the_run_stops_every_process(tmp_path: Path, engine: str):
    ended = launch("alarmed", 2, tmp_path / "run", action="stop", **ENGINES[engine], **OPTIONS)
    for process in ended:
        assert process.code == 3
        assert process.error.startswith("DivergenceError: step 4, alarm: alarm kl at step 4: ")
        assert "checkpoints up to step 2 are good" in process.error


FAULTS = [("copies", fault) for fault in ("logits", "gradient", "weights")]
FAULTS += [(engine, fault) for engine in ("shared out", FORWARD) for fault in ("logits", "weights")]


@pytest.mark.parametrize(("engine", "fault"), FAULTS)
def test_a_nan_of_one_process_takes_all_of_them_back(tmp_path: Path, engine: str, fault: str):
    (alone,) = results(launch("diverges", 1, tmp_path / "one", rank=0, fault=fault, action="rollback", **OPTIONS))
    assert [line["alarm"] for line in alone["history"]] == ["nan"]
    both = launch("diverges", 2, tmp_path / "two", rank=1, fault=fault, action="rollback", **ENGINES[engine], **OPTIONS)
    for told in results(both):
        same_run(told, alone, steps=len(alone["steps"]), metrics=False)  # one process searches further, and counts it
        (line,) = told["history"]
        assert (line["alarm"], line["step"]) == ("nan", alone["history"][0]["step"])
        assert line["rolled_back_to"] == alone["history"][0]["rolled_back_to"]
        assert told["rate"] == alone["rate"]


@pytest.mark.parametrize("engine", ["copies", FORWARD])
def test_a_nan_of_one_process_stops_all_and_its_own_file_is_named(tmp_path: Path, engine: str):
    options = {"fault": "logits", "action": "warn", **ENGINES[engine], **OPTIONS}
    ended = launch("diverges", 2, tmp_path / "run", rank=1, **options)
    (file,) = (tmp_path / "run" / "divergence").iterdir()
    assert file.name == "step-2-rank-1.json"
    assert json.loads(file.read_text())["prompt"]
    assert [process.code for process in ended] == [3, 3]
    assert ended[0].error.startswith("DivergenceError: step 2, rollout: rank 1: ")
    assert ended[1].error.startswith("DivergenceError: step 2, rollout: the model")
    for process in ended:
        assert process.error.endswith(f"; {file} holds what is known")
