"""Which trajectory likelihoods are exact: all trajectories of three tokens, three positions and two steps."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import PromptBatch, SamplingParams, Unmasking, generate
from stp_rs.testing.tabular import TabularPolicy
from tests.oracles.designs_rust import fits
from tests.oracles.trajectories import objective, score_function, trajectories

VOCAB, LENGTH, REVEALS = 3, 3, [2, 1]
READ_THE_STATE = ["prob", "margin", "entropy", "random", "leftmost"]
SEEDS = st.integers(0, 2**32 - 1)


def policy(seed: int, *, consistent: bool = False) -> TabularPolicy:
    """Return a policy whose masks have one joint distribution, or each its own: the most general one."""
    generator = torch.Generator().manual_seed(seed)
    rows = 1 if consistent else 1 << LENGTH
    logits = torch.randn((rows, VOCAB**LENGTH), generator=generator, dtype=torch.float64) * 1.5
    return TabularPolicy(logits, vocab_size=VOCAB, length=LENGTH)


def rewards(seed: int) -> dict[tuple[int, ...], float]:
    values = np.random.default_rng(seed).normal(size=VOCAB**LENGTH)
    return dict(zip(itertools.product(range(VOCAB), repeat=LENGTH), values.tolist(), strict=True))


def gradients(seed: int, kind: str, *, baseline: float, consistent: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (E[grad log pi * A], grad J)."""
    given_policy, given_rewards = policy(seed, consistent=consistent), rewards(seed)
    found = trajectories(given_policy, REVEALS, kind)
    assert sum(t.probability.item() for t in found) == pytest.approx(1.0, abs=1e-12)
    estimate = score_function(found, given_rewards, baseline)
    (estimated,) = torch.autograd.grad(estimate, given_policy.logits, retain_graph=True)
    (exact,) = torch.autograd.grad(objective(found, given_rewards), given_policy.logits)
    return estimated, exact


@pytest.mark.parametrize("kind", READ_THE_STATE)
@settings(max_examples=6, deadline=None)
@given(seed=SEEDS, baseline=st.sampled_from([0.0, 0.7, -3.0]), consistent=st.booleans())
def test_selection_that_reads_the_state_has_the_exact_policy_gradient(kind, seed, baseline, consistent):
    assert Unmasking(2, confidence=kind).exact
    estimated, exact = gradients(seed, kind, baseline=baseline, consistent=consistent)
    assert torch.allclose(estimated, exact, atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(8))
def test_low_confidence_remasking_has_another_gradient(seed):
    assert not Unmasking(2, confidence="sampled_prob").exact
    estimated, exact = gradients(seed, "sampled_prob", baseline=0.0, consistent=seed % 2 == 0)
    assert float((estimated - exact).norm()) > 0.02 * float(exact.norm())
    # not even a constant reward is harmless: the score does not average to zero
    constant = dict.fromkeys(rewards(seed), 1.0)
    given_policy = policy(seed)
    found = trajectories(given_policy, REVEALS, "sampled_prob")
    (drift,) = torch.autograd.grad(score_function(found, constant, 0.0), given_policy.logits)
    assert float(drift.norm()) > 0.01


def test_without_samples_in_the_choice_the_bias_is_gone():
    """The same policy, the same tokens: only what ranks the positions differs."""
    for seed in range(3):
        biased, _ = gradients(seed, "sampled_prob", baseline=0.0, consistent=True)
        estimated, exact = gradients(seed, "prob", baseline=0.0, consistent=True)
        assert torch.allclose(estimated, exact, atol=1e-9)
        assert not torch.allclose(biased, exact, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("kind", [*READ_THE_STATE, "sampled_prob"])
def test_the_scheduler_follows_the_enumerated_law(kind, temperature):
    given_policy, draws = policy(11), 8_000
    prompts = PromptBatch(
        rows=[{}] * draws,
        prompt_ids=np.zeros((draws, 1), dtype=np.int64),
        prompt_length=np.ones(draws, dtype=np.int32),
        uid=np.arange(draws, dtype=np.uint64),
        group=np.arange(draws, dtype=np.int64),
    )
    rollout = generate(
        given_policy,
        prompts,
        Unmasking(2, confidence=kind),
        completion_length=LENGTH,
        sampling=SamplingParams(temperature),
        seed=5,
        slots=4096,
    )
    found = trajectories(given_policy, REVEALS, kind, temperature)
    law = {(t.tokens, t.steps): t.probability.item() for t in found}
    logprob = {(t.tokens, t.steps): t.logprob.item() for t in found}
    drawn = list(zip(map(tuple, rollout.token_ids.tolist()), map(tuple, rollout.unmask_step.tolist()), strict=True))
    counts = Counter(drawn)
    assert counts.keys() <= law.keys()
    assert fits(counts, {key: p for key, p in law.items() if p > 0}, draws)
    assert rollout.exact == (kind != "sampled_prob")
    assert rollout.logprob.sum(1) == pytest.approx([logprob[key] for key in drawn], abs=1e-5)
