"""What the options of a loss do to an update of the trainer: each changes the gradient as its formula says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs import Design, draw_masks, token_elbo
from stp_rs.config.sections import LossConfig
from stp_rs.errors import ConfigError
from stp_rs.models.base import passes_without_dropout
from stp_rs.objective.bounds import pass_estimates
from stp_rs.objective.likelihood import token_estimates
from stp_rs.objective.loss import EXTREMES, LossInputs, policy_loss
from tests.fixtures import LENGTH, ones, tiny, trainer
from tests.invariant.test_updates import close, gradients_of_step, spied

SMALL = {"num_iterations": 1, "max_grad_norm": 0.0, "pruning": "none"}


def flat(gradients: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("preset", ["grpo", "trace", "just_grpo", "cj_grpo"])
def test_an_update_for_rewards_and_one_for_their_negatives_are_mirror_images(preset: str, tmp_path: Path):
    def negated(completions: list[str]) -> list[float]:
        return [-value for value in ones(completions)]

    options = {"preset": preset, "beta": 0.0, **SMALL}
    (good,) = gradients_of_step(trainer(tmp_path / "a", reward=ones, **options))
    (bad,) = gradients_of_step(trainer(tmp_path / "b", reward=negated, **options))
    assert float(torch.cosine_similarity(flat(good), flat(bad), 0)) == pytest.approx(-1.0, abs=1e-6)
    assert torch.allclose(flat(good), -flat(bad), atol=1e-7)


def test_presets_of_whole_elbos_weigh_negative_advantages_less_and_the_default_does_not(tmp_path: Path):
    """An ELBO is a lower bound: two updates of `stp_spread` are no mirror images, on purpose."""
    assert trainer(tmp_path / "a", preset="stp_spread").args.stp_negative_advantage_weight == 0.2
    made = trainer(tmp_path / "b")
    assert (made.args.preset, made.args.stp_negative_advantage_weight) == ("stp", 1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "cispo", "epsilon_high": 1.001},
        {"loss_type": "sapo"},
        {"loss_type": "vespo"},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.9},
        {"delta": 1.001},
        {"off_policy_mask_threshold": 0.0},
        {"use_bias_correction_kl": True, "beta": 0.5},
        {"top_entropy_quantile": 0.2},
        {"entropy_coef": 0.3},
        {"epsilon_high": 0.001},
        {"loss_type": "sapo", "sapo_temperature_pos": 5.0},
        {"loss_type": "sapo", "sapo_temperature_neg": 5.0},
        {"loss_type": "vespo", "vespo_k_pos": 9.0},
        {"loss_type": "vespo", "vespo_k_neg": 9.0},
        {"loss_type": "vespo", "vespo_lambda_pos": 9.0},
        {"loss_type": "vespo", "vespo_lambda_neg": 9.0},
    ],
    ids=str,
)
def test_each_option_reaches_the_update_it_is_about(options: dict[str, Any], tmp_path: Path):
    """The second update of a rollout batch differs from the one without the option, where the policy has moved."""
    common = {**SMALL, "preset": "grpo", "num_iterations": 3, "learning_rate": 2e-2, "epsilon": 0.01}
    own = dict(options)
    kind = own.pop("loss_type", None) if len(options) > 1 else None
    without = {**({"loss_type": kind} if kind else {}), **({"beta": 0.5} if "beta" in options else {})}
    if options.get("loss_type") == "luspo":
        without = {"importance_sampling_level": "sequence", "epsilon": 0.9}
    (*_, last), (*_, other) = (
        gradients_of_step(trainer(tmp_path / name, **{**common, **given}))
        for name, given in (("a", options), ("b", without))
    )
    assert not close(last, other, tolerance=1e-6)


def test_entropies_are_those_of_the_law(tmp_path: Path):
    """In every scored place by hand; the passes that score a token share its entropy, and NaN means that none did."""
    made = trainer(tmp_path, temperature=0.7, **SMALL)
    rollout = made.train_step().rollout
    allowed = torch.ones(len(made.tokenizer), dtype=torch.bool)
    allowed[5] = False
    masks = draw_masks(Design("uniform_count", 2), rollout, seed=3)
    options = {"temperature": 0.7, "allowed": allowed}
    with torch.no_grad(), passes_without_dropout(made.model):
        elbo, entropy = token_estimates(made.policy, rollout, masks, entropies="numbers", **options)
        logprob_PL, entropy_PL = pass_estimates(made.policy, rollout, masks, entropies="numbers", **options)
        assert torch.equal(elbo, token_elbo(made.policy, rollout, masks, **options))
        for p, row in enumerate(masks.row_P.tolist()):
            prompt = rollout.prompt_ids[row, : rollout.prompt_length[row]]
            shown = np.where(masks.mask_PL[p] == 1, made.policy.mask_token_id, rollout.token_ids[row])
            canvas = torch.from_numpy(np.concatenate([prompt, shown]))[None]
            logits = made.policy.head(made.policy.hidden(canvas, None)[0])[len(prompt) :] / 0.7
            logits[:, [5, made.policy.mask_token_id]] = -torch.inf
            expected = torch.distributions.Categorical(logits=logits).entropy()
            scored = torch.from_numpy(masks.weight_PL[p] != 0)
            assert torch.allclose(entropy_PL[p][scored], expected[scored], atol=1e-5)
            assert entropy_PL[p][~scored].isnan().all()
    for row in range(len(rollout)):
        own = entropy_PL[torch.from_numpy(masks.row_P == row)]
        assert torch.allclose(entropy[row], own.nanmean(0), atol=1e-6, equal_nan=True)
    assert entropy.isnan().any()
    assert torch.allclose(logprob_PL.nan_to_num(0) != 0, torch.from_numpy(masks.weight_PL != 0))


def test_gradients_flow_through_entropies_where_they_are_asked_for(tmp_path: Path):
    made = trainer(tmp_path, **SMALL)
    rollout = made.train_step().rollout
    masks = draw_masks(Design("uniform_count", 1), rollout, seed=0)
    with passes_without_dropout(made.model):
        _, plain = token_estimates(made.policy, rollout, masks, entropies="numbers")
        _, entropy = token_estimates(made.policy, rollout, masks, entropies="gradient")
        assert not plain.requires_grad
        total = entropy.nansum()
        parameter = made.model.cls.predictions.bias
        (gradient,) = torch.autograd.grad(total, parameter)
        assert torch.isfinite(gradient).all()
        step = 1e-2
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter[4] += sign * step
                values.append(float(token_estimates(made.policy, rollout, masks, entropies="numbers")[1].nansum()))
                parameter[4] -= sign * step
    assert float(gradient[4]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2)


def test_an_entropy_bonus_keeps_a_policy_from_settling(tmp_path: Path):
    """Over some steps: the entropy of the same run is higher with a bonus, and lower with a penalty."""
    last = {}
    for coefficient in (-1.0, 0.0, 1.0):
        made = trainer(
            tmp_path / str(coefficient), preset="grpo", entropy_coef=coefficient, stp_rollouts=12, num_iterations=2
        )
        last[coefficient] = [made.train_step().metrics["entropy"] for _ in range(12)][-1]
    assert last[-1.0] < last[0.0] < last[1.0]


def test_the_entropy_bonus_counts_completions_without_an_advantage(tmp_path: Path):
    def equal(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    made = trainer(tmp_path / "a", reward=equal, entropy_coef=0.5, **SMALL)
    (gradient,) = gradients_of_step(made)
    assert float(flat(gradient).abs().max()) > 1e-4
    assert made.ledger.forwards["backward"] > 0


@pytest.mark.parametrize(
    "options", [{"entropy_coef": 0.5}, {"top_entropy_quantile": 0.4}, {"entropy_coef": 0.5, "stp_bound": "mixture"}]
)
def test_constant_memory_gives_the_same_gradient_with_entropies(options: dict[str, Any], tmp_path: Path):
    whole = trainer(tmp_path / "a", num_mc=3, **SMALL, **options)
    parts = trainer(tmp_path / "b", num_mc=3, stp_constant_memory=True, stp_forward_batch_size=3, **SMALL, **options)
    (one,), (other,) = gradients_of_step(whole), gradients_of_step(parts)
    assert float(flat(one).abs().max()) > 1e-4
    assert close(one, other)


def test_the_entropy_bonus_does_not_depend_on_micro_batches(tmp_path: Path):
    gradients = []
    for size, parts in ((8, 1), (4, 2), (2, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts, "entropy_coef": 0.5}
        (gradient,) = gradients_of_step(trainer(tmp_path / str(size), preset="grpo", **SMALL, **options))
        gradients.append(gradient)
    assert close(gradients[0], gradients[1], 1e-5)
    assert close(gradients[0], gradients[2], 1e-5)


@pytest.mark.parametrize("cut", [{"min_p": 0.3}, {"top_p": 0.6}, {"top_k": 3}])
def test_a_law_that_is_cut_is_scored_whole_in_every_iteration(cut: dict[str, Any], tmp_path: Path):
    """What the rollout recorded is the cut law's: the old estimate is made again, and the ratio is 1."""
    made = trainer(tmp_path, preset="grpo", num_iterations=2, learning_rate=0.0, **cut)
    assert made.args.min_p == cut.get("min_p")
    assert made.train_step().metrics["diffusion/ratio_max"] == pytest.approx(1.0, abs=1e-6)


def test_min_p_draws_fewer_tokens(tmp_path: Path):
    plain, cut = (trainer(tmp_path / str(p), min_p=p, temperature=2.0).train_step().rollout for p in (None, 0.999))
    assert len(np.unique(cut.token_ids)) < len(np.unique(plain.token_ids))


# --- completions that were cut off ---


def ends_of(rollout: Any) -> np.ndarray:
    return (rollout.token_ids == 2).any(1)


@pytest.mark.parametrize("kind", ["grpo", "dapo", "bnpo"])
def test_truncated_completions_are_left_out_of_the_loss_and_not_of_the_baseline(kind: str, tmp_path: Path):
    options = {**SMALL, "preset": "grpo", "loss_type": kind, "beta": 0.1, "per_device_train_batch_size": 16}
    made = trainer(tmp_path, mask_truncated_completions=True, **options)
    with spied("policy_loss") as losses, spied("draw_masks") as draws:
        result = made.train_step()
    ended = ends_of(result.rollout)
    assert 0 < ended.sum() < len(ended)
    (batch,) = (args[1] for args, _, _ in draws)
    assert sorted(batch.uid.tolist()) == sorted(result.rollout.uid[ended].tolist())
    (inputs, *_), kwargs, _ = losses[0]
    assert kwargs["num_completions"] == 16, "as in TRL, they count as completions of no tokens"
    assert kwargs["num_tokens"] == ended.sum() * LENGTH
    rewards = np.array(result.rewards)
    centred = rewards - rewards.reshape(-1, 4).mean(1).repeat(4)
    assert np.sign(inputs.advantages_R.numpy()).tolist() == np.sign(np.round(centred[ended], 6)).tolist()
    assert result.metrics["completions/clipped_ratio"] == pytest.approx(1 - ended.mean())


def test_a_batch_of_truncated_completions_moves_nothing(tmp_path: Path):
    model = tiny()
    with torch.no_grad():
        model.module.cls.predictions.bias[2] = -50.0  # end of text is never drawn
    for kind in ("grpo", "dapo"):
        made = trainer(tmp_path / kind, model, mask_truncated_completions=True, preset="grpo", loss_type=kind, beta=0.1)
        before = [p.clone() for p in model.module.parameters()]
        assert made.train_step().metrics["completions/clipped_ratio"] == 1.0
        assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


# --- metrics ---


def test_extremes_of_a_step_are_extremes_and_not_means_of_them(tmp_path: Path):
    options = {
        "num_iterations": 3,
        "learning_rate": 2e-2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
    }
    made = trainer(tmp_path, preset="grpo", epsilon=0.01, **options)
    with spied("policy_loss") as losses:
        metrics = made.train_step().metrics
    for name, extreme in ((n, e) for n, e in EXTREMES.items() if n in losses[0][2][1]):
        values = [float(m[name]) for _, _, (_, m) in losses]
        assert len(set(values)) > 1, name
        assert metrics[name] == pytest.approx(extreme(values))
    assert metrics["diffusion/ratio_max"] > np.mean([float(m["diffusion/ratio_max"]) for _, _, (_, m) in losses])


def test_clip_metrics_are_extremes_over_completions():
    tensor = torch.tensor
    given = LossInputs(
        new_RL=tensor([[1.3, 1.0], [1.3, 1.3], [0.5, 1.0]]).log(),
        old_RL=torch.zeros(3, 2),
        advantages_R=tensor([1.0, 1.0, -1.0]),
        scored_RL=tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
    )
    config = LossConfig(importance_sampling_level="token")
    _, metrics = policy_loss(given, config, num_completions=3)
    assert float(metrics["clip_ratio/high_mean"]) == pytest.approx(2 / 5)
    assert float(metrics["clip_ratio/high_max"]) == 1.0
    assert float(metrics["clip_ratio/low_min"]) == 0.0
    _, narrow = policy_loss(given, replace(config, delta=1.25, epsilon=0.28), num_completions=3)
    assert float(narrow["clip_ratio/high_mean"]) == 0.0, "what delta bounds is not above the range, as in TRL"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "cispo", "stp_objective": "reinforce"}, "loss_type cispo: is an objective of its own"),
        (
            {"loss_type": "luspo", "importance_sampling_level": "token"},
            "loss_type luspo: needs importance_sampling_level",
        ),
        ({"loss_type": "sapo", "delta": 2.0}, "delta: bounds the ratio of stp_objective clip"),
        ({"stp_objective": "reinforce", "delta": 2.0}, "delta: bounds the ratio"),
        ({"stp_objective": "linear", "top_entropy_quantile": 0.5}, "top_entropy_quantile: needs values per token"),
        ({"top_entropy_quantile": 1.5}, "top_entropy_quantile: got 1.5"),
        ({"delta": 0.0}, "delta: got 0"),
        ({"vespo_k_pos": -1.0}, "vespo_k_pos: got -1"),
        ({"sapo_temperature_pos": 0.0}, "sapo_temperature_pos: got 0"),
        ({"off_policy_mask_threshold": -1.0}, "off_policy_mask_threshold: got -1"),
    ],
)
def test_options_that_contradict_each_other_are_named(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, **options)
