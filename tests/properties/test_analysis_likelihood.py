"""The exact analysis through the likelihood's own path: table policies, priors, plans, values and gradients."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import Design, Masks, STPConfig, STPTrainer, Unmasking, draw_masks, errors, token_elbo
from stp_rs._core import PriorSet
from stp_rs.config.sections import PruningConfig
from stp_rs.data.trajectories import Rollout
from stp_rs.eval.prunings import as_pruned, plans_of, row_levels
from stp_rs.objective.bounds import pass_logprobs, token_bounds
from stp_rs.objective.noise import Estimator, exact_gradient, gradient_noise, value_and_gradient
from stp_rs.testing.exact import exact_levels, law_arrays, plan_elbo, score_table
from stp_rs.testing.gram import gram_trace, mask_gram
from stp_rs.testing.tabular import TabularPolicy
from tests.fixtures import record, tiny, tokenizer
from tests.oracles.designs_rust import plans

SEEDS = st.integers(0, 2**32 - 1)
DESIGNS = [
    "uniform_count",
    "systematic",
    "coupled",
    "cover",
    "spread",
    "pairs",
    "sink",
    "balanced",
    "ordered",
    "bernoulli",
]


def table_policy(length: int, seed: int, *, consistent: bool, spread: float = 2.0) -> TabularPolicy:
    """Return a policy over two tokens: one joint distribution, or one for each set of masked positions."""
    generator = torch.Generator().manual_seed(seed)
    rows = 1 if consistent else 1 << length
    logits = spread * torch.randn((rows, 2**length), generator=generator, dtype=torch.float64)
    return TabularPolicy(logits, vocab_size=2, length=length)


def one_row(length: int, plan: list[int], seed: int, order: list[int] | None = None) -> Rollout:
    """Return a random completion whose free positions are revealed along a plan; the others are priors."""
    generator = np.random.default_rng(seed)
    free = generator.permutation(length)[: plan[0]] if order is None else np.array(order)
    unmask_step = np.full((1, length), -1, np.int32)
    unmask_step[0, free] = np.repeat(np.arange(len(plan)), -np.diff([*plan, 0]))
    return record(
        prompt_ids=np.zeros((1, 1), np.int64),
        prompt_length=np.ones(1, np.int32),
        token_ids=generator.integers(0, 2, (1, length)),
        unmask_step=unmask_step,
        uid=np.array([seed % 1000], np.uint64),
    )


def outcomes(design: Design, rows: Rollout, plan: list[int]) -> list[tuple[float, Masks]]:
    """Return the design's law for the row, as the masks of the likelihood."""
    free = np.flatnonzero(rows.unmask_step[0] >= 0)
    probability_O, mask_OPN, weight_OPN = law_arrays(design, plan)
    length = rows.unmask_step.shape[1]
    law = []
    for probability, mask_PN, weight_PN in zip(probability_O, mask_OPN, weight_OPN, strict=True):
        mask_PL, weight_PL = np.zeros((len(mask_PN), length), np.uint8), np.zeros((len(mask_PN), length), np.float32)
        mask_PL[:, free], weight_PL[:, free] = mask_PN, weight_PN
        law.append(
            (
                float(probability),
                Masks(
                    mask_PL=mask_PL,
                    weight_PL=weight_PL,
                    row_P=np.zeros(len(mask_PL), np.int32),
                    scored_RL=(rows.unmask_step >= 0).astype(np.uint8),
                    length_R=np.full(1, length, np.int32),
                ),
            )
        )
    return law


def log_probability(policy: TabularPolicy, rows: Rollout) -> float:
    """Return log p(free tokens | prior tokens) under one joint distribution."""
    logits_Y, completions_YL = policy.logits[0].detach(), policy.completions_YL
    fixed = torch.from_numpy(rows.unmask_step[0] < 0)
    tokens = torch.from_numpy(rows.token_ids[0])
    agree = ((completions_YL == tokens) | ~fixed).all(1)
    same = (completions_YL == tokens).all(1)
    return float(logits_Y[same].squeeze() - torch.logsumexp(logits_Y[agree], 0))


@settings(max_examples=25, deadline=None)
@given(plan=plans(4), extra=st.integers(0, 2), seed=SEEDS, consistent=st.booleans())
def test_a_score_table_is_the_policys_conditionals(plan, extra, seed, consistent):
    length = plan[0] + extra
    policy, rows = table_policy(length, seed, consistent=consistent), one_row(length, plan, seed)
    table = score_table(policy, rows, 0)
    free = np.flatnonzero(rows.unmask_step[0] >= 0)
    for m in range(1, 1 << len(free)):
        canvas = rows.token_ids[0].copy()
        masked = [i for i in range(len(free)) if m >> i & 1]
        canvas[free[masked]] = policy.mask_token_id
        want = policy.log_conditionals(torch.from_numpy(canvas)[None])[0].detach()
        for i in masked:
            assert table.score_MN[m, i] == pytest.approx(float(want[free[i], rows.token_ids[0, free[i]]]), abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5), extra=st.integers(0, 2), seed=SEEDS)
def test_one_token_per_step_on_one_joint_distribution_is_the_log_likelihood(n, extra, seed):
    """The plan ELBO is an equality where the order does not matter; merging steps only lowers it on average."""
    length, plan = n + extra, list(range(n, 0, -1))
    policy, rows = table_policy(length, seed, consistent=True), one_row(length, plan, seed)
    levels = exact_levels(score_table(policy, rows, 0))
    assert plan_elbo(levels, plan) == pytest.approx(log_probability(policy, rows), abs=1e-3)


@pytest.mark.parametrize("name", DESIGNS)
@settings(max_examples=6, deadline=None)
@given(plan=plans(3), extra=st.integers(0, 1), seed=SEEDS, consistent=st.booleans())
def test_value_and_gradient_of_an_unbiased_design_average_to_the_exact_ones(name, plan, extra, seed, consistent):
    n, length = plan[0], plan[0] + extra
    policy, rows = table_policy(length, seed, consistent=consistent, spread=1.0), one_row(length, plan, seed)
    design = Design(name, {"coupled": 2, "pairs": 2, "balanced": n, "bernoulli": 1}.get(name, 2 if n < 3 else 1))
    mean, mean_D = 0.0, 0.0
    for probability, masks in outcomes(design, rows, plan):
        value_R, gradient_D = value_and_gradient(policy, rows, masks, torch.ones(1))
        mean, mean_D = mean + probability * float(value_R[0]), mean_D + probability * gradient_D
    target = plan if design.target == "plan_elbo" else list(range(n, 0, -1))
    exact, exact_D = exact_gradient(policy, rows, 0, target)
    assert exact == pytest.approx(plan_elbo(exact_levels(score_table(policy, rows, 0)), target), abs=1e-5 * n)
    assert mean == pytest.approx(exact, abs=2e-5 * n)
    assert torch.allclose(mean_D, exact_D, atol=2e-5 * n)


def test_the_exact_gradient_is_the_derivative_of_the_plan_elbo():
    plan, rows = [3, 2], one_row(3, [3, 2], 5)
    policy = table_policy(3, 5, consistent=False)
    _, gradient_D = exact_gradient(policy, rows, 0, plan)
    step = 1e-2
    for at in range(0, policy.logits.numel(), 7):
        values = []
        for sign in (1, -1):
            moved = policy.logits.detach().clone()
            moved.view(-1)[at] += sign * step
            other = TabularPolicy(moved, vocab_size=2, length=3)
            values.append(plan_elbo(exact_levels(score_table(other, rows, 0)), plan))
        assert float(gradient_D[at]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 4), seed=SEEDS, beta=st.sampled_from([1.0, 1.5, 3.0]))
def test_over_all_masks_the_eubo_is_above_the_log_likelihood(n, seed, beta):
    plan = list(range(n, 0, -1))
    policy, rows = table_policy(n, seed, consistent=True), one_row(n, plan, seed)
    law = outcomes(Design("uniform_count", 1), rows, plan)
    everything = replace(
        law[0][1],
        mask_PL=np.concatenate([masks.mask_PL for _, masks in law]),
        weight_PL=np.concatenate([np.float32(p) * masks.weight_PL for p, masks in law]),
        row_P=np.zeros(len(law), np.int32),
    )
    elbo, eubo = token_bounds(pass_logprobs(policy, rows, everything), everything, beta=beta)
    exact = log_probability(policy, rows)
    assert float(elbo.detach().sum()) == pytest.approx(exact, abs=1e-3)
    assert float(eubo.detach().sum()) >= exact - 1e-3


# --- measured noise ---


def test_resampled_noise_is_the_enumerated_noise():
    plan, rows = [3, 2, 1], one_row(3, [3, 2, 1], 2)
    policy = table_policy(3, 2, consistent=False)
    values, gradients = [], []
    law = outcomes(Design("cover", 2), rows, plan)
    for _, masks in law:
        value_R, gradient_D = value_and_gradient(policy, rows, masks, torch.ones(1))
        values.append(float(value_R[0]))
        gradients.append(gradient_D)
    p = torch.tensor([probability for probability, _ in law], dtype=torch.float64)
    stacked = torch.stack(gradients)
    mean_D = p @ stacked
    trace = float(p @ (stacked - mean_D).square().sum(1))
    noise = gradient_noise(policy, rows, Estimator(Design("cover", 2), seed=3), draws=300, exact_D=mean_D)
    assert noise.value_MR.mean() == pytest.approx(float(p @ torch.tensor(values, dtype=torch.float64)), abs=0.1)
    assert noise.trace == pytest.approx(trace, rel=0.2)
    assert noise.signal == pytest.approx(float(mean_D @ mean_D), rel=0.1)
    assert noise.snr == pytest.approx(math.sqrt(noise.signal / noise.trace), rel=1e-6)
    cosines = torch.cosine_similarity(stacked, mean_D[None], dim=1)
    assert noise.cosine == pytest.approx(float(p @ cosines), abs=0.05)


@pytest.mark.parametrize(("name", "num_mc"), [("uniform_count", 1), ("cover", 2), ("coupled", 2), ("stp_paper", 2)])
def test_the_gram_of_all_masks_gives_a_designs_noise(name, num_mc):
    plan, rows = [3, 2], one_row(4, [3, 2], 6)
    policy = table_policy(4, 6, consistent=False)
    gram_MM = mask_gram(policy, rows, 0)
    _, exact_D = exact_gradient(policy, rows, 0, [3])
    assert gram_MM[7, 7] == pytest.approx(float(exact_D @ exact_D), rel=1e-5), "all masked"
    design = Design(name, num_mc)
    law = outcomes(design, rows, plan)
    p = torch.tensor([probability for probability, _ in law], dtype=torch.float64)
    stacked = torch.stack([value_and_gradient(policy, rows, masks, torch.ones(1))[1] for _, masks in law])
    trace = float(p @ (stacked - p @ stacked).square().sum(1)) * (9 if design.per_token else 1)
    assert gram_trace(gram_MM, design, plan, draws=20_000) == pytest.approx(trace, rel=0.05)


def test_the_gram_refuses_what_it_cannot_answer():
    rows, policy = one_row(3, [3, 2, 1], 2), table_policy(3, 2, consistent=True)
    gram_MM = mask_gram(policy, rows, 0)
    with pytest.raises(errors.InvalidValueError, match="unequal weights"):
        gram_trace(gram_MM, Design("ordered", 3), [3, 2], draws=50)
    long = one_row(9, list(range(9, 0, -1)), 1)
    with pytest.raises(errors.InvalidValueError, match="at most 8"):
        mask_gram(table_policy(9, 1, consistent=True), long, 0)
    with pytest.raises(errors.InvalidValueError, match="at most 12"):
        score_table(policy, one_row(13, list(range(13, 0, -1)), 1), 0)


def test_a_design_without_randomness_has_no_noise():
    rows = one_row(3, [3, 2, 1], 2)
    policy = table_policy(3, 2, consistent=True)
    noise = gradient_noise(policy, rows, Estimator(Design("mean_field", 1)), draws=3)
    assert (noise.trace, noise.snr) == (0.0, None)
    nothing = replace(rows, unmask_step=np.full((1, 3), -1, np.int32))
    empty = gradient_noise(policy, nothing, Estimator(Design("cover", 2)), draws=2)
    assert (empty.trace, empty.signal) == (0.0, 0.0)


def test_rows_of_a_batch_add_their_noise():
    rows = [one_row(3, [3, 2, 1], seed) for seed in (1, 2)]
    both = Rollout.concat(rows)
    policy = table_policy(3, 4, consistent=False)
    estimator, scale = Estimator(Design("cover", 2), seed=1), np.array([1.0, -2.0])
    alone = [
        gradient_noise(policy, r, estimator, draws=120, coefficient_R=c[None]) for r, c in zip(rows, scale, strict=True)
    ]
    together = gradient_noise(policy, both, estimator, draws=120, coefficient_R=scale)
    assert together.trace == pytest.approx(sum(noise.trace for noise in alone), rel=0.3)
    assert together.value_MR == pytest.approx(np.concatenate([noise.value_MR for noise in alone], 1), abs=1e-5)


# --- prunings of one rollout ---


def test_a_rollout_is_read_four_ways():
    pruned = one_row(6, [4, 3, 2], 3, order=[5, 0, 2, 3])
    tokens = {name: plans_of(as_pruned(pruned, name, 6))[0] for name in ("none", "spatial", "temporal", "both")}
    assert tokens == {
        "none": [6, 5, 4, 3, 2, 1],
        "spatial": [4, 3, 2, 1],
        "temporal": [6, 5, 4, 3],  # half of the tokens were committed together: of 6, the last 3
        "both": [4, 3, 2],
    }
    assert as_pruned(pruned, "both", 6).unmask_step.tolist() == pruned.unmask_step.tolist()
    spatial = as_pruned(pruned, "spatial", 6).unmask_step[0]
    assert spatial[[1, 4]].tolist() == [-1, -1], "anchors stay anchors"
    assert spatial[[5, 0, 2, 3]].tolist() == [0, 1, 2, 3], "what was revealed first stays first"


def test_sampled_levels_estimate_the_exact_ones(monkeypatch):
    rows = one_row(5, [5, 4, 3, 2, 1], 7)
    policy = table_policy(5, 7, consistent=False)
    exact, enumerated = row_levels(policy, rows, 0, temperature=1.0, seed=0)
    assert enumerated
    monkeypatch.setattr("stp_rs.eval.prunings.MAX_TOKENS", 4)
    monkeypatch.setattr("stp_rs.eval.prunings.ORDERS", 5000)
    monkeypatch.setattr("stp_rs.eval.prunings.EVERY", 5)
    sampled, enumerated = row_levels(policy, rows, 0, temperature=1.0, seed=0)
    assert not enumerated
    few = [1, 4, 5]  # at most five masks: all of them
    assert sampled.a[few] == pytest.approx(exact.a[few], abs=1e-6)
    assert sampled.v[few] == pytest.approx(exact.v[few], abs=1e-6)
    assert sampled.a == pytest.approx(exact.a, abs=0.1)
    assert sampled.v == pytest.approx(exact.v, rel=0.15, abs=1e-6)


# --- nothing pruned: the baseline, bit for bit ---


@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(["cover", "uniform_count", "systematic", "pairs", "sink"]),
    steps=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_an_empty_prior_and_no_temporal_rule_change_no_bit_of_masks_values_and_gradients(name, steps, seed):
    from stp_rs import encode_prompts, generate

    policy = tiny(seed=seed)
    prompts = encode_prompts([{"prompt": "01"}, {"prompt": "3"}], tokenizer(), uids=[seed, seed + 1])
    plain = generate(policy, prompts, Unmasking(steps), completion_length=8, seed=seed)
    pruned = generate(
        policy,
        prompts,
        Unmasking(steps, temporal="none"),
        completion_length=8,
        prior=PriorSet.empty(2).compose(PriorSet.empty(2)),
        seed=seed,
    )
    assert plain.token_ids.tolist() == pruned.token_ids.tolist()
    assert plain.unmask_step.tolist() == pruned.unmask_step.tolist()
    results = []
    for rollout, score_prior in ((plain, False), (pruned, True)):
        masks = draw_masks(Design(name, 2), rollout, seed=seed, score_prior=score_prior, diffusion_steps=steps)
        value = token_elbo(policy, rollout, masks)
        gradients = torch.autograd.grad(value.sum(), list(policy.module.parameters()), allow_unused=True)
        results.append((masks, value.detach(), gradients))
    (masks, value, gradients), (other_masks, other_value, other_gradients) = results
    assert masks.mask_PL.tobytes() == other_masks.mask_PL.tobytes()
    assert masks.weight_PL.tobytes() == other_masks.weight_PL.tobytes()
    assert torch.equal(value, other_value)
    for one, other in zip(gradients, other_gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_the_trainer_without_pruning_is_the_baseline_trainer_bit_for_bit(tmp_path):
    def reward(completions, **columns):
        return [float(text.count("1")) for text in completions]

    states = []
    for preset in ("elbo", "stp_spread"):
        scored = (
            {"stp_spatial": "none", "stp_temporal": "none", "stp_score_prior": True} if preset == "stp_spread" else {}
        )
        config = STPConfig(
            preset=preset,
            **scored,
            stp_design="uniform_count",
            output_dir=str(tmp_path / preset),
            max_completion_length=6,
            stp_rollouts=2,
            num_generations=4,
            per_device_train_batch_size=8,
        )
        assert config.stp_score_prior == (preset == "stp_spread"), PruningConfig.__doc__
        policy = tiny()
        STPTrainer(policy, reward, config, [{"prompt": d} for d in "0123"], processing_class=tokenizer()).train()
        states.append(policy.module.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    start = tiny().module.state_dict()
    assert not all(torch.equal(states[0][name], start[name]) for name in start), "something was learned"
