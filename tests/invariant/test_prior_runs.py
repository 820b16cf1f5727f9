"""Priors that learn are part of a run: a resumed one gives the same numbers, and their forwards are counted."""

from pathlib import Path
from typing import Any

import pytest

from stp_rs.data.prompts import encode_prompts
from stp_rs.errors import CheckpointError
from stp_rs.priors import Anneal, Frequency, Hint, Length, Prior, Template
from stp_rs.rollout.params import make_unmasking
from stp_rs.train.anchors import OfflineGeneration
from stp_rs.train.checkpoint import PRIORS, newest_checkpoint
from stp_rs.train.metrics import read_metrics
from stp_rs.train.trainer import STPTrainer
from tests.fixtures import LENGTH, ROWS, resumed, tiny, tokenizer, trainer
from tests.invariant.test_runs import equal

OPTIONS: dict[str, Any] = {
    "stp_rollouts": 8,
    "learning_rate": 2e-2,
    "stp_temporal": "steps:0.7",
    **{"preset": "stp_spread", "stp_score_prior": True},
    "stp_rescue": "hint",
}


def learning(run: Path, **options: Any) -> STPTrainer:
    """Return a trainer all of whose priors change during the run."""
    model = tiny()
    offline = OfflineGeneration(0.4, "random", refresh=2, per="sample", anneal=Anneal("cosine", 0.9))
    words = {"text": lambda _: "1212", "tokenizer": tokenizer(), "per": "sample"}
    priors: list[Prior] = [
        Template({0: "["}, tokenizer()),
        Length(tokenizer(), quantile=0.75, minimum=8, slack=1),
        Hint(share=0.5, anneal=Anneal("linear", 0.5), **words),
        Hint(share=0.75, when="all_wrong", **words),
        Frequency(tokenizer(), share=0.5, minimum=4, keep=0.5, per="sample"),
        offline,
    ]
    made = trainer(run, model, priors=priors, **{**OPTIONS, **options})
    if newest_checkpoint(run) is None:
        prompts = encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS)))
        unmasking = make_unmasking(made.args, prune=False)
        cost = offline.build(made.policy, prompts, tokenizer(), unmasking, completion_length=LENGTH, given=priors[:2])
        made.ledger.add(cost, "prior")
    else:
        offline.follow(made.policy, tokenizer(), make_unmasking(made.args, prune=False), priors[:2])
    return made


def test_a_resumed_run_with_priors_that_learn_is_the_uninterrupted_one(tmp_path: Path):
    whole = learning(tmp_path / "whole", save_strategy="steps")
    whole.train()
    frequency, offline = whole.priors[4], whole.priors[5]
    assert isinstance(frequency, Frequency)
    assert isinstance(offline, OfflineGeneration)
    assert frequency.state_dict().arrays["counts"].sum() > 0
    assert offline.state_dict().arrays["version"].max() >= 4, "the policy's completions were made anew"
    for stop in (3, 5):
        first = learning(tmp_path / f"cut{stop}")
        for _ in range(stop):
            first.train_step()
        first.save()
        second = learning(tmp_path / f"cut{stop}")
        second.train(resume_from_checkpoint=True)
        assert equal(second, whole)
        assert second.ledger.forwards == whole.ledger.forwards
        rest = read_metrics(tmp_path / "whole" / "metrics.jsonl")[stop:]
        assert read_metrics(tmp_path / f"cut{stop}" / "metrics.jsonl") == rest
    newest = newest_checkpoint(tmp_path / "whole")
    assert newest is not None
    assert (newest.path / PRIORS).is_file()


def test_anchors_come_from_every_source_that_is_on(tmp_path: Path):
    made = learning(tmp_path)
    shares = [made.train_step().metrics["diffusion/anchor_share"] for _ in range(8)]
    assert shares[0] > shares[-1] > 0, "hints and anchors were annealed; template, length and frequency stay"


def test_other_priors_cannot_resume_a_run(tmp_path: Path):
    options = {**OPTIONS, "stp_rollouts": 1}
    learning(tmp_path, stp_rollouts=1, save_strategy="steps").train()
    hint = [Hint(lambda _: None, tokenizer(), when="all_wrong")]
    with pytest.raises(CheckpointError, match=r"made with other settings \(priors\)"):
        resumed(trainer(tmp_path, priors=hint, **options))
    with pytest.raises(CheckpointError, match="resume with the same priors in the same order"):
        resumed(trainer(tmp_path, priors=hint, **options, stp_allow_changed="priors"))
    state = newest_checkpoint(tmp_path)
    assert state is not None
    (state.path / PRIORS).write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match=r"priors\.safetensors: has 9 bytes, was written with"):
        resumed(learning(tmp_path, stp_rollouts=1))


def test_a_run_without_priors_that_learn_stores_none(tmp_path: Path):
    made = trainer(tmp_path, priors=[Template({0: "["}, tokenizer())], stp_rollouts=1, save_strategy="steps")
    made.train()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.prior_states() == {}
    assert not (newest.path / PRIORS).exists()


def test_refreshes_are_counted_as_forwards(tmp_path: Path):
    made = learning(tmp_path, stp_rollouts=8)
    ledger = made.ledger
    built = ledger.forwards["prior"]
    assert built == len(ROWS) * (LENGTH - 1 + 1), "a forward per token that the template leaves, and one for confidence"
    assert built < ledger.head_rows["prior"] < ledger.tokens["prior"]
    result = made.train_step()
    assert ledger.forwards["rollout"] == result.rollout.stats["forwards"]
    assert ledger.forwards["prior"] == built, "nothing is refreshed yet"
