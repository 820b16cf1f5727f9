"""sync_ref_model: the reference follows the policy when it should, and a resumed run goes on with it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs.errors import ConfigError
from stp_rs.models.reference import reference_parameters
from tests.fixtures import trainer

MOVES = {"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.25}


def weights(made: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.model.parameters()]


def references(made: Any) -> list[torch.Tensor]:
    return [p.clone() for p in reference_parameters(made.reference).values()]


def test_the_reference_moves_every_so_many_updates(tmp_path: Path):
    made = trainer(tmp_path, num_iterations=1, learning_rate=2e-2, **MOVES)
    expected = weights(made)
    for step in range(1, 5):
        made.train_step()
        if step % 2 == 0:
            expected = [0.75 * r + 0.25 * p for r, p in zip(expected, weights(made), strict=True)]
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(references(made), expected, strict=True)), step
    still = trainer(tmp_path / "b", num_iterations=1, learning_rate=2e-2, beta=0.5)
    before = references(still)
    for _ in range(4):
        still.train_step()
    assert all(torch.equal(a, b) for a, b in zip(references(still), before, strict=True))


def test_a_run_with_a_moving_reference_resumes_with_the_same_numbers(tmp_path: Path):
    options = {
        "num_iterations": 1,
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 3,
        "learning_rate": 2e-2,
        **MOVES,
    }
    whole = trainer(tmp_path / "a", **options)
    whole.train()
    resumed = trainer(tmp_path / "b", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(references(whole), references(resumed), strict=True))


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"stp_kl_target": "old"}])
def test_without_a_reference_there_is_none_to_move(options: dict[str, Any], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"sync_ref_model: got beta .* there is no reference to move"):
        trainer(tmp_path, **{**MOVES, **options})
