"""Rescue: rows of groups that earned nothing are decoded again with a hint, and kept where they then earn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stp_rs import PriorSet, Unmasking
from stp_rs.data.prompts import PromptBatch, encode_prompts
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import ConfigError
from stp_rs.priors import Anneal, Hint, Prior, Template, compose_priors
from stp_rs.rollout.generate import generate
from stp_rs.rollout.regroup import Play
from stp_rs.rollout.rescue import rescue_groups
from stp_rs.rollout.rewards import decode_completions, score_rewards
from stp_rs.types import Mark
from tests.fixtures import LENGTH, ROWS, Tabular, tokenizer, trainer

GROUP = 4
ROWS_WITH = [{**row, "solution": "2222" if i % 2 else None} for i, row in enumerate(ROWS)]


def twos(completions: Sequence[str], **_columns: Any) -> list[float]:
    """Earn with three twos or more: a random policy hardly ever does."""
    return [float(text.count("2") >= 3) for text in completions]


def play(model: Tabular, seen: list[PriorSet] | None = None) -> Play:
    def run(prompts: PromptBatch, priors: Sequence[Prior]) -> Rollout:
        prior = compose_priors(priors, prompts, LENGTH)
        if seen is not None:
            seen.append(prior)
        rollout = generate(model, prompts, Unmasking(3), completion_length=LENGTH, prior=prior, seed=0)
        texts = decode_completions(rollout.token_ids, np.full(len(rollout), LENGTH), tokenizer())
        reward, by_name = score_rewards([twos], texts, prompts.rows)
        return rollout.replaced(completions=texts, reward=reward, rewards=by_name)

    return run


def reference(**options: Any) -> Hint:
    return Hint(lambda row: row["solution"], tokenizer(), 1.0, when="all_wrong", **options)


def prompts() -> PromptBatch:
    return encode_prompts(ROWS_WITH, tokenizer(), uids=range(len(ROWS_WITH))).repeat(GROUP, step=0)


def same(left: Rollout, right: Rollout, rows: Sequence[int]) -> bool:
    names = ("token_ids", "unmask_step", "logprob", "nfe", "stop_reason", "uid")
    columns = all((getattr(left, n)[rows] == getattr(right, n)[rows]).all() for n in names)
    texts = all(left.completions[r] == right.completions[r] for r in rows)
    return columns and texts and bool((left.earned()[rows] == right.earned()[rows]).all())


def test_failed_groups_get_hinted_rows_and_the_others_stay():
    model, seen = Tabular(vocab=10, width=16, seed=2), []
    first = play(model)(prompts(), [])
    first.earned()[:] = 0
    first.earned()[GROUP] = 1.0  # group 1 has earned something
    template = Template({5: "]"}, tokenizer())
    merged, count = rescue_groups(first, play(model, seen), reference(), share=0.5, priors=[template])
    hinted = [r for g in (3, 5) for r in (GROUP * g, GROUP * g + 1)]  # even groups have no reference
    assert count == 4
    (prior,) = seen
    assert len(prior) == 4
    assert prior.row(0) == [*[(p, 6, "hint") for p in range(4)], (5, 9, "template")]
    rest = sorted(set(range(len(first.earned()))) - set(hinted))
    assert same(merged, first, rest)
    for row in hinted:
        assert merged.token_ids[row, :4].tolist() == [6] * 4
        assert merged.unmask_step[row].tolist()[:4] == [Mark.PRIOR] * 4
        assert merged.completions[row].startswith("2222")
        assert merged.earned()[row] == merged.rewards["twos"][row] == 1.0
        assert merged.uid[row] != first.uid[row]
    assert merged.group.tolist() == first.group.tolist()
    assert merged.stats["forwards"] > first.stats["forwards"]
    assert not same(first, merged, hinted), "the batch that was given is not changed"


def test_a_hinted_row_that_earns_nothing_is_not_taken():
    model = Tabular(vocab=10, width=16, seed=2)
    first = play(model)(prompts(), [])
    first.earned()[:] = 0

    def failing(batch: PromptBatch, priors: Sequence[Prior]) -> Rollout:
        played = play(model)(batch, priors)
        played.earned()[1:] = 0
        return played

    merged, count = rescue_groups(first, failing, reference(), share=0.25)
    assert count == 1
    assert same(merged, first, [r for r in range(len(first.earned())) if r != GROUP])


def test_nothing_is_decoded_where_nothing_can_be_rescued():
    model, calls = Tabular(vocab=10, width=16, seed=2), []
    first = play(model)(prompts(), [])
    first.earned()[:] = 1
    assert rescue_groups(first, play(model, calls), reference(), share=1.0) == (first, 0)
    first.earned()[:] = 0
    ended = reference(anneal=Anneal("linear", 0.5))
    ended.begin_step(5, 10)
    assert rescue_groups(first, play(model, calls), ended, share=1.0) == (first, 0)
    assert calls == []


def test_a_trainer_rescues_and_learns_from_it(tmp_path: Path):
    options = {"stp_rescue": "hint", "stp_rescue_share": 0.5, "learning_rate": 5e-3}
    made = trainer(tmp_path / "a", reward=twos, priors=[reference()], **options)
    made.rows.dataset = [{**row, "solution": "2222"} for row in ROWS]
    plain = trainer(tmp_path / "b", reward=lambda completions, **_: [0.0] * len(completions), learning_rate=5e-3)
    result, nothing = made.train_step(), plain.train_step()
    assert result.metrics["diffusion/rescued_share"] == 0.5
    assert result.metrics["reward"] == 0.5
    assert result.metrics["grad_norm"] > 0 == nothing.metrics["grad_norm"]
    assert abs(result.metrics["diffusion/ratio_max"]) < 100
    assert result.rewards == [1.0, 1.0, 0.0, 0.0] * 2
    assert made.ledger.forwards["rollout"] == result.rollout.stats["forwards"]
    with pytest.raises(ConfigError, match="needs Hint"):
        trainer(tmp_path / "c", stp_rescue="hint")
