"""Designs of visited states: oracle against formula, Rust against oracle, keyed draws, masses, one canvas a group."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import errors
from stp_rs._core import Design
from stp_rs.data.trajectories import Rollout
from stp_rs.models import base as model_base
from stp_rs.objective import likelihood
from stp_rs.objective.bounds import pass_logprobs
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import DOUBT_FLOOR, Masks, draw_masks, mask_prompts, state_mass, without_unlikely
from stp_rs.types import Cost
from tests.fixtures import record, tiny
from tests.oracles import designs as base
from tests.oracles import designs_visited as oracle
from tests.oracles.designs_rust import assert_same_law, fits, plans, rust_law, table

CASES = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        plans(n).filter(lambda plan: plan[0] == n),
        st.permutations(range(n)),
        st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 8.0]), min_size=n, max_size=n) | st.none(),
    )
)


@settings(max_examples=80)
@given(case=CASES, num_mc=st.integers(0, 7), seed=st.integers(0, 999))
def test_decision_is_unbiased_for_the_trajectory_whatever_the_masses(case, num_mc, seed):
    plan, order, mass = case
    law = oracle.decision(plan, order, num_mc, mass)
    assert_same_law(rust_law(Design("decision", num_mc), plan, order, mass=mass), law)
    policy, revealed = table(seed), oracle.blocks(plan, order)
    exact = sum(policy(i, frozenset(oracle.masked_at(s, revealed))) for s, block in enumerate(revealed) for i in block)
    assert base.expectation(law, policy) == pytest.approx(exact, abs=1e-9)


@settings(max_examples=60)
@given(case=CASES, num_mc=st.integers(1, 7), seed=st.integers(0, 999))
def test_merged_steps_go_from_the_one_step_product_to_the_trajectory(case, num_mc, seed):
    plan, order, _ = case
    design = Design("step_merge", num_mc)
    law = oracle.step_merge(plan, order, num_mc)
    assert_same_law(rust_law(design, plan, order), law)
    assert (design.target, design.unbiased, design.published, design.per_token) == ("trajectory", False, True, False)
    policy, n = table(seed), plan[0]
    if num_mc == 1:
        everything = frozenset(range(n))
        assert base.expectation(law, policy) == pytest.approx(sum(policy(i, everything) for i in range(n)))
    if num_mc >= len(plan):
        assert_same_law(law, oracle.decision(plan, order, 0))


@settings(max_examples=60)
@given(case=CASES, num_mc=st.integers(0, 7))
def test_the_states_of_the_largest_mass_are_taken(case, num_mc):
    plan, order, mass = case
    design = Design("top_states", num_mc)
    assert_same_law(rust_law(design, plan, order, mass=mass), oracle.top_states(plan, order, num_mc, mass))
    assert design.recorded
    assert not Design("state").recorded


@settings(max_examples=80)
@given(
    case=CASES,
    num_mc=st.integers(0, 7),
    least=st.sampled_from([0.0, 0.3, 0.5, 0.75]),
    divided=st.booleans(),
    canvas=st.booleans(),
    seed=st.integers(0, 999),
)
def test_state_and_canvas_are_means_per_token_over_visited_states(case, num_mc, least, divided, canvas, seed):
    plan, order, mass = case
    num_mc = max(num_mc, 1) if canvas else num_mc
    law = oracle.state(plan, order, num_mc, mass, least, divided, canvas)
    design = Design(
        "canvas" if canvas else "state", num_mc, truncate=(least, 1.0) if least else None, divide_weights=divided
    )
    assert_same_law(rust_law(design, plan, order, mass=mass), law)
    assert design.per_token
    assert (design.target, design.unbiased) == ("states", False)
    n, policy, revealed = plan[0], table(seed), oracle.blocks(plan, order)
    # the formula: states of the upper part by mass, the canvas apart
    weigh = [m if plan[s] >= least * n - 1e-9 else 0 for s, m in enumerate(oracle.masses(revealed, mass))]
    if canvas:
        later = min(num_mc - 1, sum(w > 0 for w in weigh[1:]))
        rest = sum(weigh[1:])
        share = [1 / (later + 1), *(later / (later + 1) * w / rest if later else 0 for w in weigh[1:])]
    else:
        share = [w / sum(weigh) for w in weigh]
    total = dict.fromkeys(range(n), 0.0)
    for s, p in enumerate(share):
        for i in oracle.masked_at(s, revealed):
            total[i] += float(p) / plan[s]
    exact = sum(
        float(p) / plan[s] * policy(i, frozenset(oracle.masked_at(s, revealed))) / (n * total[i] if divided else 1.0)
        for s, p in enumerate(share)
        for i in oracle.masked_at(s, revealed)
    )
    assert base.expectation(law, policy) == pytest.approx(exact, abs=1e-9)
    # on average a row weighs 1, and with divided weights every token 1 / n
    weight = [sum(p * w.get(i, 0.0) for p, passes in law for _, w in passes) for i in range(n)]
    assert sum(weight) == pytest.approx(1.0)
    if divided:
        assert weight == pytest.approx([1 / n] * n)


@pytest.mark.parametrize(("name", "num_mc"), [("state", 1), ("state", 2), ("canvas", 2), ("decision", 2)])
def test_keyed_draws_follow_the_law(name, num_mc):
    plan, mass, draws = [6, 5, 4, 3, 2], [0.5, 2.0, 0.25, 1.0, 0.5, 1.0], 6_000
    law = base.merged(rust_law(Design(name, num_mc), plan, mass=mass))
    rows = record(
        prompt_ids=np.zeros((draws, 1), np.int64),
        prompt_length=np.ones(draws, np.int32),
        token_ids=np.zeros((draws, 6), np.int64),
        unmask_step=np.tile(np.array([0, 1, 2, 3, 4, 4], np.int32), (draws, 1)),
        uid=np.arange(draws, dtype=np.uint64),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stp_rs.objective.masks.state_mass", lambda *_: np.tile(np.float32(mass), (draws, 1)))
        masks = draw_masks(Design(name, num_mc), rows, seed=3)
    counts: Counter = Counter()
    for row in range(draws):
        passes = np.flatnonzero(masks.row_P == row)
        counts[
            base.key(
                tuple(
                    (frozenset(np.flatnonzero(masks.mask_PL[k]).tolist()), dict(enumerate(masks.weight_PL[k].tolist())))
                    for k in passes
                )
            )
        ] += 1
    assert counts.keys() <= law.keys()
    assert fits(counts, law, draws)


def rows_of(group: int = 4, groups: int = 2, seed: int = 0, *, length: int = 6) -> Rollout:
    """Return completions of groups that share a prompt, with ragged prompts and a row of prior tokens each."""
    generator = np.random.default_rng(seed)
    count = group * groups
    steps = np.stack([generator.permutation([0, 0, 1, 2, 2, 2])[:length] for _ in range(count)]).astype(np.int32)
    steps[:, 0] = -1
    tokens = generator.integers(3, 7, (count, length))
    tokens[:, 0] = np.repeat(generator.integers(3, 7, groups), group)
    return record(
        prompt_ids=np.repeat(generator.integers(3, 7, (groups, 4)), group, axis=0),
        prompt_length=np.repeat(np.array([4, 2], np.int32)[np.arange(groups) % 2], group),
        token_ids=tokens,
        unmask_step=steps,
        uid=np.arange(count, dtype=np.uint64),
        logprob=np.where(steps >= 0, np.log(generator.uniform(0.05, 1.0, steps.shape)), 0.0).astype(np.float32),
    )


def test_masses_are_those_that_were_asked_for():
    rows = rows_of()
    assert state_mass("reveals", rows) is None
    uniform, doubt, surprisal = (state_mass(kind, rows) for kind in ("uniform", "doubt", "surprisal"))
    for row, steps in enumerate(rows.unmask_step):
        for step in set(steps.tolist()) - {-1}:
            there = steps == step
            logprob = rows.logprob[row, there].astype(float)
            assert uniform[row, there].sum() == pytest.approx(1.0)
            assert doubt[row, there] == pytest.approx(np.maximum(1 - np.exp(logprob), DOUBT_FLOOR), abs=1e-6)
            assert surprisal[row, there].sum() == pytest.approx(np.exp(-logprob.mean()), rel=1e-5)
    bare = record(rows.prompt_ids, rows.prompt_length, rows.token_ids, rows.unmask_step, rows.uid)
    with pytest.raises(errors.InvalidValueError, match="logprob"):
        draw_masks(Design("decision", 2), bare, seed=0, states="doubt")


def evaluated(
    rows: Rollout, masks: Masks, *, apart: bool, seed: int = 3, **options: object
) -> tuple[torch.Tensor, ...]:
    """Return the estimate, its gradient and its cost; `apart` computes every canvas by itself."""
    model, cost = tiny(seed=seed), Cost()
    with pytest.MonkeyPatch.context() as patch:
        if apart:
            patch.setattr(likelihood, "distinct_canvases", lambda ids, *_: (np.arange(len(ids)), np.arange(len(ids))))
        out = token_elbo(model, rows, masks, cost=cost, **options)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.module.parameters() if p.grad is not None])
    return out.detach(), gradient, cost


@pytest.mark.parametrize("design", [Design("canvas", 1), Design("mean_field", 1), Design("canvas", 2)])
@pytest.mark.parametrize("elements", [1 << 20, 60])
def test_a_group_shares_its_canvas_exactly(design, elements, monkeypatch):
    monkeypatch.setattr(model_base, "HEAD_ELEMENTS", elements)  # 60: the head in many chunks
    rows = rows_of()
    masks = draw_masks(design, rows, seed=1)
    allowed = torch.ones(rows.token_ids.shape[1], tiny().module.config.vocab_size, dtype=torch.bool)
    allowed[2, 3] = False
    for options in ({}, {"allowed": allowed}, {"allowed": allowed.expand(8, -1, -1)}, {"forward_batch_size": 4}):
        shared, alone = (evaluated(rows, masks, apart=apart, **options) for apart in (False, True))
        assert torch.allclose(shared[0], alone[0], atol=1e-6)
        assert torch.allclose(shared[1], alone[1], atol=1e-4, rtol=1e-5)
        if design.num_mc == 1:
            assert (shared[2].forwards, alone[2].forwards) == (2, 8)
            per_row = options.get("allowed") is not None and options["allowed"].dim() == 3
            assert shared[2].head_rows == (40 if per_row else 10)


def test_prompt_masks_and_other_anchors_part_the_canvases():
    rows = rows_of()
    masks = draw_masks(Design("canvas", 1), rows, seed=1)
    parted = mask_prompts(masks, rows, 0.5, seed=0)
    assert evaluated(rows, parted, apart=False)[2].forwards > 2
    rows.token_ids[::2, 0] = 3 + (rows.token_ids[::2, 0] == 3)
    assert evaluated(rows, masks, apart=False)[2].forwards == 4


def test_unlikely_tokens_are_not_scored_unless_the_state_revealed_them():
    rows = rows_of()
    masks = draw_masks(Design("state", 2), rows, seed=1)
    logprob = np.random.default_rng(4).normal(-2, 1, masks.mask_PL.shape).astype(np.float32)
    kept = without_unlikely(masks, logprob, rows.unmask_step, 0.1)
    for k, row in enumerate(masks.row_P):
        step = rows.unmask_step[row][masks.weight_PL[k] > 0].min()
        for i in np.flatnonzero(masks.weight_PL[k]):
            stays = logprob[k, i] >= np.log(0.1) or rows.unmask_step[row, i] == step
            assert (kept.weight_PL[k, i] > 0) == stays
        assert kept.weight_PL[k].sum() == pytest.approx(masks.weight_PL[k].sum()), "a mean over the tokens that stay"
    assert (kept.mask_PL == masks.mask_PL).all(), "what hides the tokens stays"
    assert (kept.weight_PL != masks.weight_PL).any()


def test_passes_of_a_canvas_have_their_own_log_probs():
    rows = rows_of()
    masks = draw_masks(Design("canvas", 2), rows, seed=1)
    each = pass_logprobs(tiny(seed=3), rows, masks)
    total = torch.zeros(masks.scored_RL.shape).index_add(
        0, torch.from_numpy(masks.row_P.astype(np.int64)), torch.from_numpy(masks.weight_PL) * each
    )
    assert torch.allclose(total, token_elbo(tiny(seed=3), rows, masks), atol=1e-6)
