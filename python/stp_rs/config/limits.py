"""What options may be: a range each, and what must fit together."""

import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

from stp_rs.errors import ConfigError

if TYPE_CHECKING:
    from stp_rs.config.sections import STPConfig

_RANGES: Mapping[str, tuple[float, float]] = types.MappingProxyType(
    {
        "num_generations": (2, 1 << 20), "max_completion_length": (0, 1 << 20), "diffusion_steps": (0, 1 << 20),
        "block_length": (0, 1 << 20), "temperature": (0.0, 100.0), "top_k": (0, 1 << 24), "top_p": (1e-6, 1.0),
        "min_p": (0.0, 1.0), "stp_slots": (1, 1 << 20), "stp_keep": (0.0, 1.0),
        "stp_hint": (0.0, 1.0), "stp_frequency": (1e-6, 1.0), "stp_prior_refresh": (0, 1 << 31),
        "stp_rescue_share": (1e-6, 1.0), "stp_max_nfe": (0, 1 << 20),
        "stp_max_tokens": (0, 1 << 40),
        "num_mc": (0, 1 << 16), "stp_prompt_mask": (0.0, 1.0), "stp_mask_block": (0, 1 << 20),
        "stp_bound_power": (1.0, 100.0), "stp_bound_mixture": (0.0, 1.0), "stp_forward_batch_size": (0, 1 << 20),
        "stp_dynamic_sampling": (0, 1000),
        "stp_replay_batches": (0, 1000),
        "epsilon": (0.0, 1e9), "epsilon_high": (0.0, 1e9), "beta": (0.0, 1e9), "delta": (1e-9, 1e9),
        "sapo_temperature_pos": (1e-6, 1e6), "sapo_temperature_neg": (1e-6, 1e6), "vespo_k_pos": (0.0, 1e3),
        "vespo_lambda_pos": (0.0, 1e3), "vespo_k_neg": (0.0, 1e3), "vespo_lambda_neg": (0.0, 1e3),
        "off_policy_mask_threshold": (0.0, 1e9), "top_entropy_quantile": (0.0, 1.0), "entropy_coef": (-1e3, 1e3),
        "stp_negative_advantage_weight": (0.0, 1e9), "learning_rate": (0.0, 1.0), "warmup_steps": (0, 1 << 31),
        "weight_decay": (0.0, 1e3), "max_grad_norm": (0.0, 1e9),
        "adam_beta1": (0.0, 0.999999), "adam_beta2": (0.0, 0.999999),
        "max_steps": (0, 1 << 31), "num_iterations": (1, 1 << 16), "per_device_train_batch_size": (1, 1 << 20),
        "gradient_accumulation_steps": (1, 1 << 20), "seed": (0, (1 << 64) - 1), "num_threads": (0, 1 << 12),
        "logging_steps": (1, 1 << 31), "save_steps": (0, 1 << 31), "eval_steps": (0, 1 << 31),
        "stp_variance_every": (0, 1 << 31), "stp_keep_rollouts": (0, 1 << 31),
        "num_completions_to_print": (0, 1000), "eval_size": (1, 1 << 31), "train_size": (1, 1 << 31),
        "lora_r": (1, 1 << 16), "lora_alpha": (1, 1 << 20), "lora_dropout": (0.0, 0.999),
        "hidden_size": (8, 1 << 16), "num_hidden_layers": (1, 1000), "num_attention_heads": (1, 1000),
        "sft_steps": (0, 1 << 31), "sft_batch_size": (1, 1 << 20), "sft_learning_rate": (0.0, 1.0),
    }
)  # fmt: skip


def check(config: "STPConfig") -> None:
    """Raise a ConfigError that names the option, what it got and what it needs."""
    flat = config.to_flat()
    if flat["num_generations"] == 1:
        raise ConfigError(
            "num_generations: got 1, needs at least 2: a completion is compared with others of its prompt, and has "
            "advantage 0 alone"
        )
    for name, (low, high) in _RANGES.items():
        if flat[name] is not None and not low <= flat[name] <= high:
            raise ConfigError(f"{name}: got {flat[name]}, needs a value from {low:g} to {high:g}")
    if config.multi_objective_aggregation == "normalize_then_sum" and config.stp_advantage != "centred":
        raise ConfigError(
            f"multi_objective_aggregation normalize_then_sum: needs stp_advantage centred, got {config.stp_advantage}"
        )
    completions = config.per_device_train_batch_size * config.gradient_accumulation_steps
    if completions % config.num_generations:
        raise ConfigError(
            f"per_device_train_batch_size * gradient_accumulation_steps: got {completions} completions, needs a "
            f"multiple of num_generations ({config.num_generations}) so that groups stay whole"
        )
    if config.num_mc == 0 and config.stp_design not in ("trajectory", "state", "decision"):
        raise ConfigError(
            f"num_mc: got 0 (all states), needs at least 1 for the design {config.stp_design}; only "
            "trajectory, state and decision take every state of a rollout"
        )
    _check_loss(config)
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"hidden_size: got {config.hidden_size}, needs a multiple of num_attention_heads "
            f"({config.num_attention_heads})"
        )


def _check_loss(config: "STPConfig") -> None:
    if config.loss_type in ("sapo", "cispo", "vespo") and config.stp_objective != "clip":
        raise ConfigError(
            f"loss_type {config.loss_type}: is an objective of its own, needs stp_objective clip (the default), got "
            f"{config.stp_objective}"
        )
    if config.loss_type == "luspo" and config.importance_sampling_level == "token":
        raise ConfigError("loss_type luspo: needs importance_sampling_level sequence, got token")
    own = config.loss_type in ("sapo", "cispo", "vespo") or config.stp_objective != "clip"
    if config.delta is not None and own:
        raise ConfigError(
            f"delta: bounds the ratio of stp_objective clip, which loss_type {config.loss_type} with stp_objective "
            f"{config.stp_objective} does not have"
        )
    if config.top_entropy_quantile < 1.0 and config.stp_objective == "linear":
        raise ConfigError("top_entropy_quantile: needs values per token, which stp_objective linear does not have")
    if config.stp_objective in ("stable", "linear") and config.importance_sampling_level == "token":
        raise ConfigError(
            f"stp_objective {config.stp_objective}: needs importance_sampling_level sequence (one ratio per "
            "completion), got token"
        )
    if config.stp_objective == "linear" and config.stp_bound != "elbo":
        raise ConfigError(
            f"stp_objective linear: needs stp_bound elbo (its terms are the passes of an ELBO), got {config.stp_bound}"
        )
