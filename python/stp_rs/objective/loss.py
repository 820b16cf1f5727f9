"""Policy losses: from likelihood estimates and advantages to a scalar and its metrics.

A loss is a mean over completions of a value per completion. An `Objective` is that value with all that follows from it
(`OBJECTIVES`, by `stp_objective`); a `LossType` is the mean, and an objective of its own where it has one (`LOSSES`, by
`loss_type`). No other file asks for the name of one.

Shapes: R completions, L completion length, P passes. A "token" is a scored completion position.
"""

import math
from collections.abc import Callable, Mapping
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
    step_RL: Tensor | None = None
    """The step that revealed each token, i64, negative where none did; read by ratios per step."""
    advantages_RL: Tensor | None = None
    """Advantages of tokens, in place of their completion's (EGSPO's stepwise ones)."""
    entropy_RL: Tensor | None = None
    """Entropy of the policy at each token, in nats, with gradient where `entropy_coef` asks for one; NaN where no pass
    masked the token."""


@dataclass(frozen=True)
class _Terms:
    """What the value of a completion is made of."""

    inputs: LossInputs
    new_RL: Tensor
    log_ratio_RL: Tensor
    """Log-ratios per token, 0 where nothing counts."""
    ratio: Tensor
    """[R, L], or [R, 1] at sequence level."""
    share_RL: Tensor
    kept_RL: Tensor | None
    """1 at the tokens whose entropy is high enough; None where all count."""
    mean_ratio: Tensor | float | None

    @property
    def advantages_R1(self) -> Tensor:
        own_RL = self.inputs.advantages_RL
        return self.inputs.advantages_R[:, None] if own_RL is None else own_RL

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over tokens [R] of values [R, L], or of one value [R, 1] for all tokens."""
        share_RL = self.share_RL if self.kept_RL is None else self.share_RL * self.kept_RL
        if value.shape[-1] == 1 and share_RL.shape[-1] != 1:
            return value.squeeze(-1) if self.kept_RL is None else value.squeeze(-1) * share_RL.sum(-1)
        return (value * share_RL).sum(-1)


def clip_range(config: LossConfig) -> tuple[float, float]:
    """Return the bounds of a clipped ratio."""
    return 1.0 - config.epsilon, 1.0 + _epsilon_high(config)


def _epsilon_high(config: LossConfig) -> float:
    return config.epsilon if config.epsilon_high is None else config.epsilon_high


def _clip(terms: _Terms, config: LossConfig) -> Tensor:
    ratio, advantages_R1 = terms.ratio, terms.advantages_R1
    bounded = ratio if config.delta is None else ratio.clamp(max=config.delta)
    return terms.mean(torch.minimum(bounded * advantages_R1, ratio.clamp(*clip_range(config)) * advantages_R1))


def _reinforce(terms: _Terms, config: LossConfig) -> Tensor:
    del config
    return terms.inputs.advantages_R * terms.mean(terms.new_RL)


def _stable(terms: _Terms, config: LossConfig) -> Tensor:
    clipped_R = terms.ratio.detach().clamp(*clip_range(config)).squeeze(-1)
    used_R = terms.inputs.advantages_R != 0
    own = (clipped_R * used_R).sum() / used_R.sum().clamp(min=1)
    return _reinforce(terms, config) * clipped_R / (own if terms.mean_ratio is None else terms.mean_ratio)


def _linear(terms: _Terms, config: LossConfig) -> Tensor:
    del config
    passes, advantages_R = terms.inputs.passes, terms.inputs.advantages_R
    if passes is None:
        raise InvalidValueError("passes: got None, needs the estimates of each pass for the objective linear")
    advantages_P = advantages_R[passes.row_P]
    gap_P = passes.new_P - passes.old_P
    term_P = torch.where(advantages_P >= 0, 1.0 + gap_P, torch.exp(gap_P)) * advantages_P
    zero_R = torch.zeros_like(advantages_R)
    count_R = zero_R.index_add(0, passes.row_P, torch.ones_like(advantages_P))
    return zero_R.index_add(0, passes.row_P, term_P) / count_R.clamp(min=1.0)


def _distil(terms: _Terms, config: LossConfig) -> Tensor:
    tokens_R = terms.inputs.scored_RL.sum(-1)
    low, high = (math.log(bound) for bound in clip_range(config))
    whole_R = tokens_R * (terms.log_ratio_RL * terms.share_RL).sum(-1)
    gap_R = whole_R.clamp(low, high) / tokens_R.clamp(min=1.0)
    return -((gap_R - config.stp_guidance * terms.inputs.advantages_R) ** 2)


def _cispo(terms: _Terms, config: LossConfig) -> Tensor:
    weight = terms.ratio.detach().clamp(max=_epsilon_high(config))
    return terms.inputs.advantages_R * terms.mean(weight * terms.new_RL)


def _sapo(terms: _Terms, config: LossConfig) -> Tensor:
    positive_R1 = terms.advantages_R1 > 0
    tau_R1 = torch.where(positive_R1, config.sapo_temperature_pos, config.sapo_temperature_neg)
    gate = torch.sigmoid(tau_R1 * (terms.ratio - 1.0)) * 4.0 / tau_R1
    return terms.mean(gate * terms.advantages_R1)


def _vespo(terms: _Terms, config: LossConfig) -> Tensor:
    return gamma_weights(terms, config) * _reinforce(terms, config)


_LOG_WEIGHT = (math.log(1e-8), 20.0)
"""Bounds of a completion's log-ratio in VESPO, as published."""


@torch.no_grad()
def gamma_weights(terms: _Terms, config: LossConfig) -> Tensor:
    """Return VESPO's weights [R]: w^k exp(lambda (1 - w)) of the ratio w of whole completions, 1 at w = 1."""
    tokens_R = terms.inputs.scored_RL.sum(-1)
    log_w_R = tokens_R * (terms.log_ratio_RL.clamp(-20.0, 20.0) * terms.share_RL).sum(-1)
    log_w_R = log_w_R.clamp(*_LOG_WEIGHT)
    good_R = terms.inputs.advantages_R >= 0
    k_R = torch.where(good_R, config.vespo_k_pos, config.vespo_k_neg)
    lambda_R = torch.where(good_R, config.vespo_lambda_pos, config.vespo_lambda_neg).clamp(min=1e-4)
    return torch.exp(lambda_R + k_R * log_w_R - lambda_R * log_w_R.exp())


Value = Callable[[_Terms, LossConfig], Tensor]
Logged = Callable[[_Terms, LossConfig], dict[str, Tensor]]
EXTREMES: Mapping[str, Callable[[list[float]], float]] = {
    "diffusion/ratio_max": max,
    "clip_ratio/high_max": max,
    "clip_ratio/low_min": min,
    "num_tokens": max,
}
"""Metrics whose value for several micro-batches or updates is an extreme; for the others it is the mean."""


def _clip_metrics(terms: _Terms, config: LossConfig) -> dict[str, Tensor]:
    ratio, scored_RL, advantages_R1 = terms.ratio.detach(), terms.inputs.scored_RL, terms.advantages_R1
    low, high = clip_range(config)
    bounded = ratio if config.delta is None else ratio.clamp(max=config.delta)
    below, above = (bounded < low) & (advantages_R1 < 0), (bounded > high) & (advantages_R1 > 0)
    counted = scored_RL if below.shape == scored_RL.shape else torch.ones_like(ratio)
    share = counted / counted.sum(-1, keepdim=True).clamp(min=1.0)
    metrics = {
        "clip_ratio/low_mean": _token_mean(below.float(), scored_RL),
        "clip_ratio/high_mean": _token_mean(above.float(), scored_RL),
        "clip_ratio/region_mean": _token_mean((below | above).float(), scored_RL),
    }
    if ratio.numel():
        metrics["clip_ratio/low_min"] = (below * share).sum(-1).min()
        metrics["clip_ratio/high_max"] = (above * share).sum(-1).max()
    return metrics


def _cispo_metrics(terms: _Terms, config: LossConfig) -> dict[str, Tensor]:
    over = (terms.ratio.detach() > _epsilon_high(config)) & (terms.advantages_R1 > 0)
    return {"cispo_clip_ratio": _token_mean(over.float(), terms.inputs.scored_RL)}


def _vespo_metrics(terms: _Terms, config: LossConfig) -> dict[str, Tensor]:
    return {"vespo/phi_seq_mean": _token_mean(gamma_weights(terms, config)[:, None], terms.inputs.scored_RL)}


def _nothing(terms: _Terms, config: LossConfig) -> dict[str, Tensor]:
    del terms, config
    return {}


@dataclass(frozen=True)
class Objective:
    """The value of each completion in the loss, and what follows from it."""

    value: Value
    """Its value [R]."""
    metrics: Logged = _clip_metrics
    """What is logged about ratios, under TRL's names."""
    reads_old: bool = True
    """Whether it has a ratio to the policy that drew the completions."""
    reads_passes: bool = False
    """Whether it reads the estimate of each pass alone (`LossInputs.passes`)."""
    trains_zero: bool = False
    """Whether a completion of advantage 0 has a gradient."""
    logs_zero: bool = False
    """Whether what it logs reads the ratio of such a completion."""
    reads_mean_ratio: bool = False
    """Whether it divides by the mean clipped ratio of the whole update (`policy_loss(mean_ratio=...)`)."""


OBJECTIVES: Mapping[str, Objective] = {
    "clip": Objective(_clip),
    "reinforce": Objective(_reinforce, reads_old=False),
    "stable": Objective(_stable, reads_mean_ratio=True),
    "linear": Objective(_linear, reads_passes=True),
    "distil": Objective(_distil, _nothing, trains_zero=True),
}
"""`stp_objective` -> what it is."""


@dataclass(frozen=True)
class _Over:
    """What a mean is over: the whole update (its scored tokens where they are known), and the canvas."""

    num_completions: int
    num_tokens: float | None
    length: int
    loss_type: str


def _by_completion(tokens_R: Tensor, over: _Over) -> Tensor:
    return torch.full_like(tokens_R, 1.0 / over.num_completions)


def _by_length(tokens_R: Tensor, over: _Over) -> Tensor:
    return tokens_R / over.num_completions


def _by_canvas(tokens_R: Tensor, over: _Over) -> Tensor:
    return tokens_R / (over.num_completions * over.length)


def _by_micro_batch(tokens_R: Tensor, over: _Over) -> Tensor:
    return tokens_R / tokens_R.sum().clamp(min=1.0) * (len(tokens_R) / over.num_completions)


def _by_update(tokens_R: Tensor, over: _Over) -> Tensor:
    if over.num_tokens is None:
        raise InvalidValueError(
            f"num_tokens: got None, needs the scored tokens of the whole update for {over.loss_type}"
        )
    return tokens_R / max(over.num_tokens, 1.0)


@dataclass(frozen=True)
class LossType:
    """The mean over completions that a loss is, and its objective where that is a part of the definition."""

    weigh: Callable[[Tensor, _Over], Tensor]
    """Scored tokens [R] -> what each completion counts [R]."""
    objective: Objective | None = None


LOSSES: Mapping[str, LossType] = {
    "grpo": LossType(_by_completion),
    "dr_grpo": LossType(_by_canvas),
    "bnpo": LossType(_by_micro_batch),
    "dapo": LossType(_by_update),
    "luspo": LossType(_by_length),
    "sapo": LossType(_by_completion, Objective(_sapo, _nothing)),
    "cispo": LossType(_by_update, Objective(_cispo, _cispo_metrics)),
    "vespo": LossType(_by_update, Objective(_vespo, _vespo_metrics, logs_zero=True)),
}
"""`loss_type` -> what it is."""


def objective_of(config: LossConfig) -> Objective:
    """Return the objective of a configuration: its loss type's own, else the one that `stp_objective` names."""
    return LOSSES[config.loss_type].objective or OBJECTIVES[config.stp_objective]


def reads_old(config: LossConfig) -> bool:
    """Return whether a loss reads the old policy's estimates."""
    kl = config.beta > 0 and (config.stp_kl_target == "old" or config.use_bias_correction_kl)
    return objective_of(config).reads_old or kl or config.off_policy_mask_threshold is not None


def reads_entropy(config: LossConfig) -> bool:
    """Return whether a loss reads entropies; it then reads those of every completion."""
    return config.entropy_coef != 0.0 or config.top_entropy_quantile < 1.0


def policy_loss(
    inputs: LossInputs,
    config: LossConfig,
    *,
    num_completions: int,
    num_tokens: float | None = None,
    mean_ratio: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return (loss, metrics) of one micro-batch: minus the weighted mean of the completions' values, plus beta KL.

    A completion's value, with A its advantage, n its tokens, L_hat its estimate, r = exp((L_new - L_old) / n) its
    ratio at sequence level (GSPO arXiv 2507.18071, ESPO arXiv 2512.03759), r_i per token (GRPO, arXiv 2402.03300), or
    the product of r_i over the tokens of a step (EGSPO, arXiv 2603.12554), which all of them then have:

    - `clip`: min(r A, clip(r, 1 - epsilon, 1 + epsilon_high) A), at token level the mean over tokens; with `delta` the
      first r is at most that (two-sided clipping, INTELLECT-2, arXiv 2505.07291);
    - `reinforce`: A L_hat / n (SPG, arXiv 2510.09541; with softmax advantages wd1, arXiv 2507.08838);
    - `stable`: w A L_hat / (n mean w), w = clip(r) without gradient: clipped whatever the sign of A, and
      self-normalised (StableDRL, arXiv 2603.06743);
    - `linear`: the mean over passes of (1 + d_k) A where A >= 0, of exp(d_k) A elsewhere, d_k = the pass's own
      log-ratio (BGPO, arXiv 2510.11683, with length-normalised ratios): a lower bound of r A that is linear in passes;
    - `distil`: minus (clip(L_new - L_old, log(1 - epsilon), log(1 + epsilon_high)) / n - psi A)^2, psi `stp_guidance`
      (GDSD, arXiv 2605.29398);
    - loss_type `cispo`: w A L_hat / n, w = min(r, epsilon_high) without gradient (MiniMax-M1, arXiv 2506.13585, as
      ScaleRL, arXiv 2510.13786, has it: the bound is epsilon_high itself);
    - loss_type `sapo`: 4 / tau sigmoid(tau (r - 1)) A, tau by the sign of A (arXiv 2511.20347);
    - loss_type `vespo`: w^k exp(lambda (1 - w)) A L_hat / n, w = r^n the ratio of the whole completion, without
      gradient, k and lambda by the sign of A (arXiv 2602.10693);
    - loss_type `luspo`: n times the value, n its length (arXiv 2602.05261).

    Completions with a negative advantage count `stp_negative_advantage_weight`; with `off_policy_mask_threshold` they
    count nothing once the mean of log old - log new over their tokens is above it (DeepSeek-V3.2, arXiv 2512.02556,
    eq. 9). `top_entropy_quantile` leaves in the value only tokens whose entropy is in that upper share of the
    micro-batch (arXiv 2506.01939). `use_bias_correction_kl` multiplies KL terms by their ratio (arXiv 2512.02556).
    `entropy_coef` times the mean entropy of the tokens that count is taken off the loss.

    Args:
        inputs: estimates, advantages and scored positions.
        config: the loss section.
        num_completions: completions of the whole update, all micro-batches together: micro-batch losses add up to the
            full-batch loss (but for loss_type bnpo and top_entropy_quantile, which read each micro-batch by itself).
        num_tokens: scored tokens of the whole update; loss types dapo, cispo and vespo need it.
        mean_ratio: mean clipped ratio of the update's completions with an advantage, for `stable`; None takes this
            micro-batch's.
    """
    share_RL = inputs.share_RL if inputs.share_RL is not None else _even_share(inputs.scored_RL)
    over = _Over(num_completions, num_tokens, inputs.scored_RL.shape[-1], config.loss_type)
    mean_R = LOSSES[config.loss_type].weigh(inputs.scored_RL.sum(-1), over)
    log_ratio_RL = _masked(inputs.new_RL - inputs.old_RL, share_RL)
    log_ratio = log_ratio_RL
    if config.importance_sampling_level == "sequence":
        log_ratio = (log_ratio_RL * share_RL).sum(-1, keepdim=True)
    elif config.importance_sampling_level == "step":
        log_ratio = _by_step(log_ratio_RL, inputs.step_RL)
    ratio = torch.exp(log_ratio)
    kept_RL = _high_entropy(inputs, config) if config.top_entropy_quantile < 1.0 else None
    new_RL = _masked(inputs.new_RL, share_RL)
    terms = _Terms(inputs, new_RL, log_ratio_RL, ratio, share_RL, kept_RL, mean_ratio)
    objective = objective_of(config)
    value_R = objective.value(terms, config)
    weight_R = torch.where(inputs.advantages_R < 0, config.stp_negative_advantage_weight, 1.0)
    weight_R = weight_R * mean_R * (inputs.scored_RL.sum(-1) > 0)
    if config.off_policy_mask_threshold is not None:
        drift_R = -(log_ratio_RL.detach() * share_RL).sum(-1)
        weight_R = weight_R * ((inputs.advantages_R >= 0) | (drift_R <= config.off_policy_mask_threshold))
    loss = -(weight_R * value_R).sum()
    with torch.no_grad():
        metrics = {"diffusion/ratio_max": _largest_ratio(terms), **objective.metrics(terms, config)}
    if inputs.ref_RL is not None:
        kl, kl_R = _kl(terms, inputs.ref_RL, config)
        loss = loss + config.beta * (mean_R * kl_R).sum()
        metrics["kl"] = _token_mean(kl.detach(), inputs.scored_RL)
    if inputs.entropy_RL is not None:
        known_RL = inputs.scored_RL * ~inputs.entropy_RL.isnan()
        entropy_RL = inputs.entropy_RL.nan_to_num(0.0)
        metrics["entropy"] = _token_mean(entropy_RL.detach(), known_RL)
        if config.entropy_coef != 0.0:
            mean_entropy = _token_mean(entropy_RL, known_RL if kept_RL is None else kept_RL)
            tokens = inputs.scored_RL.sum()
            loss = loss - config.entropy_coef * mean_entropy * tokens / (num_tokens or tokens.clamp(min=1.0))
    return loss, metrics


def clipped_ratio_sum(inputs: LossInputs, config: LossConfig) -> Tensor:
    """Return the sum, f64, of the clipped ratios of completions with an advantage: `stable` divides by their mean."""
    share_RL = inputs.share_RL if inputs.share_RL is not None else _even_share(inputs.scored_RL)
    log_ratio_R = (_masked(inputs.new_RL - inputs.old_RL, share_RL) * share_RL).sum(-1)
    return (torch.exp(log_ratio_R).clamp(*clip_range(config)) * (inputs.advantages_R != 0)).sum().double()


def kl_terms(log_ratio: Tensor, kind: str) -> Tensor:
    """Return an estimate of KL(policy, reference) per sample from log_ratio = log policy - log reference.

    k1 = r, k2 = r^2 / 2, k3 = exp(-r) - 1 + r (Schulman 2020, "Approximating KL divergence").
    """
    if kind == "k1":
        return log_ratio
    if kind == "k2":
        return 0.5 * log_ratio**2
    return torch.exp(-log_ratio) - 1.0 + log_ratio


def _kl(terms: _Terms, ref_RL: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """Return the KL terms, [R, L] or [R, 1] at sequence level, and each completion's [R]."""
    share_RL = terms.share_RL
    gap = _masked(terms.inputs.new_RL - ref_RL, share_RL)
    if config.importance_sampling_level == "sequence":
        gap = (gap * share_RL).sum(-1, keepdim=True)
    elif config.importance_sampling_level == "step":
        gap = _by_step(gap, terms.inputs.step_RL)
    kl = kl_terms(gap, config.stp_kl)
    if config.use_bias_correction_kl:
        kl = kl * terms.ratio
    return kl, kl.squeeze(-1) if kl.shape != share_RL.shape else (kl * share_RL).sum(-1)


def _by_step(value_RL: Tensor, step_RL: Tensor | None) -> Tensor:
    """Return, for each token, the sum of the values of the tokens that were revealed with it."""
    if step_RL is None:
        raise InvalidValueError("step_RL: got None, needs the step of each token for importance_sampling_level step")
    revealed_RL = step_RL >= 0
    place_RL = step_RL.clamp(min=0)
    steps = int(place_RL.max()) + 1 if place_RL.numel() else 1
    total_RT = value_RL.new_zeros(len(value_RL), steps).scatter_add(1, place_RL, value_RL * revealed_RL)
    return torch.where(revealed_RL, total_RT.gather(1, place_RL), value_RL)


def _high_entropy(inputs: LossInputs, config: LossConfig) -> Tensor:
    """Return 1 at the scored tokens whose entropy is at least the quantile 1 - top_entropy_quantile of all, float."""
    if inputs.entropy_RL is None:
        raise InvalidValueError("entropy_RL: got None, needs the entropies of the tokens for top_entropy_quantile")
    entropy_RL = inputs.entropy_RL.detach()
    known_RL = (inputs.scored_RL > 0) & ~entropy_RL.isnan()
    if not known_RL.any():
        return torch.zeros_like(inputs.scored_RL)
    bound = torch.quantile(entropy_RL[known_RL], 1.0 - config.top_entropy_quantile)
    return (known_RL & (entropy_RL >= bound)).to(inputs.scored_RL.dtype)


def _even_share(scored_RL: Tensor) -> Tensor:
    return scored_RL / scored_RL.sum(-1, keepdim=True).clamp(min=1.0)


def _masked(value_RL: Tensor, share_RL: Tensor) -> Tensor:
    """Return 0 where nothing counts: what stands there need not be finite."""
    return torch.where(share_RL > 0, value_RL, 0.0)


def _token_mean(value: Tensor, counted_RL: Tensor) -> Tensor:
    """Return the mean over tokens of values [R, L], or over completions of values [R, 1]."""
    if value.shape != counted_RL.shape:
        return value.mean() if value.numel() else value.sum()
    return (value * counted_RL).sum() / counted_RL.sum().clamp(min=1.0)


def _largest_ratio(terms: _Terms) -> Tensor:
    ratio, scored_RL = terms.ratio.detach(), terms.inputs.scored_RL
    counted = scored_RL if ratio.shape == scored_RL.shape else torch.ones_like(ratio)
    return (ratio * counted).max() if ratio.numel() else torch.ones(())
