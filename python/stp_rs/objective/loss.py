"""Policy losses: from likelihood estimates and advantages to a scalar and its metrics.

A loss is a mean over completions of a value per completion: `stp_objective` says which value, `loss_type` which mean.

Shapes: R completions, L completion length, P passes. A "token" is a scored completion position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stp_rs.config.sections import LossConfig
from stp_rs.errors import InvalidValueError


@dataclass(frozen=True)
class Passes:
    """What BGPO's bound reads: the estimate of each pass alone, per token, f32 [P]; a row's estimate is their mean."""

    new_P: Tensor
    old_P: Tensor
    row_P: Tensor
    """The completion of each pass, i64."""


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
    share_RL: Tensor | None = None
    """What each token counts in its completion's mean; None is 1 / n at the n scored tokens. Published designs whose
    weights make a mean per token put those weights here (`UniGRPO`: 1 / |M| on masked tokens)."""
    passes: Passes | None = None
    """Read by the objective `linear` only."""


def policy_loss(
    inputs: LossInputs,
    config: LossConfig,
    *,
    num_completions: int,
    num_tokens: float | None = None,
    mean_ratio: float | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return (loss, metrics) of one micro-batch: minus the weighted mean of the completions' values, plus beta KL.

    A completion's value, with A its advantage, n its tokens, L_hat its estimate, r = exp((L_new - L_old) / n) its
    ratio at sequence level (GSPO arXiv 2507.18071, ESPO arXiv 2512.03759) or r_i per token (GRPO, arXiv 2402.03300):

    - `clip`: min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), at token level the mean over tokens;
    - `reinforce`: A L_hat / n (SPG, arXiv 2510.09541; with softmax advantages wd1, arXiv 2507.08838);
    - `stable`: w A L_hat / (n mean w), w = clip(r) without gradient: clipped whatever the sign of A, and
      self-normalised (StableDRL, arXiv 2603.06743);
    - `linear`: the mean over passes of (1 + d_k) A where A >= 0, of exp(d_k) A elsewhere, d_k = the pass's own
      log-ratio (BGPO, arXiv 2510.11683, with length-normalised ratios): a lower bound of r A that is linear in passes.

    Completions with a negative advantage count `stp_negative_advantage_weight`.

    Args:
        inputs: estimates, advantages and scored positions.
        config: the loss section.
        num_completions: completions of the whole update, all micro-batches together: micro-batch losses add up to the
            full-batch loss (but for loss_type bnpo, whose mean is each micro-batch's own).
        num_tokens: scored tokens of the whole update; loss_type dapo needs it.
        mean_ratio: mean clipped ratio of the update's completions with an advantage, for `stable`; None takes this
            micro-batch's.
    """
    share_RL = inputs.share_RL if inputs.share_RL is not None else _even_share(inputs.scored_RL)
    mean_R = _completion_weights(inputs.scored_RL, config, num_completions, num_tokens)
    log_ratio_RL = _masked(inputs.new_RL - inputs.old_RL, share_RL)
    if config.importance_sampling_level == "sequence":
        log_ratio_RL = (log_ratio_RL * share_RL).sum(-1, keepdim=True)
    ratio = torch.exp(log_ratio_RL)
    low, high = 1.0 - config.epsilon, 1.0 + (config.epsilon_high or config.epsilon)
    advantages_R1 = inputs.advantages_R[:, None]
    if config.stp_objective == "clip":
        surrogate = torch.minimum(ratio * advantages_R1, ratio.clamp(low, high) * advantages_R1)
        value_R = _mean_tokens(surrogate, share_RL)
    elif config.stp_objective == "linear":
        value_R = _linear_bound(inputs)
    else:
        value_R = inputs.advantages_R * _mean_tokens(_masked(inputs.new_RL, share_RL), share_RL)
        if config.stp_objective == "stable":
            clipped_R = ratio.detach().clamp(low, high).squeeze(-1)
            used_R = inputs.advantages_R != 0
            own = (clipped_R * used_R).sum() / used_R.sum().clamp(min=1)
            value_R = value_R * clipped_R / (own if mean_ratio is None else mean_ratio)
    weight_R = torch.where(inputs.advantages_R < 0, config.stp_negative_advantage_weight, 1.0)
    weight_R = weight_R * mean_R * (inputs.scored_RL.sum(-1) > 0)
    loss = -(weight_R * value_R).sum()
    metrics = _clip_metrics(ratio.detach(), advantages_R1, (low, high), inputs.scored_RL)
    if inputs.ref_RL is not None:
        kl_R = _kl(inputs.new_RL, inputs.ref_RL, share_RL, config)
        loss = loss + config.beta * (mean_R * kl_R).sum()
        metrics["kl"] = float(kl_R.detach().mean())
    return loss, metrics


def clipped_ratio_sum(inputs: LossInputs, config: LossConfig) -> float:
    """Return the sum of the clipped ratios of completions with an advantage: `stable` divides by their mean."""
    share_RL = inputs.share_RL if inputs.share_RL is not None else _even_share(inputs.scored_RL)
    log_ratio_R = (_masked(inputs.new_RL - inputs.old_RL, share_RL) * share_RL).sum(-1)
    high = 1.0 + (config.epsilon_high or config.epsilon)
    return float((torch.exp(log_ratio_R).clamp(1.0 - config.epsilon, high) * (inputs.advantages_R != 0)).sum())


def kl_terms(log_ratio: Tensor, kind: str) -> Tensor:
    """Return an estimate of KL(policy, reference) per sample from log_ratio = log policy - log reference.

    k1 = r, k2 = r^2 / 2, k3 = exp(-r) - 1 + r (Schulman 2020, "Approximating KL divergence").
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    return torch.exp(-log_ratio) - 1.0 + log_ratio


def _kl(new_RL: Tensor, ref_RL: Tensor, share_RL: Tensor, config: LossConfig) -> Tensor:
    gap_RL = _masked(new_RL - ref_RL, share_RL)
    if config.importance_sampling_level == "sequence":
        return kl_terms((gap_RL * share_RL).sum(-1), config.stp_kl)
    return _mean_tokens(kl_terms(gap_RL, config.stp_kl), share_RL)


def _completion_weights(
    scored_RL: Tensor, config: LossConfig, num_completions: int, num_tokens: float | None
) -> Tensor:
    """Return what each completion's value counts in the loss [R], as TRL's loss_type of this name has it."""
    tokens_R = scored_RL.sum(-1)
    if config.loss_type == "dr_grpo":
        return tokens_R / (num_completions * scored_RL.shape[-1])
    if config.loss_type == "bnpo":
        return tokens_R / tokens_R.sum().clamp(min=1.0) * (len(tokens_R) / num_completions)
    if config.loss_type == "dapo":
        if num_tokens is None:
            raise InvalidValueError("num_tokens: got None, needs the scored tokens of the whole update for dapo")
        return tokens_R / max(num_tokens, 1.0)
    return torch.full_like(tokens_R, 1.0 / num_completions)


def _linear_bound(inputs: LossInputs) -> Tensor:
    if inputs.passes is None:
        raise InvalidValueError("passes: got None, needs the estimates of each pass for the objective linear")
    passes = inputs.passes
    advantages_P = inputs.advantages_R[passes.row_P]
    gap_P = passes.new_P - passes.old_P
    term_P = torch.where(advantages_P >= 0, 1.0 + gap_P, torch.exp(gap_P)) * advantages_P
    zero_R = torch.zeros_like(inputs.advantages_R)
    count_R = zero_R.index_add(0, passes.row_P, torch.ones_like(advantages_P))
    return zero_R.index_add(0, passes.row_P, term_P) / count_R.clamp(min=1.0)


def _even_share(scored_RL: Tensor) -> Tensor:
    return scored_RL / scored_RL.sum(-1, keepdim=True).clamp(min=1.0)


def _masked(value_RL: Tensor, share_RL: Tensor) -> Tensor:
    """Return 0 where nothing counts: what stands there need not be finite."""
    return torch.where(share_RL > 0, value_RL, 0.0)


def _mean_tokens(value: Tensor, share_RL: Tensor) -> Tensor:
    if value.shape[-1] == 1 and share_RL.shape[-1] != 1:
        return value.squeeze(-1)
    return (value * share_RL).sum(-1)


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
