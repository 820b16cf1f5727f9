"""Rollouts of the real tiny policy: what must not change them does not."""

from typing import Any

import numpy as np
import pytest
import torch

from stp_rs import PriorSet, Template, Unmasking
from stp_rs.data.prompts import PromptBatch, encode_prompts
from stp_rs.models import base as engine
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import Masks
from stp_rs.objective.replay import state_at
from stp_rs.rollout.generate import Rollout, generate
from stp_rs.rollout.loop import Batching
from stp_rs.rollout.params import GREEDY, SamplingParams
from stp_rs.types import Mark, StopReason
from tests.fixtures import LENGTH, ROWS, tiny, tokenizer

SAMPLERS = {
    "plain": Unmasking(LENGTH),
    "pruned": Unmasking(3, temporal="steps:0.6", confidence="margin"),
    "adaptive": Unmasking(LENGTH, selection="threshold:0.2:2", temporal="entropy:4", block_length=3),
}


def batch() -> PromptBatch:
    return encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS))).repeat(3, step=5)


def part(prompts: PromptBatch, rows: list[int]) -> PromptBatch:
    return PromptBatch(
        [prompts.rows[i] for i in rows],
        prompts.prompt_ids[rows],
        prompts.prompt_length[rows],
        prompts.uid[rows],
        prompts.group[rows],
    )


def roll(model: Any, prompts: PromptBatch, unmasking: Unmasking, **options: Any) -> Rollout:
    return generate(model, prompts, unmasking, completion_length=LENGTH, **{"seed": 3, **options})


def same(left: Rollout, right: Rollout) -> bool:
    """Return whether two rollouts are the same trajectories, log-probs within the noise of float32."""
    exact = ("token_ids", "unmask_step", "nfe", "stop_reason")
    return all((getattr(left, n) == getattr(right, n)).all() for n in exact) and np.allclose(
        left.logprob, right.logprob, atol=1e-5
    )


@pytest.fixture(scope="module")
def model() -> MaskedLMAdapter:
    return tiny(layers=2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_is_the_same_alone_in_any_batch_order_and_any_slots(name: str, model: MaskedLMAdapter):
    prompts, unmasking = batch(), SAMPLERS[name]
    whole = roll(model, prompts, unmasking)
    assert len({tuple(ids) for ids in whole.token_ids.tolist()}) > len(ROWS), "samples of a prompt differ"
    for slots in (1, 5):
        assert same(roll(model, prompts, unmasking, slots=slots), whole)
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    for rows in (order, order[:4], [7]):
        picked = roll(model, part(prompts, rows), unmasking)
        expected = {n: getattr(whole, n)[rows] for n in ("token_ids", "unmask_step", "nfe", "stop_reason")}
        assert all((getattr(picked, n) == value).all() for n, value in expected.items())
    assert not (roll(model, prompts, unmasking, seed=4).token_ids == whole.token_ids).all()


def test_dropout_and_the_training_mode_do_not_reach_a_rollout(model: MaskedLMAdapter):
    plain = roll(model, batch(), SAMPLERS["plain"])
    dropping = tiny(layers=2, dropout=0.4)
    assert dropping.module.training
    assert same(roll(dropping, batch(), SAMPLERS["plain"]), plain)
    assert dropping.module.training


def test_a_chunked_head_is_the_whole_head(model: MaskedLMAdapter, monkeypatch: pytest.MonkeyPatch):
    whole = roll(model, batch(), SAMPLERS["plain"])
    monkeypatch.setattr(engine, "HEAD_ELEMENTS", 70)
    assert same(roll(model, batch(), SAMPLERS["plain"]), whole)


def test_no_pruning_is_the_baseline_bit_for_bit(model: MaskedLMAdapter):
    prompts = batch()
    baseline = roll(model, prompts, Unmasking(LENGTH))
    for unmasking, prior in (
        (Unmasking(LENGTH, temporal="steps:1"), None),
        (Unmasking(LENGTH, temporal="none", max_nfe=LENGTH), PriorSet.empty(len(prompts))),
        (Unmasking(LENGTH, temporal="fill_ratio:1", block_length=LENGTH), Template({}, tokenizer())(prompts, LENGTH)),
    ):
        other = roll(model, prompts, unmasking, prior=prior)
        for name in ("token_ids", "unmask_step", "logprob", "nfe"):
            assert (getattr(other, name) == getattr(baseline, name)).all()


def test_forwards_are_those_the_plans_predict(model: MaskedLMAdapter):
    prompts = batch()
    prior = Template({0: "[", 3: "1", -1: "]"}, tokenizer())(prompts, LENGTH)
    free = np.array([0, 1, 1, 0, 1, 0], np.uint8)
    for unmasking in (
        Unmasking(LENGTH),
        Unmasking(LENGTH, temporal="steps:0.6"),
        Unmasking(2),
        Unmasking(LENGTH, max_nfe=1),
    ):
        done = roll(model, prompts, unmasking, prior=prior)
        steps = len(unmasking.plan(free))
        assert done.nfe.tolist() == [steps] * len(prompts)
        # the three samples of a prompt share their first forward
        assert done.stats["forwards"] == len(prompts) * steps - 2 * len(ROWS)
        assert (done.token_ids[:, [0, 3, 5]] == [[8, 5, 9]]).all()
        assert (done.unmask_step[:, [0, 3, 5]] == Mark.PRIOR).all()
    nothing = Template(dict.fromkeys(range(LENGTH), "1"), tokenizer())(prompts, LENGTH)
    done = roll(model, prompts, Unmasking(3), prior=nothing)
    assert (done.stats["forwards"], done.nfe.sum(), set(done.stop_reason.tolist())) == (0, 0, {StopReason.PRIOR})


@pytest.mark.parametrize("law", [SamplingParams(), SamplingParams(0.7), GREEDY])
@pytest.mark.parametrize("unmasking", SAMPLERS.values(), ids=SAMPLERS)
def test_recorded_log_probs_are_those_of_the_states_they_were_drawn_from(
    law: SamplingParams, unmasking: Unmasking, model: MaskedLMAdapter
):
    """A trajectory as a design: one pass per step, weight 1 on what it revealed. Rollout and learner agree."""
    done = roll(model, batch(), unmasking, sampling=law)
    row_P, step_P = np.array([(r, s) for r, nfe in enumerate(done.nfe) for s in range(nfe)]).T
    revealed_PL = done.unmask_step[row_P]
    masks = Masks(
        mask_PL=(revealed_PL >= step_P[:, None]).astype(np.uint8),
        weight_PL=(revealed_PL == step_P[:, None]).astype(np.float32),
        row_P=row_P.astype(np.int32),
        scored_RL=np.ones_like(done.token_ids, dtype=np.uint8),
        length_R=np.full(len(done), LENGTH, np.int32),
    )
    with torch.no_grad():
        model.module.eval()
        scored = token_elbo(model, done, masks, temperature=law.temperature)
    assert np.allclose(scored.numpy(), done.logprob, atol=1e-4)


def test_an_empty_batch_is_an_empty_rollout(model: MaskedLMAdapter):
    done = roll(model, encode_prompts([], tokenizer(), uids=[]), Unmasking(3))
    assert len(done) == 0
    assert done.token_ids.shape == (0, LENGTH)
    assert done.stats["calls"] == 0


def test_recorded_entropies_are_those_of_the_states_that_drew_the_tokens():
    model = tiny(seed=2)
    prompts = encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS))).repeat(2, step=1)
    unmasking = Unmasking(LENGTH, temporal="steps:0.5")
    plain = generate(model, prompts, unmasking, completion_length=LENGTH, slots=5)
    seen = generate(model, prompts, unmasking, completion_length=LENGTH, slots=5, batching=Batching(entropies=True))
    assert np.array_equal(plain.token_ids, seen.token_ids)
    assert plain.entropy is None
    for row, step in np.ndindex(len(seen), int(seen.unmask_step.max()) + 1):
        canvas = state_at(seen, step, model.mask_token_id)[row].tolist()
        prompt = seen.prompt_ids[row, : seen.prompt_length[row]].tolist()
        with torch.no_grad():
            logits = model.head(model.hidden(torch.tensor([prompt + canvas]), None)[0])[len(prompt) :].double()
        logits[:, model.mask_token_id] = -1e30
        entropy = torch.distributions.Categorical(logits=logits).entropy().numpy()
        drawn = seen.unmask_step[row] == step
        assert seen.entropy[row][drawn] == pytest.approx(entropy[drawn], abs=1e-5)
