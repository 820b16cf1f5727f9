"""Allowed tokens are one law: what is drawn is what is scored, and the gradient knows no other token."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import stp_rs
from stp_rs.data.prompts import PromptBatch, encode_prompts
from stp_rs.errors import InvalidValueError
from stp_rs.objective.bounds import pass_logprobs
from stp_rs.priors import Template, Vocabulary, allowed_tokens, compose_priors
from stp_rs.rollout.generate import Rollout
from tests.fixtures import Tabular, tokenizer, trainer

LENGTH, VOCAB = 5, 10
ALPHABET = "0123[]"
sets = st.lists(st.sets(st.sampled_from(ALPHABET), min_size=1), min_size=LENGTH, max_size=LENGTH)


def prompts_of(rows: int) -> PromptBatch:
    return encode_prompts([{"prompt": "0123"[: 1 + i % 4]} for i in range(rows)], tokenizer(), uids=range(rows))


def vocabulary(texts: list[set[str]], by_row: bool) -> Vocabulary:
    """Return the sets of every position; by row, odd rows (of even prompt length) have them reversed."""

    def reversed_sets(row: Any) -> dict[int, list[str]]:
        return dict(enumerate(map(sorted, texts[::-1]))) if len(row["prompt"]) % 2 == 0 else {}

    return Vocabulary(lambda p: sorted(texts[p]), tokenizer(), for_row=reversed_sets if by_row else None)


def decode(model: Tabular, texts: list[set[str]], by_row: bool, temperature: float) -> tuple[Rollout, Tensor]:
    prompts = prompts_of(4)
    priors = (
        [vocabulary(texts, by_row), Template({0: min(texts[0])}, tokenizer())]
        if not by_row
        else [vocabulary(texts, by_row)]
    )
    allowed = allowed_tokens(priors, prompts, LENGTH)
    assert allowed is not None
    rollout = stp_rs.generate(
        model,
        prompts,
        stp_rs.Unmasking(3),
        completion_length=LENGTH,
        sampling=stp_rs.SamplingParams(temperature, allowed=allowed),
        prior=compose_priors(priors, prompts, LENGTH),
        seed=7,
    )
    return rollout, allowed


@settings(max_examples=30)
@given(sets, st.booleans(), st.sampled_from([0.7, 1.0, 2.0]), st.integers(0, 3))
def test_what_is_drawn_is_allowed_and_scored_as_it_was_drawn(
    texts: list[set[str]], by_row: bool, temperature: float, seed: int
):
    model = Tabular(vocab=VOCAB, width=12, seed=seed)
    rollout, allowed = decode(model, texts, by_row, temperature)
    rows = allowed if by_row else allowed.expand(4, -1, -1)
    tokens = torch.from_numpy(rollout.token_ids)
    assert rows.gather(-1, tokens[..., None]).all()
    masks = stp_rs.draw_masks(stp_rs.Design("trajectory", 1000), rollout, seed=0)
    with torch.no_grad():
        estimate = stp_rs.token_elbo(model, rollout, masks, temperature=temperature, allowed=allowed)
        parts = pass_logprobs(model, rollout, masks, temperature=temperature, allowed=allowed)
    assert np.allclose(estimate.numpy(), rollout.logprob, atol=1e-5)
    assert np.allclose((parts * torch.from_numpy(masks.weight_PL)).sum(), estimate.sum(), atol=1e-4)
    only = rows.sum(-1).numpy() == 1
    assert np.abs(estimate.numpy()[only]).max(initial=0.0) == 0.0, "one token is certain"


@settings(max_examples=15)
@given(sets, st.booleans(), st.integers(0, 3))
def test_the_gradient_is_normalised_over_allowed_tokens(texts: list[set[str]], by_row: bool, seed: int):
    """d log p(y) / d logits is (1 at y) - p over the allowed tokens, and exactly 0 elsewhere."""
    model = Tabular(vocab=VOCAB, width=12, seed=seed)
    rollout, allowed = decode(model, texts, by_row, 1.0)
    masks = stp_rs.draw_masks(stp_rs.Design("cover", 2), rollout, seed=3, score_prior=True, diffusion_steps=LENGTH)
    seen: list[Tensor] = []
    head = model.head

    def watched(hidden: Tensor) -> Tensor:
        seen.append(hidden.detach().clone().requires_grad_())
        return head(seen[-1])

    model.head = watched  # type: ignore[method-assign]
    stp_rs.token_elbo(model, rollout, masks, allowed=allowed).sum().backward()
    (logits,) = (each for each in seen if len(each))  # no rows: whether the head is trained
    passes, positions = np.nonzero(masks.weight_PL)
    rows = masks.row_P[passes]
    legal = (allowed[rows, positions] if by_row else allowed[positions]).clone()
    assert logits.grad is not None
    assert not logits.grad[~legal].any()
    weight = torch.from_numpy(masks.weight_PL[passes, positions])[:, None]
    probability = logits.detach().masked_fill(~legal, -torch.inf).softmax(-1)
    target = torch.nn.functional.one_hot(torch.from_numpy(rollout.token_ids[rows, positions]), VOCAB)
    assert torch.allclose(logits.grad, weight * (target - probability), atol=1e-5)


def test_a_table_that_allows_all_is_the_law_without_one():
    model, every = Tabular(vocab=VOCAB, width=12, seed=1), [set(ALPHABET)] * LENGTH
    rollout, _ = decode(model, every, False, 1.0)
    masks = stp_rs.draw_masks(stp_rs.Design("cover", 2), rollout, seed=3)
    free = stp_rs.token_elbo(model, rollout, masks)
    assert torch.equal(stp_rs.token_elbo(model, rollout, masks, allowed=torch.ones(VOCAB, dtype=torch.bool)), free)
    with pytest.raises(InvalidValueError, match=r"allowed: got torch.float32 \[10\], needs bool"):
        stp_rs.token_elbo(model, rollout, masks, allowed=torch.ones(VOCAB))


@pytest.mark.parametrize("by_row", [False, True])
def test_training_keeps_the_ratio_at_one_and_every_token_legal(by_row: bool, tmp_path: Path):
    texts = [{"0", "1"}, {"2"}, {"1", "3", "["}, {"1", "]"}, {"1", "0", "3"}, {"0", "1"}]
    prior = vocabulary(texts, by_row)
    options = {"num_iterations": 2, "beta": 0.1, "stp_temporal": "steps:0.7", "gradient_accumulation_steps": 2}
    made = trainer(tmp_path, priors=[prior], learning_rate=0.0, per_device_train_batch_size=4, **options)
    free = trainer(tmp_path / "free", learning_rate=0.0, per_device_train_batch_size=4, **options)
    result = made.train_step()
    table = prior.allowed(result.rollout.prompts, 6)
    rows = table if by_row else table.expand(len(result.rollout), -1, -1)
    assert rows.gather(-1, torch.from_numpy(result.rollout.token_ids)[..., None]).all()
    if by_row:
        assert len(set(result.rollout.prompt_length % 2)) == 2, "the micro-batches have other tables"
    assert abs(result.metrics["diffusion/ratio_max"] - 1) < 1e-6
    assert result.metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert result.metrics["diffusion/token_elbo"] > free.train_step().metrics["diffusion/token_elbo"] + 0.3


def alternating(completions: list[str], **_columns: Any) -> list[float]:
    return [float(i % 2) for i in range(len(completions))]


def test_the_logged_mask_noise_is_that_of_the_constrained_law(tmp_path: Path):
    certain = Vocabulary(lambda _: ["2"], tokenizer())
    options = {"stp_variance_every": 1, "num_iterations": 1}
    for priors in ([certain], []):
        made = trainer(tmp_path / str(len(priors)), reward=alternating, priors=priors, **options)
        assert (made.train_step().metrics["diffusion/logp_var"] == 0) == bool(priors), "no mask hides a certain token"
