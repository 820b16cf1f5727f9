"""The options of batching change cost and no completion; unmaskings and allowed tokens are per row and per place."""

import numpy as np
import pytest
import torch

import stp_rs
from stp_rs.errors import InvalidValueError, ShapeError
from stp_rs.rollout.loop import Batching
from stp_rs.train.trainer import rollout_metrics
from stp_rs.types import Mark
from tests.equivalence.test_samplers import EOS, LENGTH, MASK, VOCAB, Model, prompts
from tests.unit.test_engine_defects import Biased, decode

ENGINES = [
    Batching(max_tokens=60),
    Batching(length_sorted=True),
    Batching(max_tokens=60, length_sorted=True, share_first=False),
    Batching(share_first=False),
]
SAMPLERS = [
    stp_rs.Unmasking(12),
    stp_rs.Unmasking(8, selection="threshold:0.4", block_length=6),
    stp_rs.Unmasking(24, temporal="margin:1:0.1", confidence="margin"),
    stp_rs.Unmasking(24, confidence="gumbel", quota="bernoulli"),
    stp_rs.Unmasking(6, temporal="fill_ratio:0.5"),
    stp_rs.Unmasking(10, confidence="sampled_prob", eos="last"),
]


def ragged() -> stp_rs.PromptBatch:
    """Three prompts of different lengths, four samples each."""
    batch = prompts(3)
    batch.prompt_length[:] = [1, 3, 2]
    return batch.repeat(4)


@pytest.mark.parametrize("batching", ENGINES)
@pytest.mark.parametrize("slots", [3, 8, 64])
def test_the_engine_changes_no_trajectory(batching: Batching, slots: int):
    batch, model = ragged(), Model(2)
    unmaskings = [SAMPLERS[i % len(SAMPLERS)] for i in range(len(batch))]
    prior = np.full((len(batch), LENGTH), -1, dtype=np.int64)
    prior[np.arange(len(batch)), np.arange(len(batch))] = 4
    options = {"completion_length": LENGTH, "prior": stp_rs.PriorSet.from_dense(prior), "seed": 7}
    plain = stp_rs.generate(model, batch, unmaskings, batching=Batching(share_first=False), slots=len(batch), **options)
    ours = stp_rs.generate(model, batch, unmaskings, batching=batching, slots=slots, **options)
    assert np.array_equal(ours.token_ids, plain.token_ids)
    assert np.array_equal(ours.unmask_step, plain.unmask_step)
    assert np.array_equal(ours.nfe, plain.nfe)
    assert np.array_equal(ours.stop_reason, plain.stop_reason)
    assert np.allclose(ours.logprob, plain.logprob, atol=2e-6)
    assert ours.stats["forwards"] <= plain.stats["forwards"]


def test_mixed_samplers_are_the_samplers_alone():
    batch, model = prompts(6), Model(2)
    mixed = stp_rs.generate(model, batch, SAMPLERS, completion_length=LENGTH)
    assert not mixed.exact, "one of them reads the sampled tokens"
    for row, unmasking in enumerate(SAMPLERS):
        alone = stp_rs.generate(model, batch, unmasking, completion_length=LENGTH)
        assert mixed.token_ids[row].tolist() == alone.token_ids[row].tolist()
        assert mixed.unmask_step[row].tolist() == alone.unmask_step[row].tolist()
    with pytest.raises(ShapeError, match="one per row"):
        stp_rs.generate(model, batch, SAMPLERS[:4], completion_length=LENGTH)
    with pytest.raises(InvalidValueError, match="needs an Unmasking"):
        stp_rs._core.RolloutScheduler(mask_token_id=1, pad_token_id=0, slots=1, seed=0).submit(
            batch.uid, batch.prompt_ids, batch.prompt_length, batch.prompt_length, ["top_k"] * 6
        )


@pytest.mark.parametrize("law", [stp_rs.SamplingParams(0.5), stp_rs.SamplingParams(1.4, top_k=3)])
def test_the_confidence_of_the_sampled_token_is_untempered_or_that_of_the_law_that_drew_it(law: stp_rs.SamplingParams):
    """A row's draws at its first forward are the same whatever is revealed: those of the one-step rollout."""
    drawn = decode(stp_rs.Unmasking(1), Model(0, sharpness=0.3), sampling=law)
    model = Model(0, sharpness=0.3)
    canvas = np.concatenate([drawn.prompt_ids, np.full_like(drawn.token_ids, MASK)], axis=1)
    with torch.no_grad():
        plain = torch.log_softmax(model.logits(torch.from_numpy(canvas))[:, 3:], -1)
    untempered = plain.gather(-1, torch.from_numpy(drawn.token_ids)[..., None]).squeeze(-1).numpy()
    firsts = {"sampled_prob": untempered.argmax(1), "drawn_prob": drawn.logprob.argmax(1)}
    assert (firsts["sampled_prob"] != firsts["drawn_prob"]).any(), "the two differ here"
    for kind, first in firsts.items():
        rollout = decode(stp_rs.Unmasking(LENGTH, confidence=kind), Model(0, sharpness=0.3), sampling=law)
        assert not rollout.exact
        assert (rollout.unmask_step == 0).argmax(1).tolist() == first.tolist()


def test_allowed_tokens_bind_the_draw_and_its_log_prob():
    draw = torch.Generator().manual_seed(1)
    everywhere = torch.zeros(VOCAB, dtype=torch.bool)
    everywhere[[4, 7, 9, MASK]] = True
    place = torch.rand((LENGTH, VOCAB), generator=draw) < 0.2
    place[:, 5] = True
    cell = torch.rand((6, LENGTH, VOCAB), generator=draw) < 0.2
    cell[..., 6] = True
    for allowed in (everywhere, place, cell):
        full = allowed.expand(6, LENGTH, VOCAB).clone()
        full[..., MASK] = False
        law = stp_rs.SamplingParams(allowed=allowed)
        rollout = decode(stp_rs.Unmasking(1), sampling=law)
        assert full.gather(-1, torch.from_numpy(rollout.token_ids).unsqueeze(-1)).all()
        with torch.no_grad():
            model = Model(0)
            canvas = torch.cat([torch.from_numpy(prompts().prompt_ids), torch.full((6, LENGTH), MASK)], dim=1)
            logits = model.head(model.hidden(canvas, None))[:, 3:].masked_fill(~full, -torch.inf)
        expected = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(rollout.token_ids).unsqueeze(-1))
        assert np.allclose(rollout.logprob, expected.squeeze(-1), atol=1e-5)
    only_mask = torch.arange(VOCAB) == MASK
    with pytest.raises(InvalidValueError, match="without any token"):
        decode(stp_rs.Unmasking(1), sampling=stp_rs.SamplingParams(allowed=only_mask))
    with pytest.raises(InvalidValueError, match="needs bool"):
        decode(stp_rs.Unmasking(1), sampling=stp_rs.SamplingParams(allowed=torch.ones(VOCAB)))


def test_the_reduction_leaves_the_models_logits_alone():
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    allowed = torch.arange(30) % 2 == 0
    for law in (stp_rs.GREEDY, stp_rs.SamplingParams(), stp_rs.SamplingParams(0.7, 5, 0.9)):
        stp_rs.rollout.logits.reduce_logits(logits, torch.full((40,), 0.5), law, allowed=allowed, mask_token_id=3)
    assert torch.equal(logits, before)


def test_a_large_vocabulary_is_reduced_in_parts_that_change_nothing():
    logits = torch.randn(7, 1 << 17, generator=torch.Generator().manual_seed(0))
    uniforms = torch.linspace(0.1, 0.9, 7)
    whole = stp_rs.rollout.logits.reduce_logits(logits, uniforms, stp_rs.SamplingParams(0.8))
    law = stp_rs.SamplingParams(0.8)
    alone = torch.cat([stp_rs.rollout.logits.reduce_logits(logits[i][None], uniforms[i][None], law) for i in range(7)])
    assert torch.equal(whole[:, 0], alone[:, 0])
    assert torch.allclose(whole, alone, atol=1e-5)
    logp = torch.log_softmax(logits.double(), -1)
    assert torch.allclose(whole[:, 2].double(), logp.amax(-1), atol=1e-5)
    assert torch.allclose(whole[:, 4].double(), torch.special.entr(logp.exp()).sum(-1), atol=1e-4)
    assert torch.allclose(whole[:, 5].double(), logp.gather(-1, whole[:, :1].long()).squeeze(-1), atol=1e-5)


@pytest.mark.parametrize("vocab", [700, 1 << 15, (1 << 15) + 3])
def test_ties_go_to_the_first_token_in_every_part_of_the_vocabulary(vocab: int):
    rows = 1 + (1 << 18) // vocab
    logits = torch.zeros(rows, vocab)
    first = torch.arange(rows) * 131 % vocab
    first[-1] = vocab - 1
    logits[torch.arange(rows), first] = 2.0
    logits[torch.arange(rows), (first + 77).clamp(max=vocab - 1)] = 2.0
    packed = stp_rs.rollout.logits.reduce_logits(logits, torch.full((rows,), 0.5), stp_rs.GREEDY)
    assert torch.equal(packed[:, 0].long(), first)
    assert torch.equal(packed[:, 6], packed[:, 0])
    logits[0, vocab - 1] = torch.nan
    assert stp_rs.rollout.logits.reduce_logits(logits, torch.full((rows,), 0.5), stp_rs.GREEDY)[:, 2].isnan().sum() == 1


def test_metrics_report_padding():
    rollout = stp_rs.generate(Model(0), ragged(), stp_rs.Unmasking(8), completion_length=LENGTH)
    metrics = rollout_metrics(rollout.replaced(completions=[""] * len(rollout)), [EOS])
    assert metrics["diffusion/padding_share"] == rollout.stats["padding"] / rollout.stats["tokens"] > 0


RARE = torch.rand((6, LENGTH, VOCAB), generator=torch.Generator().manual_seed(3)) < 0.4
RARE[..., 8] = True
LAWS = {
    "tempered": stp_rs.SamplingParams(0.8),
    "greedy": stp_rs.GREEDY,
    "cut": stp_rs.SamplingParams(1.3, top_k=9, top_p=0.8, min_p=0.05),
    "allowed": stp_rs.SamplingParams(allowed=RARE),
}


@pytest.mark.parametrize("eos", ["none", "truncate"])
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_a_stored_trajectory_has_the_log_likelihood_that_was_recorded(law: stp_rs.SamplingParams, eos: str):
    """Replay from the record: prompts of several lengths, priors, blocks, a temporal rule, rows that end early."""
    model, batch = Biased({EOS: 1.0}), prompts()
    batch.prompt_length[:] = [1, 3, 2, 3, 1, 2]
    prior = np.full((6, LENGTH), -1, dtype=np.int64)
    prior[:, ::5] = 6
    unmasking = stp_rs.Unmasking(10, block_length=8, temporal="fill_ratio:0.8", eos=eos)
    options = {"sampling": law, "prior": stp_rs.PriorSet.from_dense(prior), "completion_length": LENGTH}
    rollout = stp_rs.generate(model, batch, unmasking, **options)
    assert rollout.exact
    stored = rollout.minibatch(range(len(rollout)))
    for size in (1, 64):
        again = stp_rs.replay_logprobs(model, stored, law, forward_batch_size=size)
        assert np.allclose(again, rollout.logprob, atol=5e-6)
    other = stp_rs.replay_logprobs(model, stored, stp_rs.SamplingParams(0.5))
    assert not np.allclose(other, rollout.logprob, atol=0.1), "another law"
    for step in range(int(rollout.nfe.max()) + 1):
        state = stp_rs.state_at(stored, step, MASK)
        undrawn = (rollout.unmask_step == Mark.UNDRAWN) & (step < rollout.nfe)[:, None]
        assert ((state == MASK) == ((rollout.unmask_step >= step) | undrawn)).all()
        assert np.array_equal(state[state != MASK], rollout.token_ids[state != MASK])


def test_the_trajectory_design_has_the_recorded_log_likelihood():
    rollout = decode(stp_rs.Unmasking(10, block_length=8), Model(1), sampling=stp_rs.SamplingParams(0.8))
    masks = stp_rs.draw_masks(stp_rs.Design("trajectory", 1000), rollout, seed=0)
    with torch.no_grad():
        estimate = stp_rs.token_elbo(Model(1), rollout, masks, temperature=0.8).sum(1)
    assert np.allclose(estimate, rollout.logprob.sum(1), atol=1e-3)
