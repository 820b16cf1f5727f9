"""Metrics under TRL's names: counted tokens, seconds of an update, evaluations in which functions abstain."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stp_rs.train.metrics import read_metrics
from tests.fixtures import LENGTH, ROWS, ones, trainer


def tokens_of(rollout: Any) -> int:
    lengths = [ids.index(2) + 1 if 2 in ids else LENGTH for ids in rollout.token_ids.tolist()]
    return int(rollout.prompt_length.sum()) + sum(lengths)


def test_tokens_are_counted_over_the_run_and_over_a_resume(tmp_path: Path):
    made = trainer(tmp_path / "a", num_iterations=2)
    total = 0
    for _ in range(2):
        result = made.train_step()
        total += tokens_of(result.rollout)
        assert result.metrics["num_tokens"] == total
    options = {"max_steps": 4, "num_iterations": 1, "save_strategy": "steps", "save_steps": 2, "logging_steps": 2}
    whole = trainer(tmp_path / "b", **options)
    whole.train()
    logged = [line["num_tokens"] for line in read_metrics(tmp_path / "b" / "metrics.jsonl")]
    assert logged[-1] == whole.state.num_input_tokens_seen, "the count so far, and no mean of counts"
    assert logged == sorted(logged)
    resumed = trainer(tmp_path / "c", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert resumed.state.num_input_tokens_seen == whole.state.num_input_tokens_seen


def test_an_update_has_its_seconds(tmp_path: Path):
    trainer(tmp_path, max_steps=4).train()
    lines = read_metrics(tmp_path / "metrics.jsonl", measured=True)
    assert all(line["step_time"] > 0 for line in lines)
    assert all("step_time" not in line for line in read_metrics(tmp_path / "metrics.jsonl")), (
        "no two runs have the same"
    )


def second_prompt(completions: list[str], prompts: list[str]) -> list[float | None]:
    """Judge the completions of one prompt only."""
    return [None if prompt != ROWS[1]["prompt"] else 0.75 for prompt in prompts]


def never(completions: list[str]) -> list[None]:
    return [None] * len(completions)


@pytest.mark.parametrize("options", [{}, {"top_entropy_quantile": 0.5}, {"entropy_coef": 0.1}, {"beta": 0.1}])
def test_an_evaluation_averages_over_what_was_judged(options: dict[str, Any], tmp_path: Path):
    made = trainer(tmp_path, reward=[ones, second_prompt, never], per_device_eval_batch_size=4, **options)
    metrics = made.evaluate(ROWS)
    assert metrics["eval_rewards/second_prompt/mean"] == pytest.approx(0.75), "five batches of six have none"
    assert "eval_rewards/never/mean" not in metrics
    assert 0 <= metrics["eval_rewards/ones/mean"] <= 1
    assert metrics["eval_entropy"] > 0
    assert all(np.isfinite(v) for v in metrics.values() if isinstance(v, float))


def test_a_completion_that_was_not_judged_has_no_reward_in_the_table(tmp_path: Path):
    table = trainer(tmp_path, reward=[ones, never]).train_step().table()
    assert table["never"] == [None] * len(table["ones"])
    assert all(isinstance(value, float) for value in table["ones"])
