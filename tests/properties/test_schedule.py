"""The laws of plans: Rust against the formulas, and what pruning may and may not do to a plan."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs._core import Unmasking, plan_counts, scored_counts
from stp_rs.types import Mark
from tests.oracles import schedule as oracle
from tests.oracles.schedule import QUOTAS, Options

RULES = st.sampled_from(QUOTAS)
FREE = st.lists(st.integers(0, 1), max_size=40)


def rust_plan(free: list[int], options: Options) -> list[int] | None:
    return Unmasking(**vars(options)).plan(np.array(free, np.uint8))


def rust_scored(unmask_step: list[int], *, score_prior: bool, steps: int, rule: str = "ceil_remaining") -> list[int]:
    row = np.array([unmask_step], np.int32)
    out = np.full_like(row, -7)
    scored_counts(row, out, score_prior=score_prior, diffusion_steps=steps, quota=rule)
    counts = out[0].tolist()
    used = counts.index(0) if 0 in counts else len(counts)
    assert not any(counts[used:])
    return counts[:used]


@pytest.mark.parametrize(
    ("rule", "n", "steps", "reveals"),
    [
        ("llada", 10, 4, [3, 3, 2, 2]),
        ("dllm", 10, 4, [2, 3, 2, 3]),
        ("dream", 10, 4, [2, 2, 2, 4]),
        ("ceil_remaining", 10, 4, [3, 3, 2, 2]),
        ("powers_of_two", 10, 4, [1, 2, 4, 3]),
        ("llada", 5, 8, [1] * 5),
        ("dllm", 5, 8, [1] * 5),
        ("dream", 5, 8, [1, 1, 1, 2]),
        ("ceil_remaining", 5, 8, [1] * 5),
    ],
)
def test_the_published_quotas(rule: str, n: int, steps: int, reveals: list[int]):
    assert list(oracle.quotas(rule, n, steps)) == reveals
    assert plan_counts(n, steps, rule) == oracle.counts(reveals)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(1, 300), RULES)
def test_plans_are_the_formulas_decrease_and_reveal_everything(n: int, steps: int, rule: str):
    counts = plan_counts(n, steps, rule)
    assert counts == oracle.counts(list(oracle.quotas(rule, n, steps)))
    assert all(a > b for a, b in pairwise([*counts, 0]))
    assert counts[:1] == ([n] if n else [])
    assert len(counts) <= min(n, steps)


options = st.builds(
    Options,
    diffusion_steps=st.integers(1, 45),
    block_length=st.sampled_from([0, 1, 5, 8, 100]),
    quota=RULES,
    temporal=st.sampled_from(["none", "fill_ratio:0.5", "fill_ratio:0.95", "steps:0.01", "steps:0.6", "steps:1"]),
    max_nfe=st.sampled_from([0, 0, 1, 4]),
)


@settings(deadline=None)
@given(FREE, options)
def test_the_plan_of_a_sampler(free: list[int], chosen: Options):
    counts = rust_plan(free, chosen)
    assert counts == oracle.plan(free, chosen)
    assert counts is not None
    assert all(a > b for a, b in pairwise([*counts, 0]))
    assert counts[:1] == ([sum(free)] if any(free) else [])


@settings(deadline=None)
@given(FREE, FREE, options)
def test_spatial_pruning_never_adds_a_step(free: list[int], prior: list[int], chosen: Options):
    chosen = replace(chosen, temporal="none", max_nfe=0)
    fewer = [int(f and not p) for f, p in zip(free, [*prior, *[0] * len(free)], strict=False)]
    full, pruned = rust_plan([1] * len(free), chosen), rust_plan(fewer, chosen)
    assert full is not None
    assert pruned is not None
    assert len(pruned) <= len(full)
    assert len(pruned) <= len(rust_plan(free, chosen) or [])


@settings(deadline=None)
@given(FREE, options)
def test_temporal_pruning_only_merges_the_tail(free: list[int], chosen: Options):
    whole = rust_plan(free, replace(chosen, temporal="none", max_nfe=0))
    pruned = rust_plan(free, chosen)
    assert whole is not None
    assert pruned is not None
    assert pruned == whole[: len(pruned)]
    assert bool(pruned) == bool(whole)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 45), RULES)
def test_no_pruning_is_the_baseline(n: int, steps: int, rule: str):
    chosen = Options(steps, quota=rule)
    baseline = plan_counts(n, steps, rule)
    assert rust_plan([1] * n, chosen) == baseline
    for same in ("steps:1", "fill_ratio:1"):
        assert rust_plan([1] * n, replace(chosen, temporal=same)) == baseline
    unmask_step = [step for step, (a, b) in enumerate(pairwise([*baseline, 0])) for _ in range(a - b)]
    for score_prior in (False, True):
        assert rust_scored(unmask_step, score_prior=score_prior, steps=steps, rule=rule) == baseline


@pytest.mark.parametrize(
    "adaptive", [{"selection": "threshold:0.5"}, {"temporal": "confidence:0.9"}, {"temporal": "stable:2"}]
)
def test_a_plan_that_depends_on_the_model_is_none(adaptive: dict[str, str]):
    assert rust_plan([1, 1, 0], Options(3, **adaptive)) is None


@settings(deadline=None)
@given(st.lists(st.integers(Mark.UNDRAWN, 6), max_size=24), st.booleans(), st.integers(1, 30), RULES)
def test_the_plan_that_is_scored(unmask_step: list[int], score_prior: bool, steps: int, rule: str):
    got = rust_scored(unmask_step, score_prior=score_prior, steps=steps, rule=rule)
    assert got == oracle.scored(unmask_step, score_prior=score_prior, steps=steps, rule=rule)
    scored = sum(s >= (Mark.PRIOR if score_prior else 0) for s in unmask_step)
    assert got[:1] == ([scored] if scored else [])


def test_scoring_the_prior_keeps_the_temporal_merge_and_adds_none():
    free = [0] * 10 + [1] * 10
    for temporal, expected in [("none", plan_counts(20, 10)), ("steps:0.6", [20, 18, 16, 14, 12])]:
        counts = rust_plan(free, Options(10, temporal=temporal))
        assert counts == ([10, 8, 6, 4, 2] if temporal == "none" else [10, 8, 6])
        own = [step for step, (a, b) in enumerate(pairwise([*counts, 0])) for _ in range(a - b)]
        assert rust_scored([-1] * 10 + own, score_prior=False, steps=10) == counts
        assert rust_scored([-1] * 10 + own, score_prior=True, steps=10) == expected
