"""Several processes give the run of one: the same completions, rewards, losses, and weights but for rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed.launch import launch, results

EXACT = ("uid", "token_ids", "unmask_step", "nfe", "reward", "advantage", "texts")
TIMES = ("_runtime", "_per_second", "step_time", "seconds", "peak_bytes", "diffusion/tokens", "padding_share")
"""Ends of names whose numbers are about the machine: canvases that share a call are padded to the longest of them."""


def same_metrics(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare two sets of metrics but for times."""
    kept = {k for k in ours.keys() | theirs.keys() if not any(part in k for part in TIMES)}
    for name in sorted(kept):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


def same_run(ours: dict[str, Any], theirs: dict[str, Any], *, steps: int = 5) -> None:
    """Compare two runs: what was drawn and earned exactly, what was summed to 1e-6."""
    assert len(ours["steps"]) == len(theirs["steps"]) == steps
    for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
        for name in EXACT:
            assert np.array_equal(mine[name], other[name]), name
        same_metrics(mine["metrics"], other["metrics"])
        assert mine["metrics"]["loss"] == pytest.approx(other["metrics"]["loss"], abs=1e-6)
    for name, value in ours["weights"].items():
        assert np.abs(value - theirs["weights"][name]).max() <= 1e-6, name


MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "kl": {"beta": 0.05},
    "constant memory": {"stp_constant_memory": True},
    "several updates": {"num_iterations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 5},
    "stable": {"stp_objective": "stable", "num_iterations": 2},
    "batch scale, token mean": {"scale_rewards": "batch", "loss_type": "dapo", "stp_zero_std": "drop"},
    "replay": {"stp_replay_batches": 2},
    "dynamic sampling": {"stp_dynamic_sampling": 1},
}


@pytest.mark.parametrize("mode", MODES)
def test_two_and_three_processes_give_the_run_of_one(tmp_path: Path, mode: str):
    (alone,) = results(launch("train", 1, tmp_path / "one", **MODES[mode]))
    assert len({len(np.unique(s["reward"])) > 1 for s in alone["steps"]}) == 1
    for processes in (2, 3):
        every = results(launch("train", processes, tmp_path / str(processes), **MODES[mode]))
        for told in every:
            same_run(told, alone)
        for other in every[1:]:
            assert all(np.array_equal(v, every[0]["weights"][k]) for k, v in other["weights"].items()), "bit by bit"
