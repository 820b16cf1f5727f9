"""The EUBO and SPG's mixture: formulas written out, tokens that underflow, and what makes it an upper bound."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import Design, Masks, draw_masks, errors, token_elbo
from stp_rs.data.trajectories import Rollout
from stp_rs.objective.bounds import pass_logprobs, sandwich, token_bounds
from tests.fixtures import record, tiny

LENGTH = 6


def rows(count: int = 3, seed: int = 0) -> Rollout:
    generator = np.random.default_rng(seed)
    return record(
        prompt_ids=generator.integers(4, 10, (count, 3)),
        prompt_length=np.arange(count, dtype=np.int32) % 3 + 1,
        token_ids=generator.integers(4, 10, (count, LENGTH)),
        unmask_step=np.tile(np.array([0, 1, 2, 3, -1, 4], np.int32), (count, 1)),
        uid=np.arange(count, dtype=np.uint64),
    )


def by_hand(logprob: np.ndarray, masks: Masks, beta: float, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ELBO and EUBO token by token, with exact logarithms."""
    elbo, eubo = np.zeros(masks.scored_RL.shape), np.zeros(masks.scored_RL.shape)
    for row, i in itertools.product(range(len(elbo)), range(elbo.shape[1])):
        weights = [(k, float(masks.weight_PL[k, i]) * scale[row]) for k in np.flatnonzero(masks.row_P == row)]
        terms = [(w, float(logprob[k, i])) for k, w in weights if w > 0]
        if terms:
            elbo[row, i] = sum(w * f for w, f in terms)
            peak = max(f for _, f in terms)
            eubo[row, i] = peak + math.log(sum(w * math.exp(beta * (f - peak)) for w, f in terms)) / beta
    return elbo, eubo


@pytest.mark.parametrize(("design", "num_mc"), [("uniform_count", 3), ("cover", 2), ("block_random", 2)])
def test_the_bounds_are_their_formulas(design, num_mc):
    policy, given_rows = tiny(), rows()
    policy.module.eval()
    chosen = Design(design, num_mc, block_length=3)
    masks = draw_masks(chosen, given_rows, seed=3)
    logprob_PL = pass_logprobs(policy, given_rows, masks)
    scale = masks.scored_RL.sum(1) if chosen.per_token else np.ones(len(given_rows.uid))
    for beta in (1.0, 1.5, 4.0):
        elbo, eubo = token_bounds(logprob_PL, masks, beta=beta, per_token=chosen.per_token)
        want_elbo, want_eubo = by_hand(logprob_PL.detach().numpy(), masks, beta, scale)
        assert elbo.detach().numpy() == pytest.approx(want_elbo, abs=1e-4)
        assert eubo.detach().numpy() == pytest.approx(want_eubo, abs=1e-4)


def test_the_elbo_is_the_likelihoods_own():
    policy, given_rows = tiny(), rows()
    policy.module.eval()
    masks = draw_masks(Design("cover", 2), given_rows, seed=3)
    elbo, _ = token_bounds(pass_logprobs(policy, given_rows, masks, forward_batch_size=2), masks)
    assert torch.allclose(elbo, token_elbo(policy, given_rows, masks), atol=1e-5)


def two_passes(first: float, second: float) -> tuple[torch.Tensor, Masks]:
    """Return log-probs of one token in two passes with weight 1/2 each; a second token is in no mask."""
    masks = Masks(
        mask_PL=np.array([[1, 0], [1, 0]], np.uint8),
        weight_PL=np.array([[0.5, 0], [0.5, 0]], np.float32),
        row_P=np.zeros(2, np.int32),
        scored_RL=np.ones((1, 2), np.uint8),
        length_R=np.full(1, 2, np.int32),
    )
    return torch.tensor([[first, 0.0], [second, 0.0]], requires_grad=True), masks


@pytest.mark.parametrize("depth", [-50.0, -150.0, -1e4])
def test_a_token_that_underflows_keeps_its_value_and_its_gradient(depth):
    logprob_PL, masks = two_passes(depth, depth - 1)
    assert torch.tensor(depth * 3).exp() == 0, "its probability to the power beta is 0 in fp32"
    _, eubo = token_bounds(logprob_PL, masks, beta=3.0)
    want = depth + math.log((1 + math.exp(-3.0)) / 2) / 3
    assert eubo[0, 0].item() == pytest.approx(want, rel=1e-6)
    (gradient,) = torch.autograd.grad(eubo.sum(), logprob_PL)
    share = 1 / (1 + math.exp(-3.0))
    assert gradient[:, 0].tolist() == pytest.approx([share, 1 - share], abs=1e-4 * abs(depth))
    assert gradient.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_a_token_in_no_mask_has_no_value_and_no_gradient():
    logprob_PL, masks = two_passes(-1.0, -2.0)
    for bound in token_bounds(logprob_PL, masks):
        assert bound[0, 1] == 0
        (gradient,) = torch.autograd.grad(bound.sum(), logprob_PL, retain_graph=True)
        assert gradient.isfinite().all()
        assert not gradient[:, 1].any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    passes=st.integers(1, 5),
    beta=st.floats(1.0, 5.0),
    depth=st.sampled_from([1.0, 30.0, 300.0]),
)
def test_where_weights_sum_to_one_the_eubo_is_above_the_elbo_and_grows_with_beta(seed, passes, beta, depth):
    generator = np.random.default_rng(seed)
    weight_PL = generator.dirichlet(np.ones(passes), size=4).T.astype(np.float32)
    masks = Masks(
        mask_PL=np.ones((passes, 4), np.uint8),
        weight_PL=weight_PL,
        row_P=np.zeros(passes, np.int32),
        scored_RL=np.ones((1, 4), np.uint8),
        length_R=np.full(1, 4, np.int32),
    )
    logprob_PL = torch.from_numpy(-depth * generator.exponential(size=(passes, 4)).astype(np.float32))
    elbo, eubo = token_bounds(logprob_PL, masks, beta=beta)
    _, larger = token_bounds(logprob_PL, masks, beta=beta + 1)
    slack = 1e-5 * depth * 10
    assert (eubo >= elbo - slack).all()
    assert (larger >= eubo - slack).all()
    assert (eubo <= logprob_PL.amax(0) + slack).all(), "a mean is below the largest"


def test_advantages_choose_the_bound():
    elbo, eubo = torch.full((3, 2), -4.0), torch.full((3, 2), -1.0)
    advantages = torch.tensor([1.0, 0.0, -2.0])
    assert sandwich(elbo, eubo, advantages)[:, 0].tolist() == [-4.0, -2.5, -2.5]
    assert sandwich(elbo, eubo, advantages, mixture=1.0)[:, 1].tolist() == [-4.0, -1.0, -1.0]


def test_what_is_no_bound_is_refused():
    logprob_PL, masks = two_passes(-1.0, -2.0)
    with pytest.raises(errors.InvalidValueError, match=r"beta: got 0\.5"):
        token_bounds(logprob_PL, masks, beta=0.5)
    masks.weight_PL[0, 0] = -0.5
    with pytest.raises(errors.InvalidValueError, match="negative"):
        token_bounds(logprob_PL, masks)
