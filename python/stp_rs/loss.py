"""Policy losses: from likelihood estimates and advantages to a scalar and its metrics.

Shapes: R completions, L completion length. A "token" is a scored completion position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stp_rs.config import LossConfig


@dataclass(frozen=True)
class LossInputs:
    """What a policy loss reads."""

    new_RL: Tensor
    """Token estimates of the policy, with gradient."""
    old_RL: Tensor
    """The same under the policy that made the rollouts (the same masks: common random numbers)."""
    advantages_R: Tensor
    scored_RL: Tensor
    """1 where a token is scored, float."""
    ref_RL: Tensor | None = None
    """The same under the reference; None where beta is 0."""


def policy_loss(inputs: LossInputs, config: LossConfig, *, num_completions: int) -> tuple[Tensor, dict[str, float]]:
    """Return (loss, metrics) of one micro-batch.

    Token level (GRPO, arXiv 2402.03300, eq. 3; arXiv 2602.08905): ratios exp(new_i - old_i) per token, averaged over a
    completion's tokens. Sequence level (GSPO arXiv 2507.18071, ESPO arXiv 2512.03759): one ratio
    exp((L_new - L_old) / n). Both clipped to [1 - epsilon, 1 + epsilon_high]; completions with a negative advantage
    count `stp_negative_advantage_weight`.

    Args:
        inputs: estimates, advantages and scored positions.
        config: the loss section.
        num_completions: completions of the whole update, all micro-batches together: micro-batch losses add up to the
            full-batch loss.
    """
    length_R = inputs.scored_RL.sum(-1).clamp(min=1.0)
    gap_RL = (inputs.new_RL - inputs.old_RL) * inputs.scored_RL
    if config.importance_sampling_level == "sequence":
        ratio = torch.exp(gap_RL.sum(-1, keepdim=True) / length_R[:, None])
    else:
        ratio = torch.exp(gap_RL)
    low, high = 1.0 - config.epsilon, 1.0 + (config.epsilon_high or config.epsilon)
    advantages_R1 = inputs.advantages_R[:, None]
    surrogate = torch.minimum(ratio * advantages_R1, ratio.clamp(low, high) * advantages_R1)
    weight_R = torch.where(inputs.advantages_R < 0, config.stp_negative_advantage_weight, 1.0)
    per_completion_R = _mean_tokens(surrogate, inputs.scored_RL, length_R) * (inputs.scored_RL.sum(-1) > 0)
    loss = -(weight_R * per_completion_R).sum() / num_completions
    metrics = _clip_metrics(ratio.detach(), advantages_R1, (low, high), inputs.scored_RL)
    if inputs.ref_RL is not None:
        kl_R = _kl(inputs, config, length_R)
        loss = loss + config.beta * kl_R.sum() / num_completions
        metrics["kl"] = float(kl_R.detach().mean())
    return loss, metrics


def kl_terms(log_ratio: Tensor, kind: str) -> Tensor:
    """Return an estimate of KL(policy, reference) per sample from log_ratio = log policy - log reference.

    k1 = r, k2 = r^2 / 2, k3 = exp(-r) - 1 + r (Schulman 2020, "Approximating KL divergence").
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    return torch.exp(-log_ratio) - 1.0 + log_ratio


def _kl(inputs: LossInputs, config: LossConfig, length_R: Tensor) -> Tensor:
    assert inputs.ref_RL is not None  # noqa: S101 - the caller checked; this tells the type checker
    gap_RL = (inputs.new_RL - inputs.ref_RL) * inputs.scored_RL
    if config.importance_sampling_level == "sequence":
        return kl_terms(gap_RL.sum(-1) / length_R, config.stp_kl)
    return _mean_tokens(kl_terms(gap_RL, config.stp_kl), inputs.scored_RL, length_R)


def _mean_tokens(value: Tensor, scored_RL: Tensor, length_R: Tensor) -> Tensor:
    if value.shape[-1] == 1 and scored_RL.shape[-1] != 1:
        return value.squeeze(-1)
    return (value * scored_RL).sum(-1) / length_R


def _clip_metrics(
    ratio: Tensor, advantages_R1: Tensor, bounds: tuple[float, float], scored_RL: Tensor
) -> dict[str, float]:
    used = torch.ones_like(ratio) if ratio.shape[-1] == 1 else scored_RL
    count = used.sum().clamp(min=1.0)
    low = (((ratio < bounds[0]) & (advantages_R1 < 0)) * used).sum() / count
    high = (((ratio > bounds[1]) & (advantages_R1 > 0)) * used).sum() / count
    largest = (ratio * used).max() if ratio.numel() else torch.ones(())
    return {
        "clip_ratio/low_mean": float(low),
        "clip_ratio/high_mean": float(high),
        "clip_ratio/region_mean": float(low + high),
        "diffusion/ratio_max": float(largest),
    }
