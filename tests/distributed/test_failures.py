"""A process that raises, is killed or does not answer ends all of them, soon, with one message that names it."""

import re
from pathlib import Path

import pytest

from tests.distributed.launch import launch
from tests.distributed.test_same_run import ENGINES, FORWARD


@pytest.mark.parametrize(("rank", "where"), [(0, "reward"), (1, "reward"), (1, "pass"), (0, "callback")])
def test_what_one_process_raises_ends_all(tmp_path: Path, rank: int, where: str):
    ended = launch("fails", 3, tmp_path / "run", rank=rank, where=where)
    assert [e.code for e in ended] == [3, 3, 3]
    own = ended[rank].error
    assert "the grader of this process is broken" in own
    assert not own.startswith("RankError")
    for process in ended[:rank] + ended[rank + 1 :]:
        assert process.error == f"RankError: rank {rank}: {own}"


def test_a_disk_that_is_full_ends_all(tmp_path: Path):
    ended = launch("fails", 2, tmp_path / "run", rank=0, where="save")
    assert ended[0].error == "ValueError: the grader of this process is broken"
    assert ended[1].error.startswith("RankError: rank 0: ValueError: ")


@pytest.mark.parametrize(
    ("engine", "rank", "where"), [("shared out", 1, "reward"), (FORWARD, 1, "reward"), (FORWARD, 0, "pass")]
)
def test_what_one_process_raises_ends_all_that_share_the_weights(tmp_path: Path, engine: str, rank: int, where: str):
    ended = launch("fails", 2, tmp_path / "run", rank=rank, where=where, **ENGINES[engine])
    assert [e.code for e in ended] == [3, 3]
    own = ended[rank].error
    assert "the grader of this process is broken" in own
    assert ended[1 - rank].error == f"RankError: rank {rank}: {own}"


@pytest.mark.parametrize("engine", ["shared out", FORWARD])
def test_a_killed_process_that_shares_the_weights_is_named(tmp_path: Path, engine: str):
    ended = launch("dies", 3, tmp_path / "run", rank=1, how="killed", **ENGINES[engine])
    assert ended[1].code == -9
    for process in (ended[0], ended[2]):  # who looks late finds the other survivor gone too
        assert re.match(r"LostRankError: rank ([02] \(process \d+ on \S+\), )?1 \(process ", process.error), process
        assert "is gone" in process.error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_named(tmp_path: Path, rank: int):
    ended = launch("dies", 3, tmp_path / "run", rank=rank, how="killed")
    assert ended[rank].code == -9
    for number, process in enumerate(ended):
        if number != rank:
            assert process.error.startswith(f"LostRankError: rank {rank} (process "), process
            assert "is gone" in process.error


def test_a_process_that_does_not_answer_is_named_after_the_timeout(tmp_path: Path):
    ended = launch("dies", 2, tmp_path / "run", rank=1, how="stopped", seconds=5, hung=1)
    assert ended[0].error.startswith("LostRankError: rank 1 (process ")
    assert "did not come to where the others wait (ddp_timeout)" in ended[0].error
    assert ended[1].code is None, "it is stopped, and ended by the test"
