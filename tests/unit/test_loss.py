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
from stp_rs.errors import InvalidValueError
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
        entropy_RL=tensors.get("entropy"),
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
    known = generator.random(new.shape) < draw(st.sampled_from([0.6, 1.0]))
    arrays["entropy"] = np.where(known, generator.exponential(size=new.shape), np.nan)
    return arrays


plain_configs = st.builds(
    LossConfig,
    loss_type=st.sampled_from(["grpo", "dr_grpo", "bnpo", "dapo", "luspo", "cispo", "sapo", "vespo"]),
    importance_sampling_level=st.sampled_from(["token", "sequence"]),
    epsilon=st.sampled_from([0.1, 0.2, 0.5]),
    epsilon_high=st.sampled_from([None, 0.0, 0.28]),
    beta=st.sampled_from([0.04, 1.0]),
    stp_kl=st.sampled_from(["k1", "k2", "k3"]),
    stp_negative_advantage_weight=st.sampled_from([0.0, 0.2, 1.0]),
    delta=st.sampled_from([None, 1.1, 1.5]),
    sapo_temperature_neg=st.sampled_from([1.05, 3.0]),
    sapo_temperature_pos=st.sampled_from([1.0, 0.5]),
    vespo_k_pos=st.sampled_from([2.0, 0.0]),
    vespo_lambda_neg=st.sampled_from([2.0, 0.5]),
    off_policy_mask_threshold=st.sampled_from([None, 0.0, 0.1]),
    use_bias_correction_kl=st.booleans(),
    entropy_coef=st.sampled_from([0.0, 0.1, -0.1]),
)
configs = st.builds(replace, plain_configs, top_entropy_quantile=st.sampled_from([1.0, 0.2, 0.0]))
"""`top_entropy_quantile` reads each micro-batch by itself, so that losses of micro-batches do not add up with it."""


@settings(deadline=None, max_examples=200)
@given(st.booleans().flatmap(lambda ref: batches(reference=ref)), configs, st.integers(1, 9))
def test_the_loss_is_the_formula(arrays: dict[str, np.ndarray], config: LossConfig, completions: int):
    loss, metrics = policy_loss(inputs(arrays), config, num_completions=completions, num_tokens=oracle.TOKENS)
    expected = oracle.policy_loss(arrays, config, completions)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert ("kl" in metrics) == ("ref" in arrays)


@settings(deadline=None, max_examples=60)
@given(batches(reference=True), plain_configs, st.data())
def test_losses_of_micro_batches_add_up(arrays: dict[str, np.ndarray], config: LossConfig, data: st.DataObject):
    config = replace(config, loss_type="grpo") if config.loss_type == "bnpo" else config  # its mean is a batch's own
    arrays["entropy"] = np.nan_to_num(arrays["entropy"])  # tokens of unknown entropy leave a micro-batch's mean alone
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
    assert total == pytest.approx(float(loss.detach()), rel=1e-9, abs=1e-9)
    assert torch.allclose(torch.cat(parts), gradient)


def gradient_of(new: float, advantage: float, config: LossConfig, tokens: float | None = None) -> float:
    """Return d loss / d new of one completion of one token with old = 0."""
    made = inputs({"new": [[new]], "old": [[0.0]], "scored": [[1.0]], "advantages": [advantage]})
    loss, _ = policy_loss(made, config, num_completions=1, num_tokens=tokens)
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
    symmetric = replace(config, epsilon_high=None)
    assert gradient_of(math.log(1.4), 1.0, symmetric) == 0.0
    assert gradient_of(math.log(1.1), 1.0, replace(config, epsilon_high=0.0)) == 0.0, "0 is 0, and not the lower range"


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


# --- losses and options of TRL: their gradients, worked by hand for one token with old = 0 ---


def test_cispo_clips_a_weight_and_never_a_gradient():
    """d loss = -min(r, epsilon_high) A: beyond the bound the gradient stays, where clipping would stop it."""
    config = replace(PLAIN, loss_type="cispo", epsilon_high=1.5)
    for ratio, advantage, expected in [
        (1.0, 2.0, -2.0),
        (1.4, 1.0, -1.4),
        (3.0, 1.0, -1.5),
        (3.0, -1.0, 1.5),
        (0.1, 1.0, -0.1),
    ]:
        assert gradient_of(math.log(ratio), advantage, config, tokens=1.0) == pytest.approx(expected), ratio
    made = inputs(
        {"new": [[math.log(3)], [math.log(3)]], "old": [[0], [0]], "scored": [[1], [1]], "advantages": [1.0, -1.0]}
    )
    assert float(policy_loss(made, config, num_completions=2, num_tokens=2)[1]["cispo_clip_ratio"]) == 0.5


def test_sapo_fades_out_where_clipping_stops():
    """d/dr [4 / tau sigmoid(tau (r - 1))] = 4 s (1 - s): 1 at r = 1, and symmetric around it."""
    config = replace(PLAIN, loss_type="sapo", sapo_temperature_pos=2.0, sapo_temperature_neg=3.0)
    for ratio, advantage, tau in [
        (1.0, 2.0, 2.0),
        (1.0, -2.0, 3.0),
        (2.0, 1.0, 2.0),
        (2.0, -1.0, 3.0),
        (0.2, -1.0, 3.0),
    ]:
        s = 1 / (1 + math.exp(-tau * (ratio - 1)))
        expected = -4 * s * (1 - s) * ratio * advantage
        assert gradient_of(math.log(ratio), advantage, config) == pytest.approx(expected), ratio
    assert "clip_ratio/low_mean" not in policy_loss(inputs(ONE), config, num_completions=1)[1]


def test_vespo_weighs_whole_completions():
    """d loss = -w^k exp(lambda (1 - w)) A with w the product of the tokens' ratios."""
    config = replace(PLAIN, loss_type="vespo")
    for ratio, advantage, k, decay in [(1.0, 1.0, 2, 3), (1.5, 1.0, 2, 3), (0.5, 1.0, 2, 3), (1.5, -1.0, 3, 2)]:
        expected = -(ratio**k) * math.exp(decay * (1 - ratio)) * advantage
        assert gradient_of(math.log(ratio), advantage, config, tokens=1.0) == pytest.approx(expected), ratio
    two = {"new": [[math.log(1.2)] * 2], "old": [[0.0] * 2], "scored": [[1.0] * 2], "advantages": [1.0]}
    _, metrics = policy_loss(inputs(two), config, num_completions=1, num_tokens=2)
    assert float(metrics["vespo/phi_seq_mean"]) == pytest.approx(1.44**2 * math.exp(3 * (1 - 1.44)))
    far = inputs({**two, "new": [[-700.0, -700.0]]})
    assert torch.isfinite(policy_loss(far, config, num_completions=1, num_tokens=2)[0])


def test_luspo_counts_a_completion_by_its_length():
    config = replace(PLAIN, loss_type="luspo", importance_sampling_level="sequence")
    for tokens in (1, 3):
        made = inputs(
            {"new": [[0.0] * tokens], "old": [[0.0] * tokens], "scored": [[1.0] * tokens], "advantages": [2.0]}
        )
        loss, _ = policy_loss(made, config, num_completions=1)
        assert float(loss.detach()) == pytest.approx(-2.0 * tokens)


def test_delta_bounds_what_a_likelier_bad_completion_costs():
    config = replace(PLAIN, delta=1.5)
    assert gradient_of(math.log(1.4), -1.0, config) == pytest.approx(1.4)
    assert gradient_of(math.log(1.6), -1.0, config) == 0.0, "without delta it is 1.6"
    assert gradient_of(math.log(1.1), 1.0, config) == pytest.approx(-1.1)


def test_off_policy_completions_with_a_negative_advantage_are_left_out():
    config = replace(PLAIN, off_policy_mask_threshold=0.5, epsilon=0.9)
    assert gradient_of(-0.6, -1.0, config) == 0.0, "less likely than before by .6"
    assert gradient_of(-0.4, -1.0, config) != 0.0
    assert gradient_of(0.6, -1.0, config) != 0.0, "likelier than before"
    assert gradient_of(-0.6, 1.0, config) != 0.0, "a good one"


def test_the_corrected_kl_is_unbiased_for_the_policy_that_is_trained():
    """Over samples of the old policy the mean of ratio times k3 is the KL of the new one, and its gradient the KL's."""
    old, ref = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
    logits = torch.tensor([0.1, 0.7, -0.4], dtype=torch.float64, requires_grad=True)
    config = replace(PLAIN, stp_kl="k3", beta=1.0, use_bias_correction_kl=True)
    new = torch.log_softmax(logits, 0)
    total = torch.zeros((), dtype=torch.float64)
    for token in range(3):
        made = LossInputs(
            new_RL=new[None, token : token + 1],
            old_RL=old.log()[None, token : token + 1],
            advantages_R=torch.zeros(1).double(),
            scored_RL=torch.ones(1, 1).double(),
            ref_RL=ref.log()[None, token : token + 1],
        )
        total = total + old[token] * policy_loss(made, config, num_completions=1)[0]
    exact = (new.exp() * (new - ref.log())).sum()
    assert float(total.detach()) == pytest.approx(float(exact.detach()))
    (got,) = torch.autograd.grad(total, logits, retain_graph=True)
    assert torch.allclose(got, torch.autograd.grad(exact, logits)[0])


ONE = {"new": [[0.0]], "old": [[0.0]], "scored": [[1.0]], "advantages": [1.0]}
FOUR = {
    "new": [[0.0] * 4],
    "old": [[0.0] * 4],
    "scored": [[1.0] * 4],
    "advantages": [1.0],
    "entropy": [[0.1, 0.4, 0.3, 0.2]],
}


@pytest.mark.parametrize(("share", "kept"), [(1.0, 4), (0.5, 2), (0.3, 1), (0.0, 1)])
def test_tokens_of_high_entropy_carry_the_gradient(share: float, kept: int):
    made = inputs(FOUR)
    loss, metrics = policy_loss(made, replace(PLAIN, top_entropy_quantile=share), num_completions=1)
    (gradient,) = torch.autograd.grad(loss, made.new_RL)
    order = [1, 2, 3, 0][:kept]  # by entropy
    assert gradient[0].tolist() == [-0.25 if i in order else 0.0 for i in range(4)]
    assert float(metrics["entropy"]) == pytest.approx(0.25)


def test_the_entropy_bonus_is_the_mean_entropy_per_token_whatever_the_loss():
    for kind in ("grpo", "dr_grpo", "bnpo", "dapo", "luspo", "sapo", "cispo", "vespo"):
        config = replace(PLAIN, loss_type=kind, importance_sampling_level="sequence")
        made = inputs(FOUR)
        made.entropy_RL.requires_grad_()
        plain, _ = policy_loss(made, config, num_completions=1, num_tokens=8)
        loss, _ = policy_loss(made, replace(config, entropy_coef=2.0), num_completions=1, num_tokens=8)
        assert float((loss - plain).detach()) == pytest.approx(-2.0 * 0.25 / 2), "half of the update's tokens"
        assert torch.autograd.grad(loss, made.entropy_RL)[0][0].tolist() == pytest.approx([-2.0 / 8] * 4)


def test_what_a_loss_lacks_is_named():
    with pytest.raises(InvalidValueError, match="entropy_RL: got None, needs the entropies"):
        policy_loss(inputs(ONE), replace(PLAIN, top_entropy_quantile=0.5), num_completions=1)
    for kind in ("dapo", "cispo", "vespo"):
        with pytest.raises(InvalidValueError, match=f"num_tokens: got None, .* for {kind}"):
            policy_loss(inputs(ONE), replace(PLAIN, loss_type=kind), num_completions=1)
