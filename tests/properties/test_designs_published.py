"""The published designs: their laws, the targets of the unbiased, the documented means of the biased."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs._core import Design
from tests.oracles import designs as base
from tests.oracles import designs_published as oracle
from tests.oracles.designs_rust import assert_same_law, draw, fits, plans, rust_law, table

SEEDS = st.integers(0, 2**32 - 1)


def full(n: int) -> list[int]:
    """Return the plan of one token per step."""
    return list(range(n, 0, -1))


@settings(max_examples=20)
@given(plan=plans(5), seed=SEEDS)
def test_coupled_pairs_estimate_the_full_elbo_whatever_the_plan(plan, seed):
    n, policy = plan[0], table(seed)
    law = oracle.coupled(n, plan, 2)
    want = base.plan_elbo(n, full(n), policy)
    assert base.expectation(law, policy) == pytest.approx(want, abs=1e-9)
    assert_same_law(rust_law(Design("coupled", 2), plan), law)
    if n <= 2:
        assert_same_law(rust_law(Design("coupled", 4), plan), oracle.coupled(n, plan, 4))
    assert Design("coupled").unbiased
    assert Design("coupled").target == "full_elbo"


@settings(max_examples=20)
@given(n=st.integers(1, 6), seed=SEEDS)
def test_bernoulli_estimates_the_full_elbo(n, seed):
    policy = table(seed)
    want = base.plan_elbo(n, full(n), policy)
    assert oracle.bernoulli_mean(n, policy) == pytest.approx(want, abs=1e-9)
    assert base.expectation(rust_law(Design("bernoulli", 1), [n]), policy) == pytest.approx(want, abs=1e-9)


@settings(max_examples=20)
@given(n=st.integers(1, 5), seed=SEEDS, low=st.floats(0.05, 0.4), width=st.floats(0.1, 0.5))
def test_truncated_ratios_have_the_documented_mean(n, seed, low, width):
    policy, bounds = table(seed), (low, low + width)
    design = Design("bernoulli", 1, truncate=bounds)
    want = oracle.bernoulli_mean(n, policy, *bounds)
    assert base.expectation(rust_law(design, [n]), policy) == pytest.approx(want, abs=1e-9)
    assert not design.unbiased
    for num_mc in (2, 3) if n <= 4 else (2,):
        design = Design("coupled", num_mc, truncate=bounds)
        want = oracle.coupled_truncated_mean(n, policy, *bounds, num_mc)
        assert base.expectation(rust_law(design, [n]), policy) == pytest.approx(want, abs=1e-9)


def test_truncated_pairs_are_complementary_with_weights_one_over_their_ratios():
    n = 6
    for full_canvas, first, second in draw(Design("coupled", 3, truncate=(0.2, 0.8)), full(n), range(300)):
        assert full_canvas == (frozenset(range(n)), dict.fromkeys(range(n), 0.5))
        assert first[0] | second[0] == frozenset(range(n))
        assert not first[0] & second[0]
        weights = [set(part[1].values()) for part in (first, second)]
        if all(weights):
            one, other = (2 * values.pop() for values in weights)
            assert 1 / one + 1 / other == pytest.approx(1, abs=1e-5)
            ratio = 1 / one
            assert 0.2 < ratio < 0.8
            want = oracle.coupled_truncated_pass(n, first[0], ratio, 0.5)
            assert first[1] == pytest.approx(want[0][1], rel=1e-5)
            assert second[1] == pytest.approx(want[1][1], rel=1e-4)


@settings(max_examples=25)
@given(plan=plans(4), num_mc=st.integers(1, 3), seed=SEEDS)
def test_quadrature_has_the_mean_of_its_rule(plan, num_mc, seed):
    n, policy = plan[0], table(seed)
    num_mc = min(num_mc, 2) if n == 4 else num_mc
    law = oracle.quadrature(n, plan, num_mc)
    assert_same_law(rust_law(Design("quadrature", num_mc), plan), law)
    want = oracle.quadrature_mean(n, plan, num_mc, policy)
    assert base.expectation(law, policy) == pytest.approx(want, abs=1e-9)
    assert not Design("quadrature").unbiased


def test_quadrature_is_exact_for_a_log_likelihood_that_is_linear_in_the_count():
    n, line = 6, lambda i, mask: -3.0 + 0.25 * len(mask)
    law = rust_law(Design("quadrature", 1), [n, 5, 4, 3, 2, 1])
    # the midpoint 3.0 of 1..6 is met as 3 (of mean 3.5): the bias is the rounding of the node, half a count
    bias = base.expectation(law, line) - base.plan_elbo(n, full(n), line)
    assert bias == pytest.approx(6 * 0.25 * (3 - 3.5), abs=1e-12)


@settings(max_examples=25)
@given(plan=plans(5), num_iterations=st.integers(1, 4), seed=SEEDS, data=st.data())
def test_unigrpo_spreads_its_ratios_over_the_inner_iterations(plan, num_iterations, seed, data):
    n, policy = plan[0], table(seed)
    iteration = data.draw(st.integers(0, num_iterations - 1))
    law = oracle.unigrpo(n, plan, 1, iteration, num_iterations)
    design = Design("unigrpo", 1, num_iterations=num_iterations)
    assert_same_law(rust_law(design, plan, iteration=iteration), law)
    steps = len(plan)
    later = (iteration / (num_iterations - 1)) if num_iterations > 1 else 0.0
    want = 0.0
    for first in range(1, steps + 1):
        time = int(later * (steps - first) + 1e-9) + first
        want += base.mean_at(n, -(-n * time // steps), policy) / steps
    assert base.expectation(law, policy) == pytest.approx(want, abs=1e-9)
    assert design.per_token


@settings(max_examples=20)
@given(n=st.integers(1, 5), seed=SEEDS)
def test_stp_paper_weighs_counts_by_their_size(n, seed):
    policy = table(seed)
    law = oracle.stp_paper(n, [n], 1)
    assert_same_law(rust_law(Design("stp_paper", 1), [n]), law)
    assert base.expectation(law, policy) == pytest.approx(oracle.stp_paper_mean(n, policy), abs=1e-9)


@settings(max_examples=40)
@given(plan=plans(6), num_mc=st.integers(0, 7), seed=SEEDS, data=st.data())
def test_trajectory_estimates_the_realised_log_likelihood(plan, num_mc, seed, data):
    n, policy = plan[0], table(seed)
    order = data.draw(st.permutations(range(n)))
    law = oracle.trajectory(n, plan, num_mc, order)
    assert_same_law(rust_law(Design("trajectory", num_mc), plan, order), law)
    want = base.estimate(oracle.trajectory(n, plan, 0, order)[0][1], policy)
    assert base.expectation(law, policy) == pytest.approx(want, abs=1e-9)
    passes = len(plan) if num_mc == 0 else min(num_mc, len(plan))
    assert all(len(outcome) == passes for _, outcome in law)


@settings(max_examples=20)
@given(n=st.integers(1, 6), num_mc=st.integers(1, 3))
def test_mean_field_and_autoregressive_have_one_outcome(n, num_mc):
    for name, law in (("mean_field", oracle.mean_field), ("autoregressive", oracle.autoregressive)):
        assert_same_law(rust_law(Design(name, num_mc), [n]), law(n, [n], num_mc))


@settings(max_examples=20)
@given(n=st.integers(1, 5), block_length=st.integers(1, 6), num_mc=st.integers(1, 3), seed=SEEDS)
def test_block_random_masks_a_block_and_all_after_it(n, block_length, num_mc, seed):
    num_mc = min(num_mc, 2) if n > 3 else num_mc
    law = oracle.block_random(n, [n], num_mc, block_length)
    assert_same_law(rust_law(Design("block_random", num_mc, block_length=block_length), [n]), law)
    policy = table(seed)
    want = base.expectation(oracle.block_random(n, [n], 1, block_length), policy)
    assert base.expectation(law, policy) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "law", "options"),
    [
        ("coupled", oracle.coupled, {"num_mc": 2}),
        ("quadrature", oracle.quadrature, {"num_mc": 2}),
        ("stp_paper", oracle.stp_paper, {"num_mc": 1}),
        ("block_random", oracle.block_random, {"num_mc": 2, "block_length": 2}),
    ],
)
def test_keyed_draws_follow_the_law(name, law, options):
    want = base.merged(law(3, [3, 2, 1], **options))
    draws = 8_000
    counts = Counter(base.key(passes) for passes in draw(Design(name, **options), [3, 2, 1], range(draws)))
    assert counts.keys() <= want.keys()
    assert fits(counts, want, draws)


def test_keyed_bernoulli_draws_have_the_law_of_their_ratio():
    n, draws = 4, 20_000
    ratios, hits = [], []
    for ((mask, weight),) in draw(Design("bernoulli", 1), full(n), range(draws)):
        hits.append(len(mask))
        ratios += [1 / w for w in set(weight.values())]
    # the count of a uniform ratio is uniform on 0..n, and a ratio is seen with probability 1 - (1 - t)^n
    assert fits(Counter(hits), dict.fromkeys(range(n + 1), 1 / (n + 1)), draws)
    seen = np.histogram(ratios, bins=8, range=(0, 1))[0]
    edges = np.linspace(0, 1, 9)
    mass = np.diff(edges + (1 - edges) ** (n + 1) / (n + 1))
    assert fits(Counter(dict(enumerate(seen))), dict(enumerate(mass / mass.sum())), len(ratios))
