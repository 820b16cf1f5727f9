"""The short form of `make kills` and `make fuzz`: nothing is lost, nothing is wrong, every error is one of ours."""

import os
import sys
from pathlib import Path

import pytest

from tests.reliability import determinism, kills, mutations


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_kills_and_disk_faults_lose_nothing_and_the_run_is_the_same():
    counts, wrong = kills.run(6, 8, seed=1)
    assert wrong == []
    assert counts[kills.KILLED] == 6
    assert counts[kills.FAILED] == 8
    assert counts["runs finished"] >= 1


def test_mutated_files_are_refused_in_words_or_read():
    counts, wrong = mutations.run(150, seed=1)
    assert wrong == []
    assert counts["checkpoint: refused"] > 10
    assert counts["file: typed error"] > 20


def test_a_run_stopped_before_its_first_log_goes_on_to_the_same_weights(tmp_path: Path):
    whole = determinism.weights(tmp_path / "whole")
    assert determinism.weights(tmp_path / "stopped", stops=(1, 3)) == whole
