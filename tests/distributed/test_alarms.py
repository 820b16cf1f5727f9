"""What follows an alarm is the same in every process, and as with one."""

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
