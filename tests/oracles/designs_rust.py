"""The Rust designs in the form of the oracles, and what the property tests draw."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from stp_rs._core import Design
from tests.oracles.designs import Law, Pass, Policy, merged


def plans(largest: int) -> st.SearchStrategy[list[int]]:
    """Draw any plan of n <= largest tokens."""
    return st.integers(1, largest).flatmap(
        lambda n: st.sets(st.integers(1, max(n - 1, 1))).map(
            lambda rest: sorted({n} | {count for count in rest if count < n}, reverse=True)
        )
    )


def table(seed: int) -> Policy:
    """Return an adversarial tabular policy: an independent f_i(M) for every pair."""
    cache: dict[tuple[int, frozenset[int]], float] = {}
    generator = np.random.default_rng(seed)

    def policy(i: int, mask: frozenset[int]) -> float:
        return cache.setdefault((i, mask), float(np.log(generator.uniform(1e-6, 1))))

    return policy


def arrays(plan: list[int], rows: int = 1, order: list[int] | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return eligible, unmask_counts and unmask_step for rows of n free positions revealed in an order."""
    n = plan[0]
    counts = np.asarray([*plan, 0], np.int32)
    steps = np.empty(n, np.int32)
    steps[order or list(range(n))] = np.repeat(np.arange(len(plan)), -np.diff(counts))
    return np.ones((rows, n), np.uint8), np.tile(counts, (rows, 1)), np.tile(steps, (rows, 1))


def rust_law(
    design: Design,
    plan: list[int],
    order: list[int] | None = None,
    iteration: int = 0,
    mass: list[float] | None = None,
) -> Law:
    """Return the law that the Rust sampler enumerates."""
    masses = None if mass is None else np.array([mass], np.float32)
    return [
        (probability, tuple(pass_of(m, w) for m, w in zip(masks, weights, strict=True)))
        for probability, masks, weights in design.law(*arrays(plan, 1, order), iteration=iteration, mass=masses)
    ]


def pass_of(mask: object, weight: object) -> Pass:
    """Return the oracle's form of one pass."""
    scored = {i: float(w) for i, w in enumerate(np.asarray(weight)) if w != 0}
    return frozenset(np.flatnonzero(np.asarray(mask)).tolist()), scored


def draw(design: Design, plan: list[int], uids: range, iteration: int = 0, seed: int = 5) -> list[tuple[Pass, ...]]:
    """Return one keyed draw per uid."""
    eligible, counts, steps = arrays(plan, len(uids))
    total = int(design.passes(eligible, counts).sum())
    mask = np.full((total, plan[0]), 7, np.uint8)
    weight = np.full((total, plan[0]), np.nan, np.float32)
    row = np.full(total, -7, np.int32)
    keys = np.asarray(uids, np.uint64)
    design.draw(eligible, counts, steps, seed, keys, iteration, mask, weight, row)
    out: list[list[Pass]] = [[] for _ in uids]
    for r, m, w in zip(row.tolist(), mask, weight, strict=True):
        out[r].append(pass_of(m, w))
    return [tuple(passes) for passes in out]


def assert_same_law(got: Law, want: Law) -> None:
    """Compare two laws outcome by outcome."""
    left, right = merged(got), merged(want)
    assert left.keys() == right.keys()
    for outcome, probability in left.items():
        assert probability == pytest.approx(right[outcome], abs=1e-12)


def fits(counts: Counter[Any], law: dict[Any, float], draws: int) -> bool:
    """Whether the chi-square statistic stays below its 1 - 1e-6 quantile (Wilson and Hilferty's cube)."""
    expected = np.array([draws * p for p in law.values()])
    observed = np.array([counts[outcome] for outcome in law])
    freedom = len(law) - 1
    if freedom == 0:
        return bool(observed[0] == draws)
    quantile = freedom * (1 - 2 / (9 * freedom) + 4.75 * np.sqrt(2 / (9 * freedom))) ** 3
    return bool(((observed - expected) ** 2 / expected).sum() < quantile)
