"""Anchors of a group's own first forward, and offline completions that runs share on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs import OfflineGeneration, Template, Unmasking, compose_priors, encode_prompts
from stp_rs.data.prompts import PromptBatch
from stp_rs.errors import InvalidValueError
from stp_rs.priors import Vocabulary, tag_span
from stp_rs.train.anchors import FirstForward
from tests.fixtures import ALPHABET, LENGTH, tiny, tokenizer, trainer

UNMASKING = Unmasking(LENGTH)


def prompts(*texts: str) -> PromptBatch:
    return encode_prompts([{"prompt": text} for text in texts], tokenizer(), uids=range(len(texts)))


def canvas_law(model: Any, prompt: list[int], shown: dict[int, int], allowed: Any = None) -> torch.Tensor:
    """Return log-probs [L, V] at an empty canvas that shows some tokens, computed alone."""
    canvas = [shown.get(i, model.mask_token_id) for i in range(LENGTH)]
    with torch.no_grad():
        logits = model.head(model.hidden(torch.tensor([prompt + canvas]), None)[0])[len(prompt) :].clone()
    logits[:, model.mask_token_id] = -torch.inf
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return torch.log_softmax(logits, -1)


@pytest.mark.parametrize("limited", [False, True])
def test_the_surest_tokens_of_the_empty_canvas_are_fixed(limited: bool):
    model, one = tiny(seed=5), tokenizer()
    given: list[Any] = [Template({2: "["}, one)]
    if limited:
        given.append(Vocabulary(lambda p: ["["] if p == 2 else ["0", "1"], one, vocab_size=len(one)))
    batch = prompts("12", "0", "12", "3[0").repeat(2, step=0)
    prior = FirstForward(model, one, keep=0.4, given=given)
    cost = prior.prepare(batch, LENGTH)
    assert cost.forwards == 3  # one for each different prompt
    fixed = prior(batch, LENGTH)
    allowed = given[1].allowed(batch, LENGTH) if limited else None
    for row in range(len(batch)):
        prompt = batch.prompt_ids[row, : batch.prompt_length[row]].tolist()
        law = canvas_law(model, prompt, {2: one.convert_tokens_to_ids("[")}, allowed)
        best, token = law.max(-1)
        order = sorted((p for p in range(LENGTH) if p != 2), key=lambda p: -float(best[p]))
        assert {(p, t) for p, t, _ in fixed.row(row)} == {(p, int(token[p])) for p in order[:2]}
    assert compose_priors([*given, prior], batch, LENGTH).num_anchors == 3 * len(batch)


def test_the_answer_is_never_fixed_and_a_text_without_one_fixes_nothing():
    model, one = tiny(seed=5), tokenizer()
    framed = Template({3: "[", 5: "]"}, one)
    prior = FirstForward(model, one, keep=1.0, answer_span=tag_span("[", "]"), given=[framed])
    batch = prompts("12", "0")
    prior.prepare(batch, LENGTH)
    assert all(position not in (4,) for row in range(2) for position, *_ in prior(batch, LENGTH).row(row))
    assert prior(batch, LENGTH).num_anchors > 0
    bare = FirstForward(model, one, keep=1.0, answer_span=tag_span("<", ">"))
    bare.prepare(batch, LENGTH)
    assert bare(batch, LENGTH).num_anchors == 0


def test_a_prompt_that_was_not_prepared_is_named():
    prior = FirstForward(tiny(), tokenizer())
    prior.prepare(prompts("12"), LENGTH)
    with pytest.raises(InvalidValueError, match="was not prepared"):
        prior(prompts("0"), LENGTH)
    assert prior.prepare(prompts(), LENGTH).forwards == 0


def test_a_run_trains_under_them_and_counts_what_they_cost(tmp_path: Path):
    options = {"stp_spatial": "first_forward", "stp_keep": 0.5, "stp_protect_answer": False}
    made = trainer(tmp_path, tiny(seed=1), priors=None, **options)
    plain = trainer(tmp_path / "plain", tiny(seed=1))
    step, other = made.train_step(), plain.train_step()
    assert (step.rollout.unmask_step == -1).sum() == 3 * len(step.rollout)
    assert made.ledger.forwards["prior"] == 2  # groups
    assert made.ledger.forwards["rollout"] + 2 < plain.ledger.forwards["rollout"]
    assert (other.rollout.unmask_step >= 0).all()


def build(
    folder: Path, model: Any, batch: PromptBatch, given: list[Any] | None = None
) -> tuple[OfflineGeneration, int]:
    prior = OfflineGeneration(keep=0.5, selector="random")
    cost = prior.build(
        model, batch, tokenizer(), UNMASKING, completion_length=LENGTH, given=given or [], cache=folder / "anchors"
    )
    return prior, cost.forwards


def test_what_another_run_made_of_the_same_policy_and_prompt_costs_nothing(tmp_path: Path):
    model, batch = tiny(seed=3), prompts("12", "0", "3[0")
    first, cost = build(tmp_path, model, batch)
    again, nothing = build(tmp_path, model, batch)
    assert cost > 0
    assert nothing == 0
    assert first(batch, LENGTH).row(1) == again(batch, LENGTH).row(1)
    assert first.state_dict().hashes == again.state_dict().hashes
    more, part = build(tmp_path, model, prompts("0", "22"))
    assert 0 < part < cost
    assert more(prompts("0"), LENGTH).row(0) == first(batch, LENGTH).row(1)
    assert build(tmp_path, model, prompts("22", "3[0", "12"))[1] == 0


@pytest.mark.parametrize("change", ["policy", "priors", "vocabulary", "unmasking"])
def test_another_policy_or_other_priors_are_no_hit(change: str, tmp_path: Path):
    model, batch = tiny(seed=3), prompts("12", "0")
    build(tmp_path, model, batch)
    if change == "policy":
        assert build(tmp_path, tiny(seed=4), batch)[1] > 0
    elif change == "priors":
        prior, cost = build(tmp_path, model, batch, [Template({0: "["}, tokenizer())])
        assert cost > 0
        assert all(position != 0 for position, *_ in prior(batch, LENGTH).row(0))
    elif change == "vocabulary":
        assert build(tmp_path, model, batch, [Vocabulary(lambda _: list(ALPHABET), tokenizer(), vocab_size=10)])[1] > 0
    else:
        prior = OfflineGeneration(keep=0.5)
        given = {"completion_length": LENGTH, "cache": tmp_path / "anchors"}
        assert prior.build(model, batch, tokenizer(), Unmasking(2), **given).forwards > 0


def test_completions_of_the_cache_are_those_that_would_be_made(tmp_path: Path):
    model, batch = tiny(seed=3), prompts("12", "0", "3[0")
    build(tmp_path, model, prompts("3[0"))
    cached, _ = build(tmp_path, model, batch)
    alone = OfflineGeneration(keep=0.5, selector="random")
    alone.build(model, batch, tokenizer(), UNMASKING, completion_length=LENGTH)
    one, other = cached.state_dict().arrays, alone.state_dict().arrays
    for name in one:
        assert np.allclose(one[name], other[name], atol=1e-5), name
