"""Losses and advantages against formulas written out completion by completion."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs.config.sections import LossConfig
from stp_rs.objective.advantages import EPSILON, group_advantages
from stp_rs.objective.loss import LossInputs, kl_terms, policy_loss
from tests.oracles import loss as oracle

PLAIN = LossConfig(importance_sampling_level="token", stp_negative_advantage_weight=1.0)


def inputs(arrays: dict[str, np.ndarray]) -> LossInputs:
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in arrays.items()}
    return LossInputs(
        new_RL=tensors["new"].requires_grad_(),
        old_RL=tensors["old"],
        advantages_R=tensors["advantages"],
        scored_RL=tensors["scored"],
        ref_RL=tensors.get("ref"),
    )


@st.composite
def batches(draw: st.DrawFn, *, reference: bool = False) -> dict[str, np.ndarray]:
    """Draw estimates with garbage where nothing is scored, rows without scored tokens and zero advantages."""
    rows, length = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    scored = (generator.random((rows, length)) < 0.7).astype(float)
    new = -generator.exponential(size=(rows, length))
    arrays = {
        "new": new,
        "old": new + generator.normal(size=new.shape) * draw(st.sampled_from([0.0, 0.1, 0.6])),
        "scored": scored,
        "advantages": generator.choice([-1.5, -0.3, 0.0, 0.4, 2.0], rows),
    }
    if reference:
        arrays["ref"] = new + generator.normal(size=new.shape) * 0.3
    return arrays


configs = st.builds(
    LossConfig,
    loss_type=st.sampled_from(["grpo", "dr_grpo", "bnpo", "dapo"]),
    importance_sampling_level=st.sampled_from(["token", "sequence"]),
    epsilon=st.sampled_from([0.1, 0.2, 0.5]),
    epsilon_high=st.sampled_from([0.0, 0.28]),
    beta=st.sampled_from([0.04, 1.0]),
    stp_kl=st.sampled_from(["k1", "k2", "k3"]),
    stp_negative_advantage_weight=st.sampled_from([0.0, 0.2, 1.0]),
)


@settings(deadline=None, max_examples=200)
@given(st.booleans().flatmap(lambda ref: batches(reference=ref)), configs, st.integers(1, 9))
def test_the_loss_is_the_formula(arrays: dict[str, np.ndarray], config: LossConfig, completions: int):
    loss, metrics = policy_loss(inputs(arrays), config, num_completions=completions, num_tokens=oracle.TOKENS)
    assert float(loss.detach()) == pytest.approx(oracle.policy_loss(arrays, config, completions), abs=1e-6)
    assert ("kl" in metrics) == ("ref" in arrays)


@settings(deadline=None, max_examples=60)
@given(batches(reference=True), configs, st.data())
def test_losses_of_micro_batches_add_up(arrays: dict[str, np.ndarray], config: LossConfig, data: st.DataObject):
    config = replace(config, loss_type="grpo") if config.loss_type == "bnpo" else config  # its mean is a batch's own
    rows = len(arrays["advantages"])
    cut = data.draw(st.integers(0, rows))
    whole = inputs(arrays)
    loss, _ = policy_loss(whole, config, num_completions=rows, num_tokens=oracle.TOKENS)
    (gradient,) = torch.autograd.grad(loss, whole.new_RL)
    total, parts = 0.0, []
    for part in (slice(0, cut), slice(cut, rows)):
        piece = inputs({name: value[part] for name, value in arrays.items()})
        if len(piece.advantages_R):
            one, _ = policy_loss(piece, config, num_completions=rows, num_tokens=oracle.TOKENS)
            parts.append(torch.autograd.grad(one, piece.new_RL)[0])
            total += float(one.detach())
    assert total == pytest.approx(float(loss.detach()), abs=1e-12)
    assert torch.allclose(torch.cat(parts), gradient)


def gradient_of(new: float, advantage: float, config: LossConfig) -> float:
    """Return d loss / d new of one completion of one token with old = 0."""
    made = inputs({"new": [[new]], "old": [[0.0]], "scored": [[1.0]], "advantages": [advantage]})
    loss, _ = policy_loss(made, config, num_completions=1)
    return float(torch.autograd.grad(loss, made.new_RL)[0])


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_clipping_stops_the_gradient_on_the_side_that_gains(level: Any):
    config = replace(PLAIN, importance_sampling_level=level, epsilon=0.2, epsilon_high=0.5)
    for ratio, advantage, expected in [
        (1.0, 2.0, -2.0),  # at the start the gradient is minus the advantage
        (1.0, -2.0, 2.0),
        (1.4, 1.0, -1.4),  # inside the upper range
        (1.6, 1.0, 0.0),  # above it
        (1.6, -1.0, 1.6),  # a likelier bad completion is never spared
        (0.9, -1.0, 0.9),
        (0.7, -1.0, 0.0),
        (0.7, 1.0, -0.7),
    ]:
        assert gradient_of(math.log(ratio), advantage, config) == pytest.approx(expected, abs=1e-9), (ratio, advantage)
    symmetric = replace(config, epsilon_high=0.0)
    assert gradient_of(math.log(1.4), 1.0, symmetric) == 0.0


def test_negative_advantages_count_their_weight_and_zero_advantages_nothing():
    config = replace(PLAIN, stp_negative_advantage_weight=0.2)
    assert gradient_of(0.0, -2.0, config) == pytest.approx(0.2 * 2.0)
    assert gradient_of(0.0, 2.0, config) == pytest.approx(-2.0)
    assert gradient_of(0.3, 0.0, config) == 0.0


def test_clip_metrics_count_scored_tokens():
    arrays = {
        "new": np.log([[1.3, 1.0, 9.0], [0.5, 0.9, 1.3]]),
        "old": np.zeros((2, 3)),
        "scored": np.array([[1, 1, 0], [1, 1, 1]]),
        "advantages": np.array([1.0, -1.0]),
    }
    _, metrics = policy_loss(inputs(arrays), PLAIN, num_completions=2)
    assert metrics["clip_ratio/high_mean"] == pytest.approx(1 / 5)
    assert metrics["clip_ratio/low_mean"] == pytest.approx(1 / 5)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(2 / 5)
    assert metrics["diffusion/ratio_max"] == pytest.approx(1.3)


def test_kl_estimators_are_schulmans():
    gap = torch.tensor([-0.7, 0.0, 0.3, 2.0], dtype=torch.float64)
    for kind in ("k1", "k2", "k3"):
        expected = [oracle.kl(kind, x, 0.0) for x in gap.tolist()]
        assert kl_terms(gap, kind).tolist() == pytest.approx(expected)
    assert (kl_terms(gap, "k3") >= 0).all()
    # k1 and k3 are unbiased: over samples of the policy their mean is the KL itself
    policy, reference = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.4, 0.4, 0.2])
    exact = float((policy * (policy / reference).log()).sum())
    for kind in ("k1", "k3"):
        assert float((policy * kl_terms((policy / reference).log(), kind)).sum()) == pytest.approx(exact, abs=1e-6)


# --- advantages ---


def slow_advantages(rewards: list[float], groups: list[int], scale: str) -> list[float]:
    """Return centred and scaled rewards, one completion at a time."""

    def std(values: list[float]) -> float:
        centre = oracle.mean(values)
        return math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0

    out = []
    for reward, group in zip(rewards, groups, strict=True):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        divisor = {"group": std(own) + EPSILON, "batch": std(rewards) + EPSILON, "none": 1.0}[scale]
        out.append((reward - oracle.mean(own)) / divisor)
    return out


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0, -2.0]), st.integers(0, 3)), min_size=1, max_size=12),
    st.sampled_from(["group", "batch", "none"]),
)
def test_advantages_are_centred_and_scaled_by_group(cells: list[tuple[float, int]], scale: Any):
    rewards, groups = [r for r, _ in cells], [10 * g for _, g in cells]
    got, metrics = group_advantages(np.array(rewards, np.float32), np.array(groups), scale)
    assert got.tolist() == pytest.approx(slow_advantages(rewards, groups, scale), abs=2e-3)
    assert metrics["reward"] == pytest.approx(oracle.mean(rewards), abs=1e-6)
    for group in set(groups):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        mine = got[np.array(groups) == group]
        assert mine.sum() == pytest.approx(0, abs=1e-3)
        if len(set(own)) == 1:
            assert (mine == 0).all(), "equal rewards are exactly no signal"
    flat = [len({r for r, g in zip(rewards, groups, strict=True) if g == group}) == 1 for group in set(groups)]
    assert metrics["frac_reward_zero_std"] == pytest.approx(oracle.mean(flat))


def test_a_z_score_worked_by_hand():
    got, metrics = group_advantages(np.array([1, 0, 0, 1, 3], np.float32), np.array([7, 7, 7, 7, 2]))
    assert got.tolist() == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659, 0.0], abs=1e-4)
    assert metrics["reward_std"] == pytest.approx(1.224745, abs=1e-5), "of the batch, as in TRL"
    assert metrics["frac_reward_zero_std"] == 0.5


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, -2.0]), min_size=2, max_size=8), st.integers(1, 3))
def test_leave_one_out_and_softmax_advantages(rewards: list[float], groups: int):
    values = np.array([r + g for g in range(groups) for r in rewards], np.float32)
    index = np.repeat(np.arange(groups), len(rewards))
    others, _ = group_advantages(values, index, "none", "leave_one_out")
    softmax, _ = group_advantages(values, index, "none", "softmax")
    for g in range(groups):
        own = values[index == g].astype(float).tolist()
        for k, reward in enumerate(own):
            rest = own[:k] + own[k + 1 :]
            assert others[g * len(own) + k] == pytest.approx(reward - oracle.mean(rest), abs=1e-5)
            up = math.exp(reward) / sum(math.exp(r) for r in own)
            down = math.exp(-reward) / sum(math.exp(-r) for r in own)
            expected = len(own) * (up - down) if len(set(own)) > 1 else 0.0
            assert softmax[g * len(own) + k] == pytest.approx(expected, abs=1e-4)
    assert softmax.sum() == pytest.approx(0, abs=1e-4), "good and bad weights balance"


def test_advantages_without_siblings_are_zero():
    one, zero = np.array([3.0], np.float32), np.zeros(1, np.int64)
    assert group_advantages(one, zero, "none", "leave_one_out")[0].tolist() == [0.0]
    assert group_advantages(one, zero, "group", "softmax")[0].tolist() == [0.0]
    empty, _ = group_advantages(one[:0], zero[:0], "group", "softmax")
    assert empty.shape == (0,)
