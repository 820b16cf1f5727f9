"""Coverage: the variance of a token's total weight, which is what makes the gradient of an estimate noisy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs._core import Design
from tests.oracles.designs import Law
from tests.oracles.designs_rust import rust_law


def harmonic(n: int) -> float:
    """Return H_n = 1 + 1/2 + ... + 1/n."""
    return sum(1 / k for k in range(1, n + 1))


def merged_at(n: int, last: int) -> list[int]:
    """Return one token per step down to `last`, then the rest at once."""
    return list(range(n, last - 1, -1))


def coverage_of_law(law: Law, n: int) -> float:
    """Return the exact variance of a token's total weight, averaged over tokens."""
    total = np.zeros((len(law), n))
    for outcome, (_, passes) in zip(total, law, strict=True):
        for _, weight in passes:
            for i, w in weight.items():
                outcome[i] += w
    p = np.array([p for p, _ in law])[:, None]
    return float(((p * total**2).sum(0) - (p * total).sum(0) ** 2).mean())


def coverage_of_draws(design: Design, plan: list[int], rows: int = 600) -> float:
    """Return the variance over draws and tokens of the total weight."""
    n = plan[0]
    eligible = np.ones((rows, n), np.uint8)
    counts = np.tile(np.array([*plan, 0], np.int32), (rows, 1))
    steps = np.zeros((rows, n), np.int32)
    passes = int(design.passes(eligible, counts).sum())
    mask, weight = np.zeros((passes, n), np.uint8), np.zeros((passes, n), np.float32)
    row = np.zeros(passes, np.int32)
    design.draw(eligible, counts, steps, 11, np.arange(rows, dtype=np.uint64), 0, mask, weight, row)
    total = np.zeros((rows, n))
    np.add.at(total, row, weight)
    return float(((total - 1) ** 2).mean())


@settings(max_examples=30)
@given(n=st.integers(1, 6), data=st.data())
def test_counts_of_a_merged_plan_have_coverage_variance_h_n_minus_h_l(n, data):
    last = data.draw(st.integers(1, n))
    law = rust_law(Design("uniform_count", 1), merged_at(n, last))
    assert coverage_of_law(law, n) == pytest.approx(harmonic(n) - harmonic(last), abs=1e-12)
    if n <= 3:
        law = rust_law(Design("uniform_count", 2), merged_at(n, last))
        assert coverage_of_law(law, n) == pytest.approx((harmonic(n) - harmonic(last)) / 2, abs=1e-12)


@given(n=st.integers(1, 6))
def test_a_coupled_pair_has_its_closed_form(n):
    want = (n + 1) * harmonic(n) / (2 * n) - 1
    assert coverage_of_law(rust_law(Design("coupled", 2), [n]), n) == pytest.approx(want, abs=1e-12)


@settings(max_examples=30)
@given(n=st.integers(1, 5), data=st.data())
def test_cover_never_has_more_coverage_variance_than_systematic_counts(n, data):
    last = data.draw(st.integers(1, n))
    num_mc = data.draw(st.integers(1, 2 if n > 3 else 3))
    plan = merged_at(n, last)
    cover, systematic, sink = (
        coverage_of_law(rust_law(Design(name, num_mc), plan), n) for name in ("cover", "systematic", "sink")
    )
    assert cover <= systematic + 1e-12
    assert sink <= cover + 1e-12


@pytest.mark.parametrize(("last", "want"), [(64, 1.380), (128, 0.691)])
def test_one_pass_of_256_tokens_has_the_published_numbers(last, want):
    assert harmonic(256) - harmonic(last) == pytest.approx(want, abs=1e-3)
    plan = merged_at(256, last)
    assert coverage_of_draws(Design("uniform_count", 1), plan, 4000) == pytest.approx(want, rel=0.06)


def test_designs_of_256_tokens_rank_as_documented():
    plan = merged_at(256, 64)
    counts, pairs, cover, sink, balanced = (
        coverage_of_draws(Design(name, 4), plan) for name in ("uniform_count", "pairs", "cover", "sink", "balanced")
    )
    assert counts == pytest.approx((harmonic(256) - harmonic(64)) / 4, rel=0.1)
    assert 0.15 < pairs < 0.22
    assert 0.04 < cover < 0.08
    assert sink < 1e-3
    assert balanced == 0
    assert 0.02 < coverage_of_draws(Design("cover", 4), merged_at(256, 128)) < 0.05


def test_a_ratio_bounded_below_has_finite_coverage_variance():
    # without a bound E[1/t] diverges: the sample variance of `bernoulli` never settles
    low = 1e-3
    want = math.log(1 / low) / (1 - low) - 1
    assert want == pytest.approx(5.91, abs=0.01)
    got = coverage_of_draws(Design("bernoulli", 1, truncate=(low, 1.0)), merged_at(256, 1), 20_000)
    assert got == pytest.approx(want, rel=0.15)
