"""The defect families of public samplers, numbered as in docs/defects.md, each shown to be absent from ours."""

import copy
import math
import random

import numpy as np
import pytest
import torch

import stp_rs
from stp_rs import _core
from stp_rs.errors import DivergenceError
from stp_rs.objective.masks import scored_tokens
from stp_rs.rollout.generate import Rollout
from stp_rs.rollout.logits import candidate_logits
from stp_rs.types import Mark, StopReason
from tests.equivalence.test_samplers import EOS, LENGTH, MASK, VOCAB, Model, prompts

TINY_TAIL = 20_000


def decode(unmasking: stp_rs.Unmasking, model: Model | None = None, **options) -> Rollout:
    return stp_rs.generate(model or Model(0), prompts(), unmasking, completion_length=LENGTH, **options)


class Biased(Model):
    """A model whose every logit of some tokens is raised."""

    def __init__(self, raised: dict[int, float]) -> None:
        super().__init__(0)
        self.raised = raised

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        logits = super().head(hidden_NH)
        for token, by in self.raised.items():
            logits[:, token] += by
        return logits


def test_02_no_global_generator_is_read_or_moved():
    states = torch.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index]
    first = decode(stp_rs.Unmasking(8))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert random.getstate() == states[2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert decode(stp_rs.Unmasking(8)).token_ids.tolist() == first.token_ids.tolist()
    assert decode(stp_rs.Unmasking(8), seed=1).token_ids.tolist() != first.token_ids.tolist()


def test_03_a_row_with_a_short_prompt_is_the_row_alone():
    batch = prompts()
    short = copy.deepcopy(batch)
    short.prompt_length[0] = 1
    short.prompt_ids[0, 1:] = 5  # what lies behind a prompt is padding, whatever it holds
    both = stp_rs.generate(Model(0), short, stp_rs.Unmasking(8), completion_length=LENGTH)
    only = type(short)([{}], short.prompt_ids[:1, :1].copy(), short.prompt_length[:1], short.uid[:1], short.group[:1])
    alone = stp_rs.generate(Model(0), only, stp_rs.Unmasking(8), completion_length=LENGTH)
    assert both.token_ids[0].tolist() == alone.token_ids[0].tolist()
    assert both.stats["padding"] > 0


def test_04_dropout_is_off_and_the_recorded_log_probs_are_those_of_the_policy():
    model = Model(0)
    model.module.add_module("drop", torch.nn.Dropout(0.5))
    plain = model.module.forward
    model.module.forward = lambda ids: model.module.drop(plain(ids))
    model.module.train()
    assert decode(stp_rs.Unmasking(8), model).token_ids.tolist() == decode(stp_rs.Unmasking(8)).token_ids.tolist()
    assert model.module.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_05_a_tail_of_tiny_probabilities_is_drawn_as_often_as_it_should(dtype: torch.dtype):
    """A mass of 1e-3 spread over 20,000 tokens at the end: each is below the resolution of fp32 near 1."""
    logits = torch.zeros(TINY_TAIL + 2)
    logits[0], logits[1] = 10.0, 10.0
    logits[2:] = float(torch.log(torch.tensor(2e-3 / TINY_TAIL)) + 10.0)
    logits = logits.to(dtype)
    mass = float(torch.softmax(logits.double(), 0)[2:].sum())
    uniforms = torch.from_numpy(stratified(4_000))
    packed = stp_rs.rollout.logits.reduce_logits(logits.expand(len(uniforms), -1), uniforms, stp_rs.SamplingParams())
    tail = packed[:, 0] >= 2
    assert abs(float(tail.float().mean()) - mass) < 5e-4
    assert len(packed[tail, 0].unique()) > 3
    expected = torch.log_softmax(logits.double(), 0)[packed[:, 0].long()]
    assert torch.allclose(packed[:, 1].double(), expected, atol=1e-5)


def stratified(count: int) -> np.ndarray:
    """Return the midpoints of `count` equal cells of (0, 1)."""
    return ((np.arange(count) + 0.5) / count).astype(np.float32)


def test_06_nothing_is_drawn_after_the_end_of_text_that_ends_a_row():
    rollout = decode(stp_rs.Unmasking(LENGTH, confidence="leftmost", eos="truncate"), Biased({EOS: 1.0}))
    ended = rollout.stop_reason == StopReason.EOS
    assert ended.any()
    for row in np.flatnonzero(ended):
        first = rollout.token_ids[row].tolist().index(EOS)
        tail = slice(first + 1, None)
        assert (rollout.token_ids[row, tail] == EOS).all()
        assert (rollout.logprob[row, tail] == 0).all(), "a token that nobody drew has no log-prob"
        assert (rollout.unmask_step[row, tail] == Mark.UNDRAWN).all()
        assert rollout.nfe[row] == first + 1
    whole = decode(stp_rs.Unmasking(LENGTH, confidence="leftmost"), Biased({EOS: 1.0}))
    assert (whole.nfe == LENGTH).all(), "off by default"


def test_07_a_token_of_log_prob_zero_was_drawn_all_the_same():
    """A policy that is sure of its end-of-text: its log-prob is exactly 0 in f32, and the tail's is 0 too."""
    unmasking = stp_rs.Unmasking(LENGTH, confidence="leftmost", eos="truncate")
    rollout = decode(unmasking, Biased({EOS: 500.0}))
    assert (rollout.logprob == 0).all()
    assert (rollout.stop_reason == StopReason.EOS).all()
    drawn = np.zeros(rollout.unmask_step.shape, dtype=bool)
    drawn[:, 0] = True
    assert ((rollout.unmask_step >= 0) == drawn).all()
    assert (scored_tokens(rollout.unmask_step, True) == drawn).all()
    masks = stp_rs.draw_masks(stp_rs.Design("trajectory", 0), rollout, seed=0)
    assert (masks.scored_RL == drawn).all()
    assert (masks.mask_PL == 1).all(), "the tail was masked where the token was drawn"
    other = stp_rs.replay_logprobs(Biased({}), rollout)
    assert (other[drawn] < -1e-3).all(), "another policy was not sure of it"
    assert (other[~drawn] == 0).all()
    estimate = stp_rs.token_elbo(Biased({}), rollout, masks).detach().numpy()
    assert np.allclose(estimate, other, atol=1e-6)


def test_08_an_end_of_text_in_the_prior_leaves_nothing_to_score():
    ids = np.full((6, LENGTH), -1, dtype=np.int64)
    ids[:, 0] = EOS
    rollout = decode(stp_rs.Unmasking(LENGTH, eos="truncate"), prior=stp_rs.PriorSet.from_dense(ids))
    assert (rollout.unmask_step[:, 0] == Mark.PRIOR).all()
    assert (rollout.unmask_step[:, 1:] == Mark.UNDRAWN).all(), "the prior did not fix the tail"
    masks = stp_rs.draw_masks(stp_rs.Design("cover", 2), rollout, seed=0, score_prior=True, diffusion_steps=LENGTH)
    assert (masks.scored_RL.sum(1) == 1).all()


def test_09_the_names_of_marks_and_stop_reasons_are_those_of_rust():
    assert {m.name: int(m) for m in Mark} == _core.MARKS
    assert {r.name: int(r) for r in StopReason} == _core.STOP_REASONS


def test_10_what_is_stored_is_the_ids_that_were_drawn():
    rollout = decode(stp_rs.Unmasking(8))
    assert rollout.token_ids.dtype == np.int64
    stored = rollout.minibatch(range(len(rollout)))
    assert np.array_equal(stored.token_ids, rollout.token_ids)
    assert np.array_equal(stored.logprob, rollout.logprob)


@pytest.mark.parametrize("quota", ["ceil_remaining", "llada", "dllm", "dream", "powers_of_two", "bernoulli"])
def test_11_rows_with_different_priors_keep_them_and_leave_no_mask(quota: str):
    ids = np.full((6, LENGTH), -1, dtype=np.int64)
    for row in range(6):
        ids[row, : 4 * row] = 3 + row
    rollout = decode(stp_rs.Unmasking(5, quota=quota), prior=stp_rs.PriorSet.from_dense(ids))
    assert (rollout.token_ids != MASK).all()
    assert np.array_equal(rollout.token_ids[ids >= 0], ids[ids >= 0])
    assert ((rollout.unmask_step == Mark.PRIOR) == (ids >= 0)).all()


@pytest.mark.parametrize("selection", ["top_k", "threshold:0.0", "factor:9", "entropy_bound:99"])
def test_12_only_masked_completion_positions_are_ever_written(selection: str):
    confidence = "entropy" if selection.startswith("entropy") else "prob"
    before = prompts()
    rollout = decode(stp_rs.Unmasking(1, block_length=5, selection=selection, confidence=confidence))
    assert np.array_equal(rollout.prompt_ids, before.prompt_ids), "no prompt token is overwritten"
    blocks = -(-LENGTH // 5)
    assert (rollout.nfe == blocks).all(), "a quota beyond the block takes the block and no more"


@pytest.mark.parametrize("slots", [1, 2, 64])
def test_13_a_model_that_prefers_the_mask_token_still_ends(slots: int):
    model = Biased({MASK: 50.0, EOS: 1.0})
    unmasking = stp_rs.Unmasking(LENGTH, block_length=8, selection="threshold:1.0", eos="truncate")
    for sampling in (stp_rs.GREEDY, stp_rs.SamplingParams()):
        rollout = decode(unmasking, model, slots=slots, sampling=sampling)
        assert (rollout.token_ids != MASK).all()
        assert (rollout.nfe <= LENGTH).all()


def test_14_entropy_prefers_the_certain_position():
    model = Model(0, sharpness=2.0)
    rollout = decode(stp_rs.Unmasking(LENGTH, confidence="entropy"), model, sampling=stp_rs.GREEDY)
    with torch.no_grad():
        canvas = torch.cat([torch.from_numpy(prompts().prompt_ids), torch.full((6, LENGTH), MASK)], dim=1)
        logits = candidate_logits(model.head(model.hidden(canvas, None))[:, 3:], MASK)
    certain = torch.distributions.Categorical(logits=logits).entropy().argmin(1)
    assert rollout.unmask_step[np.arange(6), certain.numpy()].tolist() == [0] * 6


def test_15_finished_rows_cost_nothing_and_only_candidates_meet_the_head():
    ids = np.full((6, LENGTH), -1, dtype=np.int64)
    for row in range(6):
        ids[row, : 4 * row] = 3
    unmasking = stp_rs.Unmasking(LENGTH, block_length=4)
    rollout = decode(unmasking, prior=stp_rs.PriorSet.from_dense(ids))
    assert rollout.nfe.tolist() == [LENGTH - 4 * row for row in range(6)]
    assert rollout.stats["forwards"] == rollout.nfe.sum()
    per_block = 4 + 3 + 2 + 1
    assert rollout.stats["head_rows"] == per_block * rollout.nfe.sum() // 4, "not the prompt, not finished blocks"


def test_16_a_model_that_overflows_stops_the_rollout_by_name():
    for bad in (float("nan"), float("inf")):
        with pytest.raises(DivergenceError, match="NaN or infinite logits"):
            decode(stp_rs.Unmasking(4), Biased({VOCAB - 1: bad}))


class OftenEnding(Model):
    """A model for which end-of-text is likely everywhere and the most likely token nowhere."""

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        logits = torch.full((len(hidden_NH), VOCAB), -20.0)
        logits[:, EOS], logits[:, 4] = math.log(0.4), math.log(0.6)
        return logits


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "confidence", ["prob", "sampled_prob", "drawn_prob", "margin", "entropy", "random", "leftmost", "gumbel"]
)
def test_end_of_text_that_was_drawn_waits_until_nothing_else_was(confidence: str, temperature: float):
    """What is drawn counts, not the most likely token: an early end-of-text would otherwise fix the length."""
    unmasking = stp_rs.Unmasking(LENGTH, confidence=confidence, eos="last")
    assert not unmasking.exact, "the choice of positions reads the draws"
    many = prompts().select([0] * 64, np.arange(64, dtype=np.uint64))
    law = stp_rs.SamplingParams(temperature=temperature)
    rollout = stp_rs.generate(OftenEnding(0), many, unmasking, completion_length=LENGTH, sampling=law)
    first = np.take_along_axis(rollout.token_ids, rollout.unmask_step.argmin(1)[:, None], 1)
    chance = 0.4 ** (1 / temperature) / (0.4 ** (1 / temperature) + 0.6 ** (1 / temperature))
    assert (first == EOS).sum() <= 1 + 64 * 5 * chance**LENGTH, "only where every position drew it"
    assert (rollout.token_ids == EOS).any(), "it is drawn all the same"
