"""A process that raises, is killed or does not answer ends all of them, soon, with one message that names it."""

from pathlib import Path

import pytest

from tests.distributed.launch import launch


@pytest.mark.parametrize("where", ["reward", "pass", "callback"])
@pytest.mark.parametrize("rank", [0, 1])
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
