"""The theorem of docs/designs.md on visited states, by enumeration: when it holds, and what breaks it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs.objective.likelihood import token_elbo
from stp_rs.testing.states import PARTS, state_masks
from stp_rs.testing.tabular import TabularPolicy
from tests.fixtures import record
from tests.oracles.trajectories import trajectories
from tests.properties.test_policy_gradient import LENGTH, VOCAB, policy, rewards

ONE_BY_ONE, TWO_THEN_ONE = [1, 1, 1], [2, 1]
SEEDS = st.integers(0, 2**32 - 1)


def masked_logprobs(given_policy: TabularPolicy, tokens: tuple[int, ...], masked: list[int]) -> dict[int, torch.Tensor]:
    """Return f_i of the masked positions, with its graph."""
    canvas = [given_policy.mask_token_id if i in masked else token for i, token in enumerate(tokens)]
    table = given_policy.log_conditionals(torch.tensor([canvas]))[0]
    return {i: table[i, tokens[i]] for i in masked}


def sums(given_policy: TabularPolicy, tokens: tuple[int, ...], steps: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Return the trajectory's log-likelihood, the sum over all masked tokens, and the two parts of the difference."""
    zero = torch.zeros((), dtype=torch.float64)
    found = {"trajectory": zero, "surrogate": zero, "weights": zero, "earliness": zero, "divided": zero}
    states = sorted(set(steps))
    at_reveal, weight, terms = {}, dict.fromkeys(range(len(tokens)), 0.0), []
    for state in states:
        masked = [i for i, step in enumerate(steps) if step >= state]
        revealed = [i for i, step in enumerate(steps) if step == state]
        scored = masked_logprobs(given_policy, tokens, masked)
        for i in masked:
            weight[i] += len(revealed) / len(masked)
            terms.append((i, len(revealed) / len(masked), scored[i]))
        at_reveal |= {i: scored[i] for i in revealed}
    found["trajectory"] = torch.stack(list(at_reveal.values())).sum()
    for i, rate, value in terms:
        found["surrogate"] = found["surrogate"] + rate * value
        found["divided"] = found["divided"] + rate / weight[i] * value
        found["earliness"] = found["earliness"] + rate * (value - at_reveal[i])
    for i, value in at_reveal.items():
        found["weights"] = found["weights"] + (weight[i] - 1) * value
    return found


def expected_gradients(seed: int, kind: str, reveals: list[int], *, consistent: bool) -> dict[str, torch.Tensor]:
    """Return E[A grad S] over all rollouts, for S the trajectory's log-likelihood, the sum, and its parts."""
    given_policy, reward = policy(seed, consistent=consistent), rewards(seed)
    totals: dict[str, torch.Tensor] = {}
    for found in trajectories(given_policy, reveals, kind):
        share = found.probability.detach() * reward[found.tokens]
        for name, value in sums(given_policy, found.tokens, found.steps).items():
            totals[name] = totals.get(name, torch.zeros((), dtype=torch.float64)) + share * value
    return {
        name: torch.autograd.grad(total, given_policy.logits, retain_graph=True)[0] for name, total in totals.items()
    }


def gap(found: dict[str, torch.Tensor], name: str = "surrogate") -> float:
    """Return how far an expected gradient is from the trajectory's, relative to it."""
    return float((found[name] - found["trajectory"]).norm() / found["trajectory"].norm())


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS)
def test_a_random_order_and_one_joint_distribution_give_the_trajectorys_policy_gradient(seed):
    assert gap(expected_gradients(seed, "random", ONE_BY_ONE, consistent=True)) < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_each_condition_is_needed(seed):
    assert gap(expected_gradients(seed, "random", ONE_BY_ONE, consistent=False)) > 0.01, "one joint distribution"
    assert gap(expected_gradients(seed, "random", TWO_THEN_ONE, consistent=True)) > 0.01, "one token at a time"
    assert gap(expected_gradients(seed, "prob", ONE_BY_ONE, consistent=True)) > 0.01, "an order that reads nothing"


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, reveals=st.sampled_from([ONE_BY_ONE, TWO_THEN_ONE, [1, 2]]), consistent=st.booleans())
def test_with_the_order_drawn_anew_it_is_the_plan_elbo_under_every_policy(seed, reveals, consistent):
    given_policy = policy(seed, consistent=consistent)
    tokens = tuple(np.random.default_rng(seed).integers(0, VOCAB, LENGTH).tolist())
    orders = [
        tuple(np.repeat(np.arange(len(reveals)), reveals)[list(order)].tolist())
        for order in itertools.permutations(range(LENGTH))
    ]
    with torch.no_grad():
        both = [sums(given_policy, tokens, steps) for steps in orders]
    trajectory, surrogate = (torch.stack([found[name] for found in both]) for name in ("trajectory", "surrogate"))
    assert float(surrogate.mean()) == pytest.approx(float(trajectory.mean()), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, consistent=st.booleans())
def test_no_states_term_is_noisier_with_all_masked_tokens_than_with_the_revealed(seed, consistent):
    given_policy = policy(seed, consistent=consistent)
    tokens = tuple(np.random.default_rng(seed).integers(0, VOCAB, LENGTH).tolist())
    for count in range(1, LENGTH + 1):
        revealed, whole = [], []
        for masked in itertools.combinations(range(LENGTH), count):
            with torch.no_grad():
                scored = masked_logprobs(given_policy, tokens, list(masked))
            revealed += [float(value) for value in scored.values()]
            whole += [float(sum(scored.values())) / count] * count
        assert np.mean(whole) == pytest.approx(np.mean(revealed), abs=1e-12)
        assert np.var(whole) <= np.var(revealed) + 1e-12


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, consistent=st.booleans(), kind=st.sampled_from(["prob", "margin", "leftmost", "random"]))
def test_the_bias_of_a_confidence_order_is_weights_and_earliness(seed, consistent, kind):
    found = expected_gradients(seed, kind, ONE_BY_ONE, consistent=consistent)
    apart = found["surrogate"] - found["trajectory"] - found["weights"] - found["earliness"]
    assert float(apart.norm()) < 1e-9 * max(1.0, float(found["trajectory"].norm()))
    assert float(found["weights"].norm()) > 1e-6
    # dividing leaves earliness alone: what a token says too early, at weights that add up to 1
    given_policy = policy(seed, consistent=consistent)
    for one in trajectories(given_policy, ONE_BY_ONE, kind)[:8]:
        with torch.no_grad():
            parts = sums(given_policy, one.tokens, one.steps)
        if float(parts["earliness"].abs()) < 1e-12:
            assert float(parts["divided"]) == pytest.approx(float(parts["trajectory"]), abs=1e-9)


def test_a_policy_whose_tokens_ignore_each_other_has_weights_only():
    logits = sum(
        torch.randn(VOCAB, generator=torch.Generator().manual_seed(i), dtype=torch.float64)[
            torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))[:, i]
        ]
        for i in range(LENGTH)
    )
    apart = TabularPolicy(logits[None], vocab_size=VOCAB, length=LENGTH)
    for one in trajectories(apart, ONE_BY_ONE, "prob"):
        with torch.no_grad():
            parts = sums(apart, one.tokens, one.steps)
        assert float(parts["earliness"]) == pytest.approx(0.0, abs=1e-12)
        assert float(parts["divided"]) == pytest.approx(float(parts["trajectory"]), abs=1e-12)
        assert abs(float(parts["surrogate"] - parts["trajectory"])) == pytest.approx(abs(float(parts["weights"])))


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("reveals", [ONE_BY_ONE, TWO_THEN_ONE])
def test_state_masks_are_these_sums(reveals, consistent):
    given_policy = policy(7, consistent=consistent)
    found = trajectories(given_policy, reveals, "prob")
    rows = record(
        prompt_ids=np.zeros((len(found), 1), np.int64),
        prompt_length=np.ones(len(found), np.int32),
        token_ids=np.array([one.tokens for one in found]),
        unmask_step=np.array([one.steps for one in found], np.int32),
        uid=np.arange(len(found), dtype=np.uint64),
    )
    masks = state_masks(rows)
    assert tuple(masks) == PARTS
    for part, weighted in masks.items():
        with torch.no_grad():
            got = token_elbo(given_policy, rows, weighted).sum(1)
            want = [float(sums(given_policy, one.tokens, one.steps)[part]) for one in found]
        assert got.tolist() == pytest.approx(want, abs=1e-5), part
