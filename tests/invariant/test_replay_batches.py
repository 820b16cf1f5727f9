"""Rows of earlier policies are trained on again, with the ratio to the policy that drew them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stp_rs.errors import ConfigError
from tests.fixtures import trainer
from tests.invariant.test_updates import spied

OPTIONS = {"num_iterations": 2, "stp_rollouts": 3, "learning_rate": 5e-3}


def weights(made: object) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.model.parameters()]  # type: ignore[attr-defined]


def test_the_old_estimates_are_those_of_the_policy_that_drew_the_rows(tmp_path: Path):
    made = trainer(tmp_path, stp_replay_batches=1, **OPTIONS)
    before = weights(made)
    first = made.train_step()
    kept = made.update.replayed
    assert first.metrics["diffusion/staleness"] == 0.0
    assert kept is not None
    assert kept.policy_version.tolist() == [0] * len(first.rollout)
    with spied("policy_loss") as losses:
        second = made.train_step()
    assert second.metrics["diffusion/staleness"] == 0.5, "half of the rows are one version old"
    used = np.concatenate([args[0].old_RL.numpy() for args, _, _ in losses])
    assert len(losses) == 2 * 2, "twice the micro-batches of a step, in two iterations"
    now = weights(made)
    for parameter, value in zip(made.model.parameters(), before, strict=True):
        parameter.data.copy_(value)
    made.update.replayed = None
    again = made.update._joined(kept.replaced(old_estimate=None), 0, None)
    assert np.allclose(again.old_estimate, kept.old_estimate, atol=1e-6), "the first policy says the same"
    assert any(not torch.equal(a, b) for a, b in zip(now, before, strict=True))
    active = np.flatnonzero(kept.weights() != 0)
    assert all((np.abs(used - kept.old_estimate[row, j]).max(1) == 0).any() for row in active for j in (0, 1))


def test_without_movement_every_ratio_is_one(tmp_path: Path):
    made = trainer(tmp_path, stp_replay_batches=2, **{**OPTIONS, "learning_rate": 0.0})
    for _ in range(3):
        metrics = made.train_step().metrics
        assert metrics["diffusion/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert made.update.replayed is not None
    assert set(made.update.replayed.policy_version.tolist()) == {1, 2}


def test_a_resumed_run_replays_what_the_uninterrupted_one_does(tmp_path: Path):
    whole = trainer(tmp_path / "whole", stp_replay_batches=1, **OPTIONS)
    whole.train()
    cut = trainer(tmp_path / "cut", stp_replay_batches=1, **OPTIONS)
    cut.train_step()
    cut.save()
    resumed = trainer(tmp_path / "cut", stp_replay_batches=1, **OPTIONS)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_an_objective_without_a_ratio_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="stp_replay_batches: got 1"):
        trainer(tmp_path, stp_replay_batches=1, stp_objective="reinforce")
