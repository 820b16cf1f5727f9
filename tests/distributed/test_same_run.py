"""Several processes give the run of one: the same completions, rewards, losses, and weights but for rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stp_rs.models import load_policy
from tests.distributed.launch import launch, results

EXACT = ("uid", "token_ids", "unmask_step", "nfe", "reward", "advantage", "texts")
TIMES = ("_runtime", "_per_second", "step_time", "seconds", "peak_bytes", "diffusion/tokens", "padding_share")
"""Ends of names whose numbers are about the machine: canvases that share a call are padded to the longest of them."""


def same_metrics(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare two sets of metrics but for times."""
    kept = {k for k in ours.keys() | theirs.keys() if not any(part in k for part in TIMES)}
    for name in sorted(kept):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name


def same_run(ours: dict[str, Any], theirs: dict[str, Any], *, steps: int = 5, metrics: bool = True) -> None:
    """Compare two runs: what was drawn and earned exactly, what was summed to 1e-6."""
    assert len(ours["steps"]) == len(theirs["steps"]) == steps
    for mine, other in zip(ours["steps"], theirs["steps"], strict=True):
        for name in EXACT:
            assert np.array_equal(mine[name], other[name]), name
        if metrics:
            same_metrics(mine["metrics"], other["metrics"])
        assert mine["metrics"]["loss"] == pytest.approx(other["metrics"]["loss"], abs=1e-6)
    for name, value in ours["weights"].items():
        assert np.abs(value - theirs["weights"][name]).max() <= 1e-6, name


MODES: dict[str, dict[str, Any]] = {
    "several updates": {"num_iterations": 2, "gradient_accumulation_steps": 1, "steps_per_generation": 5},
    "self-normalised, batch scale": {
        **{"preset": "stp_spread", "stp_objective": "stable", "num_iterations": 2, "scale_rewards": "batch"},
    },
    "token mean, dropped groups": {"loss_type": "dapo", "stp_zero_std": "drop", "stp_dynamic_sampling": 1},
    "replay": {"stp_replay_batches": 2},
    "constant memory, a reference that follows": {
        **{"stp_constant_memory": True, "beta": 0.05},
        **{"sync_ref_model": True, "ref_model_sync_steps": 3},
    },
    "adapters": {"adapters": True, "beta": 0.05},
    "slopes of a head in many chunks, recomputed blocks": {
        **{"preset": "stp_spread", "adapters": True, "head_elements": 64, "gradient_checkpointing": True},
    },
}
ENGINES: dict[str, dict[str, Any]] = {
    "copies": {},
    "shared out": {"fsdp": True, "stp_rollout_gather": "rollout"},
    "shared out, by forward": {"fsdp": True, "stp_rollout_gather": "forward"},
}

FORWARD = "shared out, by forward"


def compare(tmp_path: Path, processes: int, engine: str, alone: dict[str, Any], **options: Any) -> None:
    every = results(launch("train", processes, tmp_path / str(processes), **ENGINES[engine], **options))
    for told in every:
        same_run(told, alone)
    for other in every[1:]:
        assert all(np.array_equal(v, every[0]["weights"][k]) for k, v in other["weights"].items()), "bit by bit"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    (told,) = results(launch("train", 1, tmp_path_factory.mktemp("alone") / "one", beta=0.05))
    assert any(len(np.unique(step["advantage"])) > 1 for step in told["steps"])
    return dict(told)


@pytest.mark.parametrize(("processes", "engine"), [*((2, engine) for engine in ENGINES), (3, "copies"), (3, FORWARD)])
def test_several_processes_give_the_run_of_one(tmp_path: Path, processes: int, engine: str, alone: dict[str, Any]):
    compare(tmp_path, processes, engine, alone, beta=0.05)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_run_of_one(tmp_path: Path, mode: str):
    (single,) = results(launch("train", 1, tmp_path / "one", **MODES[mode]))
    for engine in ("copies", FORWARD):
        compare(tmp_path / engine, 2, engine, single, **MODES[mode])


@pytest.mark.parametrize("engine", ["copies", FORWARD])
def test_a_process_without_rows_and_one_without_micro_batches(tmp_path: Path, engine: str):
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "stp_rollouts": 2}
    (single,) = results(launch("train", 1, tmp_path / "one", **options))
    every = results(launch("train", 3, tmp_path / "three", **ENGINES[engine], **options))
    for told in every:
        same_run(told, single, steps=2)


@pytest.mark.parametrize("engine", ["copies", FORWARD])
@pytest.mark.parametrize(("first", "second"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, first: int, second: int, engine: str, alone: dict[str, Any]
):
    options = {**ENGINES[engine], "beta": 0.05}
    saved = {"save_strategy": "steps", "save_steps": 2}
    results(launch("train", first, tmp_path / "run", stop=3, **saved, **options))
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-2"}
    for told in results(launch("train", second, tmp_path / "run", resume=True, **saved, **options)):
        same_run(told, {**alone, "steps": alone["steps"][1:]}, steps=4)
    reopened, _ = load_policy(tmp_path / "run" / "checkpoint-10")
    for name, value in reopened.named_parameters():
        assert np.abs(value.detach().numpy() - alone["weights"][name]).max() <= 1e-6, name


def test_an_evaluation_is_shared_out_and_gathered_in_order(tmp_path: Path):
    ((alone, ids),) = results(launch("evaluate", 1, tmp_path / "one"))
    for engine, options in ENGINES.items():
        for metrics, predictions in results(launch("evaluate", 2, tmp_path / engine, **options)):
            assert np.array_equal(predictions, ids)
            same_metrics(metrics, alone)


def test_what_reward_functions_log_and_fail_on_is_that_of_one_process(tmp_path: Path):
    (alone,) = results(launch("logs", 1, tmp_path / "one"))
    (step,) = alone["steps"]
    assert 0 < step["metrics"]["rewards/reward/failed"] < len(step["texts"])
    assert step["extra"] == {"length": [len(text) for text in step["texts"]]}
    for told in results(launch("logs", 2, tmp_path / "two")):
        (other,) = told["steps"]
        assert other["extra"] == step["extra"]
        for name in ("rewards/reward/failed", "length", "rewards/reward/mean"):
            assert other["metrics"][name] == pytest.approx(step["metrics"][name], rel=1e-6), name
