"""The designs of a plan: oracle against target, Rust against oracle, keyed draws against both."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import errors
from stp_rs._core import Design
from tests.oracles import designs as oracle
from tests.oracles.designs_rust import assert_same_law, draw, fits, pass_of, plans, rust_law, table

PLAN_DESIGNS = {
    "uniform_count": oracle.uniform_count,
    "systematic": oracle.systematic,
    "cover": oracle.cover,
    "spread": oracle.spread,
    "pairs": oracle.pairs,
    "sink": oracle.sink,
    "balanced": oracle.balanced,
    "ordered": oracle.ordered,
}


def passes_that_enumerate(name: str, n: int, num_mc: int) -> int:
    """Return a number of passes near num_mc whose law is small enough to list: (2^n)^K outcomes at worst."""
    if name == "pairs":
        return 4 if num_mc > 2 and n <= 2 else 2
    if name in ("uniform_count", "systematic"):
        return min(num_mc, {1: 3, 2: 3, 3: 2, 4: 2}.get(n, 1))
    if name == "spread":
        return min(num_mc, {5: 3, 6: 2}.get(n, 4))
    return min(num_mc, 2) if n == 6 and name != "balanced" else num_mc


def has_law(name: str, plan: list[int], num_mc: int) -> bool:
    """Whether the design is legal for the plan: balanced needs floor(n/K) tokens in the last step."""
    return name != "balanced" or plan[-1] >= plan[0] // min(num_mc, plan[0])


@pytest.mark.parametrize("name", PLAN_DESIGNS)
@settings(max_examples=25)
@given(plan=plans(6), num_mc=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_expectation_is_the_plan_elbo(name, plan, num_mc, seed):
    n = plan[0]
    num_mc = passes_that_enumerate(name, n, num_mc)
    design = Design(name, num_mc)
    if not has_law(name, plan, num_mc):
        with pytest.raises(ValueError, match="larger than its mask"):
            oracle.balanced(n, plan, num_mc)
        with pytest.raises(errors.DesignError, match="merge the tail"):
            rust_law(design, plan)
        return
    policy = table(seed)
    law = PLAN_DESIGNS[name](n, plan, num_mc)
    assert sum(p for p, _ in law) == pytest.approx(1.0, abs=1e-12)
    want = oracle.plan_elbo(n, plan, policy)
    assert oracle.expectation(law, policy) == pytest.approx(want, abs=1e-9)
    assert oracle.expectation(rust_law(design, plan), policy) == pytest.approx(want, abs=1e-9)
    assert design.unbiased
    assert design.target == "plan_elbo"


@pytest.mark.parametrize("name", PLAN_DESIGNS)
@settings(max_examples=15)
@given(plan=plans(4), num_mc=st.integers(1, 4))
def test_rust_has_the_law_of_the_oracle(name, plan, num_mc):
    num_mc = passes_that_enumerate(name, plan[0], num_mc)
    if has_law(name, plan, num_mc):
        assert_same_law(rust_law(Design(name, num_mc), plan), PLAN_DESIGNS[name](plan[0], plan, num_mc))


@pytest.mark.parametrize("name", PLAN_DESIGNS)
@pytest.mark.parametrize(("plan", "num_mc"), [([4, 3, 2], 2), ([4, 2], 2), ([3, 2, 1], 4), ([3, 1], 3)])
def test_keyed_draws_follow_the_law(name, plan, num_mc):
    num_mc = passes_that_enumerate(name, plan[0], num_mc)
    law = oracle.merged(PLAN_DESIGNS[name](plan[0], plan, num_mc))
    draws = 8_000
    counts = Counter(oracle.key(passes) for passes in draw(Design(name, num_mc), plan, range(draws)))
    assert counts.keys() <= law.keys()
    assert fits(counts, law, draws)


@pytest.mark.parametrize("name", ["cover", "spread"])
@settings(max_examples=30)
@given(plan=plans(6), num_mc=st.integers(1, 4))
def test_every_mask_is_uniform_given_its_count(name, plan, num_mc):
    n = plan[0]
    law = rust_law(Design(name, min(num_mc, {5: 3, 6: 2}.get(n, 4))), plan)
    for k in range(len(law[0][1])):
        share: dict[int, Counter] = {}
        for p, passes in law:
            mask = passes[k][0]
            share.setdefault(len(mask), Counter())[mask] += p
        for count, masks in share.items():
            everything = oracle.subsets(list(range(n)), count)
            assert set(masks) == set(everything)
            assert np.ptp([masks[m] for m in everything]) < 1e-12


@settings(max_examples=30)
@given(plan=plans(6))
def test_cover_with_two_passes_has_complementary_masks(plan):
    for _, ((first, _), (second, _)) in rust_law(Design("cover", 2), plan):
        assert not first & second or len(first | second) == plan[0]


@settings(max_examples=30)
@given(plan=plans(6))
def test_cover_with_one_pass_is_uniform_count(plan):
    assert_same_law(rust_law(Design("cover", 1), plan), rust_law(Design("uniform_count", 1), plan))


@settings(max_examples=30)
@given(plan=plans(12), num_mc=st.integers(1, 2), seed=st.integers(0, 99))
def test_spread_draws_what_cover_draws_up_to_two_passes(plan, num_mc, seed):
    first, second = (draw(Design(name, num_mc), plan, range(4), seed=seed) for name in ("cover", "spread"))
    assert first == second


def shared_masks(name: str, plan: list[int], num_mc: int) -> float:
    """Return the variance, over draws and pairs of tokens, of the number of masks that a pair shares."""
    counts = []
    for passes in draw(Design(name, num_mc), plan, range(400)):
        masks = np.array([[i in mask for i in range(plan[0])] for mask, _ in passes], dtype=float)
        counts.append((masks.T @ masks)[np.triu_indices(plan[0], 1)])
    return float(np.var(counts))


def test_spread_parts_tokens_that_were_masked_together():
    # the first four of eight masks have half of the tokens: the third takes two tokens of each of the first two
    for (first, _), (second, _), (third, _), (fourth, _), *_ in draw(Design("spread", 8), [8, 4], range(200)):
        assert not first & second
        assert not third & fourth
        assert len(first & third) == len(second & third) == 2
    for plan in ([8, 7, 6, 5, 4], [12, 11, 10, 9, 8, 7, 6]):
        assert shared_masks("spread", plan, 8) < 0.9 * shared_masks("cover", plan, 8)


@settings(max_examples=30)
@given(plan=plans(5), num_mc=st.integers(1, 7))
def test_balanced_scores_every_token_once_wherever_it_is_legal(plan, num_mc):
    n = plan[0]
    if not has_law("balanced", plan, num_mc):
        return
    for _, passes in rust_law(Design("balanced", num_mc), plan):
        assert len(passes) == min(num_mc, n)
        scored = [(i, w) for mask, weight in passes for i, w in weight.items() if i in mask]
        assert sorted(scored) == [(i, 1.0) for i in range(n)]


def test_iterations_seeds_and_uids_have_their_own_masks():
    plan = list(range(16, 0, -1))
    design = Design("cover", 2)
    seen = [
        draw(design, plan, range(uid, uid + 1), iteration, seed)[0]
        for uid, iteration, seed in itertools.product((0, 1), (0, 1), (0, 1))
    ]
    assert len({oracle.key(passes) for passes in seen}) == 8


@pytest.mark.parametrize("name", ["uniform_count", "stp_paper", "bernoulli", "block_random"])
def test_a_pass_does_not_depend_on_how_many_follow(name):
    plan = list(range(16, 0, -1))
    few, many = (draw(Design(name, k, block_length=4), plan, range(5)) for k in (2, 4))
    assert [[mask for mask, _ in row] for row in few] == [[mask for mask, _ in row[:2]] for row in many]


@pytest.mark.parametrize("name", PLAN_DESIGNS)
@settings(max_examples=10)
@given(plan=plans(4), num_mc=st.integers(1, 3), data=st.data())
def test_priors_only_rename_the_positions(name, plan, num_mc, data):
    n = plan[0]
    num_mc = passes_that_enumerate(name, n, num_mc)
    if not has_law(name, plan, num_mc):
        return
    length = n + data.draw(st.integers(0, 4))
    free = sorted(data.draw(st.permutations(range(length)))[:n])
    eligible = np.zeros((1, length), np.uint8)
    eligible[0, free] = 1
    counts = np.array([plan], np.int32)
    steps = np.where(eligible == 1, 0, -1).astype(np.int32)
    got = [
        (p, tuple(pass_of(m, w) for m, w in zip(masks, weights, strict=True)))
        for p, masks, weights in Design(name, num_mc).law(eligible, counts, steps)
    ]
    want = [
        (p, tuple((frozenset(free[i] for i in m), {free[i]: x for i, x in w.items()}) for m, w in passes))
        for p, passes in PLAN_DESIGNS[name](n, plan, num_mc)
    ]
    assert_same_law(got, want)
