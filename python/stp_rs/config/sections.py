"""Configuration: one flat namespace for code, YAML files and flags; a class for the options that a function reads.

Names are TRL's where TRL has the concept; ours start with `stp_`.

    config = STPConfig.make("stp", learning_rate=3e-4, max_steps=200)  # presets and prunings: presets.py
    config.learning_rate
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stp_rs.config.limits import check
from stp_rs.config.presets import PRESETS, PRUNINGS
from stp_rs.errors import ConfigError


@dataclass
class RolloutConfig:
    """How completions are decoded."""

    num_generations: int = 8
    """G: completions per prompt."""
    max_completion_length: int = 0
    """L: tokens of the completion canvas; 0 takes the task's."""
    diffusion_steps: int = 0
    """Denoising steps for a whole unpruned completion; 0 means one per token."""
    block_length: int = 0
    """Tokens per block, decoded left to right; 0 means one block."""
    temperature: float = 1.0
    """Sampling temperature in training; evaluation is greedy."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 means all."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability."""
    min_p: float | None = None
    """Sample from tokens that have at least this share of the most likely one's probability; none is no bound."""
    stp_slots: int = 64
    """Most rows in flight; finished rows leave and queued ones take their place. (TRL's generation_batch_size counts
    something else.)"""
    stp_confidence: str = "prob"
    """What ranks candidates: prob, sampled_prob (LLaDA low_confidence), drawn_prob, margin, entropy, random, leftmost,
    gumbel."""
    stp_selection: str = "top_k"
    """How many candidates a step takes: top_k (the plan's quota), threshold:P[:CAP], factor:F, entropy_bound:G."""
    stp_quota: str = "ceil_remaining"
    """Spread of masks over steps: ceil_remaining, llada, dllm, dream, powers_of_two, bernoulli."""
    stp_eos: str = "none"
    """End-of-text: none, truncate (a row ends once all up to its first one is revealed), last (revealed last)."""
    stp_max_tokens: int = 0
    """Most tokens of one rollout forward, padding included; 0 means no bound but stp_slots."""


@dataclass
class PruningConfig:
    """Spatial and temporal pruning."""

    stp_spatial: str = "none"
    """Priors joined by '+': template, copy, length, vocabulary, offline_generation, reference, frequency; or none
    (docs/priors.md)."""
    stp_temporal: str = "none"
    """When the rest is committed together: none, fill_ratio:R, fill_ratio_batch:R, steps:F, confidence:P,
    margin:HIGH:LOW, entropy:N, stable:K."""
    stp_max_nfe: int = 0
    """Most forwards per row; 0 means the plan's."""
    stp_score_prior: bool = False
    """Whether the likelihood covers prior tokens too, so that the policy practises them: for templates that it does not
    know yet (docs/results.md)."""
    stp_keep: float = 0.05
    """offline_generation: share of the eligible tokens that is kept."""
    stp_selector: str = "top_confidence"
    """offline_generation: top_confidence, random, not_answer (random, never the answer), prefix, span; reference: the
    last two, else random."""
    stp_protect_answer: bool = True
    """offline_generation and reference: never fix tokens of the answer."""
    stp_length: str = "reference"
    """length: a number of tokens, reference (the row's own solution), or quantile:Q of earlier rollouts."""
    stp_hint: float = 0.5
    """reference: share of the solution's tokens that is given."""
    stp_frequency: float = 0.9
    """frequency: share of a prompt's earlier rollouts that agree on a token."""
    stp_prior_anneal: str = "none"
    """How the shares of offline_generation, reference and frequency shrink: none, linear:UNTIL, cosine:UNTIL, to 0 at
    that share of training."""
    stp_prior_per: Literal["group", "sample"] = "group"
    """Whether the completions of a prompt share what is drawn at random, or each draws its own."""
    stp_prior_refresh: int = 0
    """offline_generation: made anew by the current policy every N rollout batches; 0 never."""
    stp_rescue: Literal["none", "reference"] = "none"
    """Decode rows of groups that earned nothing again, with a hint of stp_hint."""
    stp_rescue_share: float = 0.5
    """Share of such a group's rows."""


@dataclass
class AdvantageConfig:
    """From rewards to advantages."""

    stp_advantage: Literal["centred", "leave_one_out", "softmax"] = "centred"
    """Reward minus the group's mean; minus the mean of the others; or wd1's softmax weights of good and bad."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide centred rewards by the group's (or true) or the batch's standard deviation, or not at all (or false)."""
    reward_weights: list[float] | None = None
    """What each reward function counts in the sum; none is 1 each."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Advantages of the weighted sum of the rewards; or the sum of each function's z-scores in the group, normalised
    over the batch (GDPO): scale_rewards then means nothing."""
    stp_zero_std: Literal["keep", "drop"] = "keep"
    """Groups of equal rewards count in the loss's mean (and in its KL term), or are left out of it."""
    stp_dynamic_sampling: int = 0
    """Most extra rollout batches per step that replace groups of equal rewards (DAPO); 0 replaces none."""
    stp_replay_batches: int = 0
    """Rows of the last so many policy versions are trained on again, with the ratio to the policy that drew them."""


@dataclass
class LikelihoodConfig:
    """How the log-likelihood of a completion is estimated."""

    stp_design: str = "spread"
    """Law of the corruption masks; see docs/designs.md."""
    num_mc: int = 2
    """K: corrupted canvases per completion; 0 takes every state of a rollout (trajectory)."""
    stp_prompt_mask: float = 0.0
    """Probability of masking a prompt token (Diffu-GRPO: 0.15)."""
    stp_truncate: str = ""
    """coupled, bernoulli: range LOW:HIGH of the mask ratio (coupled-GRPO: 0.2:0.8); state, canvas: range LOW:1 of the
    states' mask ratio; empty is the whole range."""
    stp_states: Literal["reveals", "uniform", "doubt", "surprisal"] = "reveals"
    """state, canvas, decision: draw states by the tokens revealed there, alike, by 1 - p of these tokens, or by
    RLDF's surprisal."""
    stp_divide_weights: bool = False
    """state, canvas: divide a token's weight by its expected one, so that early and late tokens count alike."""
    stp_mask_block: int = 0
    """block_random: tokens per block of its masks; 0 takes block_length, or an eighth of the completion (SPG: 32)."""
    stp_bound: Literal["elbo", "eubo", "mixture"] = "elbo"
    """Estimate for negative advantages: the lower bound as for the others, SPG's upper one, or both mixed."""
    stp_bound_power: float = 1.5
    """SPG's beta: power of the upper bound's mean."""
    stp_bound_mixture: float = 0.5
    """SPG's omega: weight of the upper bound in the mixture."""
    stp_constant_memory: bool = False
    """Find the loss's coefficients without a graph, then backpropagate pass by pass: memory does not grow with K."""
    stp_forward_batch_size: int = 0
    """Canvases per likelihood forward; 0 means a micro-batch's all (with constant memory: one per completion)."""


@dataclass
class LossConfig:
    """Policy objective."""

    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo", "luspo", "sapo", "cispo", "vespo"] = "grpo"
    """Length normalisation, as in TRL: mean of completions' means; by max_completion_length; by the tokens of the
    micro-batch; by the tokens of the whole update; times each one's length (luspo). The last three are objectives of
    their own (docs/losses.md)."""
    stp_objective: Literal["clip", "reinforce", "stable", "linear"] = "clip"
    """Clipped ratio (PPO, GRPO); no ratio (SPG, wd1); clipped and self-normalised weights (StableDRL); BGPO's bound."""
    importance_sampling_level: Literal["token", "sequence"] = "sequence"
    """Ratios per token, or one length-normalised ratio per completion."""
    epsilon: float = 0.2
    """Lower clip range."""
    epsilon_high: float | None = None
    """Upper clip range; none means epsilon. For cispo the largest weight itself (ScaleRL: 5.0)."""
    beta: float = 0.0
    """KL coefficient; 0 loads no reference and makes no reference pass."""
    stp_kl: Literal["k1", "k2", "k3"] = "k2"
    """KL estimator."""
    stp_kl_target: Literal["reference", "old"] = "reference"
    """KL against the policy before RL (adapters off, or a frozen copy), or against the one that made the rollouts."""
    stp_negative_advantage_weight: float = 0.2
    """Weight of completions with a negative advantage: an ELBO is a lower bound, pushing it down is unbounded."""
    stp_blame_prior: bool = False
    """Whether a negative advantage pushes scored prior tokens down too, which the policy did not choose."""
    delta: float | None = None
    """Two-sided clipping: most that an unclipped ratio counts; none bounds it nowhere."""
    sapo_temperature_pos: float = 1.0
    """sapo: tau of positive advantages."""
    sapo_temperature_neg: float = 1.05
    """sapo: tau of the others."""
    vespo_k_pos: float = 2.0
    """vespo: power of the ratio for advantages of at least 0."""
    vespo_lambda_pos: float = 3.0
    """vespo: decay in the ratio for advantages of at least 0."""
    vespo_k_neg: float = 3.0
    """vespo: power of the ratio for negative advantages."""
    vespo_lambda_neg: float = 2.0
    """vespo: decay in the ratio for negative advantages."""
    off_policy_mask_threshold: float | None = None
    """Leave out completions with a negative advantage whose tokens have become less likely than this by the mean of log
    old - log new (DeepSeek-V3.2); none keeps all."""
    use_bias_correction_kl: bool = False
    """Multiply KL terms by their ratio: unbiased for the policy that is trained (DeepSeek-V3.2)."""
    top_entropy_quantile: float = 1.0
    """Share of the micro-batch's tokens, those of the highest entropy, that count in the value (the paper: 0.2)."""
    entropy_coef: float = 0.0
    """Coefficient of the mean entropy per token, which is taken off the loss."""
    mask_truncated_completions: bool = False
    """Leave completions without an end of text out of the loss; they count in their group's baseline."""


@dataclass
class OptimConfig:
    """Optimiser and batches."""

    learning_rate: float = 3e-4
    lr_scheduler_type: Literal["linear", "constant", "cosine"] = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    max_steps: int = 200
    """Rollout batches. Each makes `num_iterations` optimiser updates."""
    num_iterations: int = 2
    """Optimiser updates per rollout batch."""
    per_device_train_batch_size: int = 32
    """Completions per micro-batch."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per update; their product with the batch size is the completions per rollout batch."""


@dataclass
class RunConfig:
    """Where and how a run happens."""

    task: str = "sudoku"
    output_dir: str = "runs/quickstart"
    seed: int = 0
    device: str = ""
    """Torch device; empty means cuda where there is one, else cpu."""
    bf16: bool = False
    """Autocast model passes to bfloat16."""
    num_threads: int = 1
    """Torch threads; 0 leaves torch's choice. One is fastest for tiny policies."""
    logging_steps: int = 1
    save_steps: int = 50
    eval_steps: int = 0
    """Evaluate on the validation split every N steps; 0 never."""
    stp_variance_every: int = 0
    """Log the mask noise of the update's gradient every N steps (docs/variance.md); 0 never."""
    stp_keep_rollouts: int = 50
    """Keep the rollouts of every N-th step, the first and the last one for the viewer of the report; 0 keeps none."""
    num_completions_to_print: int = 6
    eval_size: int = 192
    """Problems per evaluation."""
    train_size: int = 4096
    """Training problems."""
    data: str = ""
    """A file of problems to train on instead of the task's generator."""
    resume: bool = True
    """Continue from the newest checkpoint in output_dir when it belongs to the same configuration."""


@dataclass
class ModelConfig:
    """How a model is opened; the names are those of TRL's ModelConfig."""

    model_name_or_path: str = ""
    """A model of the hub, a folder that from_pretrained opens, or a run folder; empty makes the tiny policy."""
    model_revision: str = ""
    """A branch, tag or commit of the hub."""
    trust_remote_code: bool = False
    """Run the modelling code that comes with the model (LLaDA, Dream, SDAR on the hub)."""
    dtype: str = "auto"
    """Type of the weights: auto (as saved), bfloat16, float16, float32."""
    attn_implementation: str = ""
    """sdpa, eager, flash_attention_2; empty is the model's own choice."""
    use_peft: bool = False
    """Train LoRA adapters instead of the weights."""
    lora_r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    """Recorded in the adapter; passes of a policy run without dropout."""
    lora_target_modules: str = ""
    """Names joined by commas, or one pattern; empty is the family's projections (docs/models.md)."""
    load_in_4bit: bool = False
    """Weights in nf4 (bitsandbytes, a CUDA device); needs use_peft."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of the blocks for the backward pass, and compute them again in it."""
    logit_shift: int | None = None
    """0: the logits at row p predict token p. 1: row p - 1 does. None is the family's."""
    block_size: int | None = None
    """Tokens per block of a block-causal model; None is the model's own."""


@dataclass
class PolicyConfig(ModelConfig):
    """The policy: a saved model, or the embedded tiny one with its supervised warm-up."""

    hidden_size: int = 64
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    stp_compile: Literal["auto", "blocks", "none"] = "auto"
    """Compile the network's blocks one by one (torch.compile), which takes some time once. auto: on a CUDA device, from
    half a billion parameters."""
    stp_adapter_dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    """Type in which LoRA weights are stored and updated. Passes compute in bf16's wherever bf16 is on; stored in bf16,
    an update below 1/256 of a weight is lost."""
    stp_rollout_weights: Literal["adapters", "merged"] = "adapters"
    """Whether rollouts add adapters to each layer's output, as scoring does, or to its weights, which are rounded."""
    sft_steps: int = 400
    sft_batch_size: int = 48
    sft_learning_rate: float = 3e-3


@dataclass
class STPConfig(
    PolicyConfig, RunConfig, OptimConfig, LossConfig, LikelihoodConfig, AdvantageConfig, PruningConfig, RolloutConfig
):
    """Every option of a run by its flat name. A function that reads a section's options takes that class.

    Make one with `STPConfig.make`.
    """

    preset: str = "stp"

    @staticmethod
    def make(preset: str = "stp", **options: Any) -> "STPConfig":
        """Return a preset with flat options on top.

        Args:
            preset: a key of `PRESETS`.
            options: field names of any section; `pruning="none"` or a key of `PRUNINGS` sets the pruning fields.

        Raises:
            ConfigError: an unknown name (with the nearest known one), a wrong type or a value out of range.
        """
        flat = _merge(preset, options)
        hints = typing.get_type_hints(STPConfig)
        if unknown := flat.keys() - hints.keys():
            raise _unknown(next(name for name in flat if name in unknown))
        config = STPConfig(**{"preset": preset, **{k: _coerce(k, v, hints[k]) for k, v in flat.items()}})
        check(config)
        return config

    @staticmethod
    def from_yaml(path: str | Path, **overrides: Any) -> "STPConfig":
        """Return the configuration of a YAML file of flat names; `overrides` win.

        An overriding `preset` wins over what it decides and over what the file's own preset decided; an overriding
        `preset` or `pruning` over every option of pruning.
        """
        import yaml

        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"config file {path}: cannot be read: {error}") from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"config file {path}: got {type(loaded).__name__}, needs lines of `name: value`")
        decided = {name for chosen in PRUNINGS.values() for name in chosen} if "pruning" in overrides else set()
        if "preset" in overrides:
            presets = [PRESETS.get(str(name), {}) for name in (loaded.get("preset", "stp"), overrides["preset"])]
            decided = {"pruning", *(name for chosen in (*presets, *PRUNINGS.values()) for name in chosen)}
        kept = {str(name): value for name, value in loaded.items() if name not in decided}
        return STPConfig.make(**{"preset": "stp", **kept, **overrides})

    def to_flat(self) -> dict[str, Any]:
        """Return every option by its flat name; `STPConfig.make(**config.to_flat())` gives the same configuration."""
        return {"preset": self.preset, **dataclasses.asdict(self)}


def flat_fields() -> dict[str, tuple[Any, Any]]:
    """Return (type, default) of every flat option, for command-line flags."""
    hints = typing.get_type_hints(STPConfig)
    return {f.name: (hints[f.name], f.default) for f in dataclasses.fields(STPConfig) if f.name != "preset"}


def _merge(preset: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if preset not in PRESETS:
        raise ConfigError(f"preset: got {preset!r}, needs one of {', '.join(PRESETS)}")
    flat = dict(PRESETS[preset])
    pruning = options.get("pruning", flat.pop("pruning", "none"))
    if pruning not in PRUNINGS:
        raise ConfigError(f"pruning: got {pruning!r}, needs one of {', '.join(PRUNINGS)}")
    flat = {**flat, **PRUNINGS[pruning], **options}
    flat.pop("pruning", None)
    return flat


def _unknown(name: str) -> ConfigError:
    near = difflib.get_close_matches(name, [*flat_fields(), "preset", "pruning"], n=1)
    hint = f"; did you mean {near[0]}?" if near else "; `stp-rs train --help` lists all"
    return ConfigError(f"unknown option {name!r}{hint}")


_KINDS: dict[Any, str] = {int: "an integer", float: "a number", str: "text", bool: "true or false"}


def _coerce(name: str, value: Any, hint: Any) -> Any:
    if types.NoneType in typing.get_args(hint):
        if value is None or value == "none":
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if hint == list[float]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        return [_coerce(name, part, float) for part in parts]
    if name == "scale_rewards" and isinstance(value, bool):
        value = "group" if value else "none"
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(f"{name}: got {value!r}, needs one of {', '.join(map(str, allowed))}")
        return value
    accepted = {float: (int, float), int: (int,), str: (str,), bool: (bool,)}[hint]
    if name == "stp_length" and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # a bare number of tokens in YAML
    if isinstance(value, str) and hint in (int, float):
        try:
            value = hint(value)
        except ValueError:
            raise ConfigError(f"{name}: got {value!r}, needs {_KINDS[hint]}") from None
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{name}: got {value!r} ({type(value).__name__}), needs {_KINDS[hint]}")
    return hint(value)
