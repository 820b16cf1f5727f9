"""The exact analysis against slow sums, and the variance statements: where they hold and where nothing does."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stp_rs import Design
from stp_rs.objective.masks import mask_bits
from stp_rs.testing.exact import Levels, ScoreTable, design_moments, exact_levels, plan_elbo
from stp_rs.testing.variance import (
    coverage_variance,
    independent_variance,
    merge_tail,
    monotone,
    pruning_statement,
    sampled_coverage,
)
from tests.oracles import designs as oracle
from tests.oracles import designs_published as published
from tests.oracles.designs_rust import plans, rust_law

SEEDS = st.integers(0, 2**32 - 1)


def adversarial(n: int, seed: int) -> ScoreTable:
    """Return an independent log-prob for every token of every mask, from 0 to -30."""
    score_MN = np.log(np.random.default_rng(seed).uniform(1e-13, 1, (1 << n, n)))
    return ScoreTable(score_MN * mask_bits(n))


def as_policy(table: ScoreTable) -> oracle.Policy:
    """Return the table as the oracles read it."""
    return lambda i, mask: float(table.score_MN[sum(1 << j for j in mask), i])


def full(n: int) -> list[int]:
    return list(range(n, 0, -1))


@settings(max_examples=40)
@given(plan=plans(6), seed=SEEDS)
def test_levels_and_plan_elbo_are_the_slow_means(plan, seed):
    table = adversarial(plan[0], seed)
    levels, policy = exact_levels(table), as_policy(table)
    for count in range(1, levels.n + 1):
        masks = oracle.subsets(list(range(levels.n)), count)
        means = [np.mean([policy(i, mask) for i in mask]) for mask in masks]
        assert levels.a[count] == pytest.approx(np.mean(means), abs=1e-9)
        assert levels.v[count] == pytest.approx(np.var(means), abs=1e-9)
    assert plan_elbo(levels, plan) == pytest.approx(oracle.plan_elbo(plan[0], plan, policy), abs=1e-9)


UNBIASED = [
    "bernoulli",
    "uniform_count",
    "systematic",
    "coupled",
    "cover",
    "spread",
    "pairs",
    "sink",
    "balanced",
    "ordered",
]


@pytest.mark.parametrize("name", UNBIASED)
@settings(max_examples=20)
@given(plan=plans(5), num_mc=st.sampled_from([1, 2, 3]), seed=SEEDS)
def test_an_unbiased_design_has_the_exact_target(name, plan, num_mc, seed):
    n = plan[0]
    num_mc = {"coupled": 2, "pairs": 2, "balanced": n}.get(name, min(num_mc, 2) if n > 3 else num_mc)
    num_mc = 1 if n > {"bernoulli": 1, "uniform_count": 3, "systematic": 3}.get(name, n) else num_mc
    design, table = Design(name, num_mc), adversarial(n, seed)
    assert design.unbiased
    moments = design_moments(design, table, plan)
    target = plan if design.target == "plan_elbo" else full(n)
    assert moments.mean == pytest.approx(plan_elbo(exact_levels(table), target), abs=1e-9)
    if n > 4:  # the slow sum takes its time
        return
    second = sum(p * oracle.estimate(passes, as_policy(table)) ** 2 for p, passes in rust_law(design, plan))
    assert moments.variance == pytest.approx(second - moments.mean**2, rel=1e-6, abs=1e-7)


@settings(max_examples=30)
@given(plan=plans(5), seed=SEEDS, data=st.data())
def test_a_biased_design_has_its_documented_mean(plan, seed, data):
    n, table = plan[0], adversarial(plan[0], seed)
    levels, policy = exact_levels(table), as_policy(table)
    all_masked = design_moments(Design("mean_field", 1), table, plan)
    assert all_masked.mean == pytest.approx(n * levels.a[n], abs=1e-9)
    assert all_masked.variance == 0
    rule = design_moments(Design("quadrature", 1), table, plan)
    assert rule.mean == pytest.approx(published.quadrature_mean(n, plan, 1, policy), abs=1e-9)
    paper = design_moments(Design("stp_paper", 1), table, plan)
    assert paper.mean == pytest.approx(sum(c * levels.a[c] for c in range(1, n + 1)) / n**2, abs=1e-9)
    iterations = data.draw(st.integers(1, 4))
    at = data.draw(st.integers(0, iterations - 1))
    ratio = design_moments(Design("unigrpo", 1, num_iterations=iterations), table, plan, iteration=at)
    law = published.unigrpo(n, plan, 1, at, iterations)
    assert ratio.mean == pytest.approx(oracle.expectation(law, policy), abs=1e-9)


@settings(max_examples=30)
@given(plan=plans(5), seed=SEEDS)
def test_independent_counts_have_the_law_of_total_variance(plan, seed):
    table = adversarial(plan[0], seed)
    moments = design_moments(Design("uniform_count", 1), table, plan)
    between, within = independent_variance(exact_levels(table), plan, 1)
    assert moments.between == pytest.approx(between, rel=1e-9, abs=1e-8)
    assert moments.within == pytest.approx(within, rel=1e-9, abs=1e-8)
    if plan[0] <= 3:
        twice = design_moments(Design("uniform_count", 2), table, plan)
        assert twice.variance == pytest.approx((between + within) / 2, rel=1e-9, abs=1e-8)


@pytest.mark.parametrize("name", [name for name, _ in Design.names() if name != "trajectory"])
@settings(max_examples=10)
@given(plan=plans(4))
def test_closed_forms_of_coverage_are_the_enumerated_ones(name, plan):
    num_mc = 2 if name in ("coupled", "pairs") else 1
    design = Design(name, plan[0] if name == "balanced" else num_mc, block_length=2)
    closed = coverage_variance(design, plan)
    if closed is not None:
        scale = plan[0] if design.per_token else 1
        enumerated = design_moments(design, adversarial(plan[0], 0), plan).coverage * scale**2
        assert closed == pytest.approx(enumerated, abs=1e-12)


@pytest.mark.parametrize("name", [name for name, _ in Design.names()])
def test_the_coverage_of_every_design_is_the_enumerated_one(name):
    """What the variance table reports: the closed form where there is one, else keyed draws."""
    plan = [4, 3, 2]
    truncate = (0.2, 0.8) if name == "bernoulli" else None  # without bounds it diverges
    for num_mc in (2, 4) if name in ("trajectory", "balanced", "spread") else (2,):
        design = Design(name, num_mc, block_length=2, truncate=truncate)
        exact = design_moments(design, adversarial(4, 0), plan).coverage * (16 if design.per_token else 1)
        closed = coverage_variance(design, plan)
        if closed is not None:
            assert closed == pytest.approx(exact, abs=1e-12)
        assert sampled_coverage(design, plan, draws=20_000) == pytest.approx(exact, rel=0.06, abs=1e-6)


def test_where_coverage_has_no_closed_form():
    assert coverage_variance(Design("coupled", 2, truncate=(0.2, 0.8)), [4, 2]) is None
    assert coverage_variance(Design("bernoulli", 1), [4, 2]) is None


# --- the statements ---


def shaped(a: np.ndarray, v: np.ndarray, seed: int) -> ScoreTable:
    """Return a random table with exactly these a(l) and v(l) (v(n) is 0: there is one such mask)."""
    n, generator = len(a), np.random.default_rng(seed)
    score_MN = np.zeros((1 << n, n))
    bits = mask_bits(n)
    for count in range(1, n + 1):
        rows = np.flatnonzero(bits.sum(1) == count)
        raw = generator.normal(size=(len(rows), n)) * bits[rows]
        mean = raw.sum(1) / count
        spread = mean.std() or 1.0
        wanted = a[count - 1] + np.sqrt(v[count - 1]) * (mean - mean.mean()) / spread
        score_MN[rows] = raw + ((wanted - mean)[:, None] * bits[rows])
    return ScoreTable(score_MN)


def variance(levels: Levels, plan: list[int]) -> float:
    return sum(independent_variance(levels, plan, 1))


@settings(max_examples=80)
@given(plan=plans(6), seed=SEEDS, rising=st.booleans(), equal=st.booleans(), data=st.data())
def test_temporal_pruning_lowers_the_variance_where_a_is_monotone_and_v_falls(plan, seed, rising, equal, data):
    n = plan[0]
    last = data.draw(st.sampled_from(plan))
    generator = np.random.default_rng(seed)
    a, v = -np.sort(generator.exponential(size=n)), -np.sort(-generator.exponential(size=n))
    if rising:
        a = a[::-1].copy()
    if equal:  # nothing differs at and below l*: the statement is not strict
        a[:last], v[:last] = a[last - 1], v[last - 1]
    v[-1] = 0.0
    if last == n and equal:
        v[:] = 0.0
    table = shaped(a, v, seed)
    levels = exact_levels(table)
    assert levels.a[1:] == pytest.approx(a, abs=1e-9)
    assert levels.v[1:] == pytest.approx(v, abs=1e-9)
    pruned = merge_tail(plan, last)
    falls, rises, v_falls = monotone(levels, plan)
    assert falls or rises
    assert v_falls
    statement = pruning_statement(levels, plan, levels, pruned)
    assert statement.holds
    merged = [count for count in plan if count < last]
    differs = any(abs(a[count - 1] - a[last - 1]) + v[count - 1] - v[last - 1] > 1e-6 for count in merged)
    before, after = (design_moments(Design("uniform_count", 1), table, p).variance for p in (plan, pruned))
    if differs:
        assert statement.strict
        assert after < before
    else:
        assert after == pytest.approx(before, abs=1e-9)


@settings(max_examples=200)
@given(n=st.integers(2, 5), seed=SEEDS, data=st.data())
def test_where_the_hypotheses_hold_the_variance_falls_whatever_was_pruned(n, seed, data):
    """Spatial, temporal and both, on tables that have no structure but a random damping of the anchored part."""
    table = adversarial(n, seed)
    anchors = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    damp = data.draw(st.sampled_from([1.0, 0.5, 0.1]))
    kept = ScoreTable(table.with_anchors(sorted(anchors)).score_MN * damp)
    before, after = exact_levels(table), exact_levels(kept)
    plan, pruned = full(n), merge_tail(full(kept.n), data.draw(st.integers(1, kept.n)))
    statement = pruning_statement(before, plan, after, pruned)
    assume(statement.holds)
    assert variance(after, pruned) <= variance(before, plan) + 1e-9
    if statement.strict:
        assert variance(after, pruned) < variance(before, plan)


@settings(max_examples=60)
@given(n=st.integers(2, 6), seed=SEEDS, data=st.data())
def test_tokens_that_ignore_their_context_always_gain_from_anchors(n, seed, data):
    """Their variance is (H_n - 1) n / (n - 1) times the sum of squares: every factor falls with a token less."""
    score_N = np.log(np.random.default_rng(seed).uniform(1e-3, 1, n))
    table = ScoreTable(mask_bits(n) * score_N)
    squares = float(((score_N - score_N.mean()) ** 2).sum())
    harmonic = sum(1 / k for k in range(1, n + 1))
    before = variance(exact_levels(table), full(n))
    assert before == pytest.approx((harmonic - 1) * n / (n - 1) * squares, rel=1e-9)
    anchors = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n - 1))
    kept = exact_levels(table.with_anchors(sorted(anchors)))
    assert variance(kept, full(kept.n)) < before


def levels_of(a: list[float], v: list[float]) -> Levels:
    return Levels(np.array([0.0, *a]), np.array([0.0, *v]))


# a(1), a(2), ... and v(1), v(2), ... before and after, the plans, which hypothesis is broken, and the variances: the
# table of docs/variance.md
COUNTEREXAMPLES = {
    "a is not monotone": ([0, 0, -5, 0, 0], [0] * 5, None, merge_tail(full(5), 3), "spread", (100, 150)),
    "v rises with l": ([-1] * 4, [0, 0, 2, 0], None, merge_tail(full(4), 3), "context", (8, 24)),
    "an anchor makes the rest disagree": ([-1] * 4, [0] * 4, ([-1] * 3, [3, 1, 0]), full(3), "context", (0, 12)),
    "an anchor spreads the means": ([-1] * 4, [0] * 4, ([-4, -2, 0], [0] * 3), full(3), "spread", (0, 24)),
}


@pytest.mark.parametrize("case", COUNTEREXAMPLES)
def test_without_a_hypothesis_the_variance_can_rise(case):
    a, v, other, pruned, broken, variances = COUNTEREXAMPLES[case]
    before = levels_of(a, v)
    after = before if other is None else levels_of(*other)
    statement = pruning_statement(before, full(before.n), after, pruned)
    assert not statement.holds
    assert not getattr(statement, broken)
    assert getattr(statement, {"spread": "context", "context": "spread"}[broken])
    assert (variance(before, full(before.n)), variance(after, pruned)) == pytest.approx(variances, abs=1e-9)
    assert variances[0] < variances[1]


def test_the_counterexamples_are_tables_of_scores():
    for a, v, *_ in COUNTEREXAMPLES.values():
        levels = exact_levels(shaped(np.array(a, float), np.array(v, float), 3))
        assert levels.a[1:] == pytest.approx(a, abs=1e-9)
        assert levels.v[1:] == pytest.approx(v, abs=1e-9)


@settings(max_examples=40)
@given(n=st.integers(1, 6), seed=SEEDS, data=st.data())
def test_anchors_leave_the_masks_of_the_free_positions(n, seed, data):
    table = adversarial(n, seed)
    anchors = data.draw(st.sets(st.integers(0, n - 1), max_size=n))
    kept, free = table.with_anchors(sorted(anchors)), [i for i in range(n) if i not in anchors]
    assert kept.n == len(free)
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(kept.n), k) for k in range(kept.n + 1)):
        for i in chosen:
            mask = frozenset(free[j] for j in chosen)
            want = as_policy(table)(free[i], mask)
            assert kept.score_MN[sum(1 << j for j in chosen), i] == want
