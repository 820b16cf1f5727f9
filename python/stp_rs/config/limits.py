"""Checks of options that depend on each other; the range of each alone stands where it is defined."""

import errno
import os
from typing import TYPE_CHECKING

from stp_rs.distributed import world
from stp_rs.errors import ConfigError

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig

VISITED = ("trajectory", "state", "canvas", "decision", "step_merge", "top_states")
"""Designs whose masks are states that the rollout visited, so that no prior token is ever masked."""


def check(config: "STPConfig") -> None:
    """Raise a ConfigError that names the option, what it got and what it needs."""
    _check_folder(str(config.output_dir))
    if config.num_generations == 1:
        raise ConfigError(
            "num_generations: got 1, needs at least 2: a completion is compared with others of its prompt, and has "
            "advantage 0 alone"
        )
    alike = config.stp_prior_per == "group" and config.stp_confidence not in ("random", "gumbel")
    if config.temperature == 0.0 and alike:
        raise ConfigError(
            "temperature: got 0, needs a number above 0: all completions of a prompt would be one, with advantage 0"
        )
    if config.multi_objective_aggregation == "normalize_then_sum" and config.stp_advantage != "centred":
        raise ConfigError(
            f"multi_objective_aggregation normalize_then_sum: needs stp_advantage centred, got {config.stp_advantage}"
        )
    if (config.generation_batch_size or 0) % config.num_generations:
        raise ConfigError(
            f"generation_batch_size (per_device_train_batch_size * steps_per_generation): got "
            f"{config.generation_batch_size} completions, needs a multiple of num_generations "
            f"({config.num_generations}) so that groups stay whole"
        )
    if config.num_mc == 0 and config.stp_design not in ("trajectory", "state", "decision", "top_states"):
        raise ConfigError(
            f"num_mc: got 0 (all states), needs at least 1 for the design {config.stp_design}; only "
            "trajectory, state, decision and top_states take every state of a rollout"
        )
    if config.stp_score_prior and config.stp_design in VISITED:
        raise ConfigError(
            f"stp_score_prior: got true with the design {config.stp_design}, which scores what the rollout drew in "
            "states that it visited; needs a design of random masks, as preset stp_spread has"
        )
    if world() > 1 and config.stp_temporal.startswith("fill_ratio_batch"):
        raise ConfigError(
            f"stp_temporal: got {config.stp_temporal} in {world()} processes, needs a rule that reads one row, as "
            "fill_ratio: what is in flight together differs from process to process"
        )
    _check_adapters(config)
    _check_sharding(config)
    _check_cache(config)
    _check_loss(config)


def _check_folder(name: str) -> None:
    if not name.strip():
        raise ConfigError(f"output_dir: got {name!r}, needs the name of a folder")
    try:
        os.stat(name.encode())  # those who write a model want a name in UTF-8
    except (ValueError, OSError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            need = "a shorter name" if isinstance(error, OSError) else "a name in UTF-8, without NUL"
            raise ConfigError(f"output_dir: got {name!r:.80}, needs {need}") from error


def _check_adapters(config: "STPConfig") -> None:
    if config.use_peft:
        return
    for name in ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"):
        got, default = getattr(config, name), type(config).__dataclass_fields__[name].default
        if got != default:
            raise ConfigError(
                f"{name}: got {got} without use_peft, so nothing reads it; needs use_peft (a peft_config has its own)"
            )


def _check_sharding(config: "STPConfig") -> None:
    known = ("version", "reshard_after_forward", "cpu_offload", "transformer_layer_cls_to_wrap")
    given = {name.removeprefix("fsdp_"): value for name, value in (config.fsdp_config or {}).items()}
    config.fsdp_config = given or None
    other = sorted(given.keys() - set(known))
    if other:
        raise ConfigError(f"fsdp_config: got {other[0]}, needs one of {', '.join(known)} (docs/distributed.md)")
    if int(given.get("version", 2)) != 2:
        raise ConfigError(f"fsdp_config version: got {given['version']}, needs 2 (torch's fully_shard)")
    if not config.fsdp:
        return
    whole = {"stp_rollout_weights": "merged", "load_in_4bit": True, "stp_compile": "blocks"}
    clash = [name for name, value in whole.items() if getattr(config, name) == value]
    clash += ["stp_variance_every"] if config.stp_variance_every else []
    if clash:
        raise ConfigError(
            f"fsdp: got {clash[0]} {getattr(config, clash[0])} beside it, which needs the whole weights in a process; "
            "leave one of them out"
        )


def _check_cache(config: "STPConfig") -> None:
    kind = config.stp_rollout_cache
    plain = {"stp_rollout_cache": "none", "stp_rollout_precision": "same"}
    other = [name for name, value in plain.items() if getattr(config, name) != value]
    if other and (world() > 1 or config.fsdp):
        raise ConfigError(f"{other[0]}: got {getattr(config, other[0])} in several processes or with fsdp, needs one")
    if kind == "none":
        return
    if not config.block_length:
        raise ConfigError(f"stp_rollout_cache {kind}: keeps keys and values within a block, needs block_length")
    if config.stp_temporal.startswith(("confidence", "margin", "entropy", "stable")):
        raise ConfigError(
            f"stp_rollout_cache {kind}: got stp_temporal {config.stp_temporal}, which reads the blocks that are not "
            "computed; needs none, steps or fill_ratio"
        )


def _check_loss(config: "STPConfig") -> None:
    if config.sync_ref_model and (config.beta == 0.0 or config.stp_kl_target != "reference"):
        raise ConfigError(
            f"sync_ref_model: got beta {config.beta:g} and stp_kl_target {config.stp_kl_target}, needs beta above 0 "
            "and stp_kl_target reference: there is no reference to move"
        )
    if config.loss_type in ("sapo", "cispo", "vespo") and config.stp_objective != "clip":
        raise ConfigError(
            f"loss_type {config.loss_type}: is an objective of its own, needs stp_objective clip (the default), got "
            f"{config.stp_objective}"
        )
    level = config.importance_sampling_level
    if config.loss_type == "luspo" and level != "sequence":
        raise ConfigError(f"loss_type luspo: needs importance_sampling_level sequence, got {level}")
    own = config.loss_type in ("sapo", "cispo", "vespo") or config.stp_objective != "clip"
    if config.delta is not None and own:
        raise ConfigError(
            f"delta: bounds the ratio of stp_objective clip, which loss_type {config.loss_type} with stp_objective "
            f"{config.stp_objective} does not have"
        )
    if config.top_entropy_quantile < 1.0 and config.stp_objective in ("linear", "distil"):
        raise ConfigError(
            f"top_entropy_quantile: needs values per token, which stp_objective {config.stp_objective} does not have"
        )
    if config.stp_objective in ("stable", "linear", "distil") and level != "sequence":
        raise ConfigError(
            f"stp_objective {config.stp_objective}: needs importance_sampling_level sequence (one ratio per "
            f"completion), got {level}"
        )
    if config.stp_objective == "distil" and config.epsilon >= 1.0:
        raise ConfigError(f"epsilon: got {config.epsilon:g}, needs less than 1: distil takes the log of 1 - epsilon")
    if config.stp_stepwise > 0.0:
        _check_stepwise(config)
    if config.stp_objective == "linear" and config.stp_bound != "elbo":
        raise ConfigError(
            f"stp_objective linear: needs stp_bound elbo (its terms are the passes of an ELBO), got {config.stp_bound}"
        )


def _check_stepwise(config: "STPConfig") -> None:
    needs = {
        "stp_design": ("top_states",),
        "stp_objective": ("clip",),
        "stp_advantage": ("centred",),
        "scale_rewards": ("none",),
        "stp_replay_batches": (0,),
    }
    for name, allowed in needs.items():
        got = getattr(config, name)
        if got not in allowed:
            raise ConfigError(f"stp_stepwise: got {config.stp_stepwise:g} with {name} {got}, needs {allowed[0]}")
    if config.loss_type in ("cispo", "vespo"):
        raise ConfigError(
            f"stp_stepwise: got {config.stp_stepwise:g} with loss_type {config.loss_type}, which has one advantage per "
            "completion; needs another loss_type, such as dapo"
        )
