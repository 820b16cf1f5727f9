"""The options of a run in sections; a function takes the class of the options that it reads.

Names, meanings and defaults are those of TRL's GRPOConfig where TRL has the option and no algorithm of ours decides it;
ours start with `stp_`. `STPConfig` (stp_rs.config.arguments) is all of them, flat, on transformers' TrainingArguments.

    LossConfig(epsilon=0.2)                        # for a loop of your own
    STPConfig(preset="espo", learning_rate=1e-6)   # for the trainer
"""

from dataclasses import dataclass
from typing import Any, Literal

from stp_rs.config.options import option


@dataclass
class AlgorithmConfig:
    """The algorithm: a preset and a pruning."""

    preset: str = option("stp", "Algorithm: the defaults of every option that it decides (docs/presets.md).")
    pruning: str | None = option(None, "Pruning: the defaults of the pruning options; None: that of the preset.")


@dataclass
class RolloutConfig:
    """How completions are decoded."""

    num_generations: int = option(8, "G: completions per prompt.", 1, 1 << 20)
    max_completion_length: int = option(256, "L: tokens of the completion canvas.", 1, 1 << 20)
    diffusion_steps: int | None = option(
        None, "Denoising steps for a whole unpruned completion; None: one per token.", 1, 1 << 20
    )
    block_length: int | None = option(None, "Tokens per block, decoded left to right; None: one block.", 1, 1 << 20)
    temperature: float = option(1.0, "Sampling temperature.", 0.0, 100.0)
    num_generations_eval: int | None = option(
        None, "Completions per prompt of evaluate(); None: num_generations.", 1, 1 << 20
    )
    top_k: int = option(0, "Sample from the k most likely tokens; 0 means all.", 0, 1 << 24)
    top_p: float = option(1.0, "Sample from the smallest set of tokens with this probability.", 1e-6, 1.0)
    min_p: float | None = option(
        None,
        "Sample from tokens that have at least this share of the probability of the most likely one; None: no bound.",
        0.0,
        1.0,
    )
    stp_slots: int = option(
        64,
        "Most rows in flight; finished rows leave and queued ones take their place. (generation_batch_size of TRL"
        " counts something else.)",
        1,
        1 << 20,
        identity="speed",
    )
    stp_confidence: str = option(
        "prob",
        "What ranks candidates: prob, sampled_prob (LLaDA low_confidence), drawn_prob, margin, entropy, random, "
        "leftmost, gumbel.",
    )
    stp_selection: str = option(
        "top_k",
        "How many candidates a step takes: top_k (the plan's quota), threshold:P[:CAP], factor:F, entropy_bound:G.",
    )
    stp_quota: str = option(
        "ceil_remaining", "Spread of masks over steps: ceil_remaining, llada, dllm, dream, powers_of_two, bernoulli."
    )
    stp_eos: str = option(
        "none",
        "End-of-text: none, truncate (a row ends once all up to its first one is revealed), last (revealed last).",
    )
    stp_rollout_cache: Literal["none", "prefix", "dual"] = option(
        "none",
        "Keep keys and values within a block of block_length, as Fast-dLLM: of what is before it, or of all else too. "
        "Tokens are then drawn from another law than the policy's (docs/performance.md).",
    )
    stp_rollout_precision: Literal["same", "int8", "fp8"] = option(
        "same", "Round the weights of the blocks for rollouts (torchao): int8 weights; fp8 weights and activations."
    )
    stp_rollout_cap: float | None = option(
        2.0,
        "Most that the importance weight of a completion may be, where stp_rollout_cache or stp_rollout_precision draw "
        "from another law than the policy's (TRL: vllm_importance_sampling_cap); its states are computed again for it. "
        "None: no correction.",
        1e-6,
        1e9,
    )
    stp_max_tokens: int | None = option(
        None,
        "Most tokens of one rollout forward, padding included; None: no bound but stp_slots.",
        1,
        1 << 40,
        identity="speed",
    )


@dataclass
class PruningConfig:
    """Spatial and temporal pruning."""

    stp_spatial: str = option(
        "none",
        "Priors joined by '+': template, copy, length, vocabulary, offline_generation, first_forward, hint, frequency; "
        "or none (docs/priors.md).",
    )
    stp_temporal: str = option(
        "none",
        "When the rest is committed together: none, fill_ratio:R, fill_ratio_batch:R, steps:F, confidence:P, "
        "margin:HIGH:LOW, entropy:N, stable:K.",
    )
    stp_max_nfe: int | None = option(None, "Most forwards per row; None: as many as the plan has.", 1, 1 << 20)
    stp_score_prior: bool = option(
        False,
        "Whether the likelihood covers prior tokens too, so that the policy practises them: for templates that it"
        " does not know yet (docs/results.md).",
    )
    stp_keep: float = option(
        0.05, "offline_generation, first_forward: share of the eligible tokens that is kept.", 0.0, 1.0
    )
    stp_selector: str = option(
        "top_confidence",
        "offline_generation: top_confidence, random, not_answer (random, never the answer), prefix, span; "
        "hint: the last two, else random.",
    )
    stp_protect_answer: bool = option(True, "offline_generation, first_forward, hint: never fix tokens of the answer.")
    stp_length: str = option(
        "solution",
        "length: a number of tokens, solution (the length of the row's own), or quantile:Q of earlier rollouts.",
    )
    stp_hint: float = option(0.5, "hint: share of the solution's tokens that is given.", 0.0, 1.0)
    stp_frequency: float = option(
        0.9, "frequency: share of a prompt's earlier rollouts that agree on a token.", 1e-6, 1.0
    )
    stp_prior_anneal: str = option(
        "none",
        "How the shares of offline_generation, first_forward, hint and frequency shrink: none, linear:UNTIL, "
        "cosine:UNTIL, to 0 at that share of training.",
    )
    stp_prior_per: Literal["group", "sample"] = option(
        "group", "Whether the completions of a prompt share what is drawn at random, or each draws its own."
    )
    stp_prior_refresh: int | None = option(
        None, "offline_generation: made anew by the current policy every N rollout batches; None: never.", 1, 1 << 31
    )
    stp_anchor_cache: str | None = option(
        None,
        "offline_generation: a folder that runs share, of completions by policy and prompt: what another run made of "
        "the same ones costs nothing; None: each run makes its own.",
        identity="speed",
    )
    stp_rescue: Literal["none", "hint"] = option(
        "none", "Decode rows of groups that earned nothing again, with a hint of stp_hint."
    )
    stp_rescue_share: float = option(0.5, "Share of such a group's rows.", 1e-6, 1.0)


@dataclass
class AdvantageConfig:
    """How rewards become advantages."""

    stp_advantage: Literal["centred", "leave_one_out", "softmax"] = option(
        "centred",
        "Reward minus the group's mean; minus the mean of the others; or wd1's softmax weights of good and bad.",
    )
    scale_rewards: Literal["group", "batch", "none"] = option(
        "group", "Divide centred rewards by the group's or the batch's standard deviation, or not at all."
    )
    stp_stepwise: float = option(
        0.0,
        "top_states: EGSPO's lambda: a state's return also has this times the reward that the policy's one-step "
        "completion of the state lacks, all over 1 + lambda; 0 gives every state its completion's advantage.",
        0.0,
        1e9,
    )
    reward_weights: list[float] | None = option(None, "What each reward function counts in the sum; None: 1 each.")
    reward_timeout: float | None = option(
        None,
        "Seconds that a call of a reward function may take, in a thread of its own; None: no bound.",
        1e-3,
        1e9,
        identity="speed",
    )
    stp_reward_errors: Literal["stop", "skip"] = option(
        "stop",
        "A reward function that raises, is late or returns no number: the run stops and names the completion; or that "
        "completion is scored None and the run goes on.",
    )
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = option(
        "sum_then_normalize",
        "Advantages of the weighted sum of the rewards; or the sum of each function's z-scores in the group, "
        "normalised "
        "over the batch (GDPO): scale_rewards then means nothing.",
    )
    stp_zero_std: Literal["keep", "drop"] = option(
        "keep", "Groups of equal rewards count in the loss's mean (and in its KL term), or are left out of it."
    )
    stp_dynamic_sampling: int = option(
        0, "Most extra rollout batches per step that replace groups of equal rewards (DAPO); 0 replaces none.", 0, 1000
    )
    stp_replay_batches: int = option(
        0,
        "Rows of the last so many policy versions are trained on again, with the ratio to the policy that drew them.",
        0,
        1000,
    )


@dataclass
class LikelihoodConfig:
    """How the log-likelihood of a completion is estimated."""

    stp_design: str = option("spread", "Law of the corruption masks; see docs/designs.md.")
    num_mc: int = option(
        2, "K: corrupted canvases per completion; 0 takes every state of a rollout (trajectory).", 0, 1 << 16
    )
    stp_prompt_mask: float = option(0.0, "Probability of masking a prompt token (Diffu-GRPO: 0.15).", 0.0, 1.0)
    stp_truncate: str | None = option(
        None,
        "coupled, bernoulli: range LOW:HIGH of the mask ratio (coupled-GRPO: 0.2:0.8); state, canvas: range LOW:1"
        " of the mask ratio of their states; None: the whole range.",
    )
    stp_states: Literal["reveals", "uniform", "doubt", "surprisal", "entropy"] = option(
        "reveals",
        "state, canvas, decision, top_states: take states by the tokens revealed there, alike, by 1 - p of these "
        "tokens, by the surprisal of RLDF, or by their mean entropy (EGSPO).",
    )
    stp_least_prob: float = option(
        0.0,
        "state, canvas: masked tokens less likely than this under the old policy are not scored, unless the state "
        "revealed them (RLDF); 0 scores all.",
        0.0,
        1.0,
    )
    stp_divide_weights: bool = option(
        False,
        "state, canvas: divide the weight of a token by its expected one, so that early and late tokens count alike.",
    )
    stp_mask_block: int | None = option(
        None,
        "block_random: tokens per block of its masks; None: block_length, or an eighth of the completion (SPG: 32).",
        1,
        1 << 20,
    )
    stp_bound: Literal["elbo", "eubo", "mixture"] = option(
        "elbo", "Estimate for negative advantages: the lower bound as for the others, SPG's upper one, or both mixed."
    )
    stp_bound_power: float = option(1.5, "SPG's beta: power of the upper bound's mean.", 1.0, 100.0)
    stp_bound_mixture: float = option(0.5, "SPG's omega: weight of the upper bound in the mixture.", 0.0, 1.0)
    stp_constant_memory: bool = option(
        False,
        "Find the loss's coefficients without a graph, then backpropagate pass by pass: memory does not grow with K.",
        identity="speed",
    )
    stp_forward_batch_size: int | None = option(
        None,
        "Canvases per likelihood forward; None: all of a micro-batch (with constant memory: one per completion).",
        1,
        1 << 20,
        identity="speed",
    )


@dataclass
class LossConfig:
    """The policy loss."""

    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo", "luspo", "sapo", "cispo", "vespo"] = option(
        "grpo",
        "Length normalisation, as in TRL: mean of completions' means; by max_completion_length; by the tokens of "
        "the micro-batch; by the tokens of the whole update; times the length of each one (luspo). The last three are "
        "objectives of their own (docs/losses.md).",
    )
    stp_objective: Literal["clip", "reinforce", "stable", "linear", "distil"] = option(
        "clip",
        "Clipped ratio (PPO, GRPO); no ratio (SPG, wd1); clipped and self-normalised weights (StableDRL); BGPO's "
        "bound; the squared distance of the log-ratio from the advantage (GDSD).",
    )
    stp_guidance: float = option(
        1.0, "distil: GDSD's psi, what an advantage of 1 asks of a completion's mean log-ratio per token.", 0.0, 1e9
    )
    importance_sampling_level: Literal["token", "step", "sequence"] = option(
        "sequence",
        "Ratios per token, per step of the rollout (of the tokens that it revealed together), or one length-normalised "
        "ratio per completion.",
    )
    epsilon: float = option(0.2, "Lower clip range.", 0.0, 1e9)
    epsilon_high: float | None = option(
        None, "Upper clip range; None: epsilon. For cispo the largest weight itself (ScaleRL: 5.0).", 0.0, 1e9
    )
    beta: float = option(0.0, "KL coefficient; 0 loads no reference and makes no reference pass.", 0.0, 1e9)
    stp_kl: Literal["k1", "k2", "k3"] = option("k2", "KL estimator.")
    stp_kl_target: Literal["reference", "old"] = option(
        "reference",
        "KL against the policy before RL (adapters off, or a frozen copy), or against the one that made the rollouts.",
    )
    sync_ref_model: bool = option(
        False, "Move the reference of the KL term towards the policy every ref_model_sync_steps updates (TR-DPO)."
    )
    ref_model_mixup_alpha: float = option(0.6, "Share of the policy in the reference that was moved.", 0.0, 1.0)
    ref_model_sync_steps: int = option(512, "Updates between two moves of the reference.", 1, 1 << 31)
    stp_negative_advantage_weight: float = option(
        0.2,
        "Weight of completions with a negative advantage: an ELBO is a lower bound, pushing it down is unbounded.",
        0.0,
        1e9,
    )
    stp_blame_prior: bool = option(
        False, "Whether a negative advantage pushes scored prior tokens down too, which the policy did not choose."
    )
    delta: float | None = option(
        None, "Two-sided clipping: most that an unclipped ratio counts; None: bounds it nowhere.", 1e-9, 1e9
    )
    sapo_temperature_pos: float = option(1.0, "sapo: tau of positive advantages.", 1e-6, 1e6)
    sapo_temperature_neg: float = option(1.05, "sapo: tau of the others.", 1e-6, 1e6)
    vespo_k_pos: float = option(2.0, "vespo: power of the ratio for advantages of at least 0.", 0.0, 1e3)
    vespo_lambda_pos: float = option(3.0, "vespo: decay in the ratio for advantages of at least 0.", 0.0, 1e3)
    vespo_k_neg: float = option(3.0, "vespo: power of the ratio for negative advantages.", 0.0, 1e3)
    vespo_lambda_neg: float = option(2.0, "vespo: decay in the ratio for negative advantages.", 0.0, 1e3)
    off_policy_mask_threshold: float | None = option(
        None,
        "Leave out completions with a negative advantage whose tokens have become less likely than this by the mean of "
        "log old - log new (DeepSeek-V3.2); None: keeps all.",
        0.0,
        1e9,
    )
    use_bias_correction_kl: bool = option(
        False, "Multiply KL terms by their ratio: unbiased for the policy that is trained (DeepSeek-V3.2)."
    )
    top_entropy_quantile: float = option(
        1.0,
        "Share of the tokens of a micro-batch, those of the highest entropy, that count in the value (the paper: 0.2).",
        0.0,
        1.0,
    )
    entropy_coef: float = option(
        0.0, "Coefficient of the mean entropy per token, which is taken off the loss.", -1e3, 1e3
    )
    mask_truncated_completions: bool = option(
        False, "Leave completions without an end of text out of the loss; they count in the baseline of their group."
    )


@dataclass
class OptimConfig:
    """Optimiser and batches."""

    learning_rate: float = option(1e-6, "Learning rate of the first update after the warm-up.", 0.0, 1.0)
    num_iterations: int = option(2, "Passes over a rollout batch, each of other masks (mu of GRPO).", 1, 1 << 16)
    per_device_train_batch_size: int = option(8, "Completions per micro-batch.", 1, 1 << 20)
    max_steps: int = option(-1, "Optimiser updates; -1: as num_train_epochs says.", -1, 1 << 40)
    stp_rollouts: int | None = option(
        None,
        "Rollout batches; decides max_steps: each has num_iterations updates, or more with steps_per_generation.",
        0,
        1 << 31,
    )
    generation_batch_size: int | None = option(
        None, "Completions per rollout batch; None: per_device_train_batch_size * steps_per_generation.", 1, 1 << 31
    )
    steps_per_generation: int | None = option(
        None, "Micro-batches per rollout batch; None: gradient_accumulation_steps.", 1, 1 << 20
    )


@dataclass
class DataConfig:
    """Prompts."""

    shuffle_dataset: bool = option(True, "Whether each epoch has an order of its own.")
    remove_unused_columns: bool = option(False, "Whether rewards see no column but the prompt.")
    chat_template_kwargs: dict[str, Any] | None = option(
        None, "Arguments of the chat template of conversational prompts."
    )


@dataclass
class LoggingConfig:
    """Logging, saving and evaluation."""

    logging_steps: float = option(10, "Log every N updates; below 1 it is a share of all.", 0, identity="output")
    log_completions: bool = option(
        False,
        "Print completions at every log, and write them to completions/ (parquet, or JSON lines without pyarrow).",
        identity="output",
    )
    num_completions_to_print: int | None = option(
        None, "Most completions of one print; None: all.", 1, identity="output"
    )
    log_unique_prompts: bool = option(False, "Print one completion per prompt.", identity="output")
    stp_allow_changed: str | None = option(
        None,
        "What a resumed run may have otherwise than its checkpoint, joined by commas: options, reward_funcs, "
        "train_dataset, model, peft_config, processing_class, priors, stp_rs; None: nothing.",
        identity="output",
    )
    stp_keep_rollouts: int | None = option(
        None,
        "Keep every N-th rollout batch, the first and the last one for the viewer of the report; None: none.",
        1,
        1 << 31,
        identity="output",
    )
    stp_variance_every: int | None = option(
        None,
        "Log the mask noise of the update's gradient every N rollout batches (docs/variance.md); None: never.",
        1,
        1 << 31,
        identity="output",
    )


@dataclass
class AlarmConfig:
    """Alarms."""

    stp_on_alarm: Literal["warn", "stop", "rollback"] = option(
        "warn",
        "After an alarm: say so; end the run; or go back to the last checkpoint from before it with half the learning "
        "rate, after a NaN too (docs/alarms.md).",
    )
    stp_alarm_patience: int = option(
        3, "Rollout batches in a row whose reading must be wrong for an alarm; one evaluation is enough.", 1, 1 << 20
    )
    stp_alarm_ratio: float | None = option(
        1e3, "Alarm where the largest ratio to the policy that drew the completions reaches this; None: no alarm.", 1.0
    )
    stp_alarm_kl: float | None = option(10.0, "Alarm where the KL term reaches this, in nats; None: no alarm.", 0.0)
    stp_alarm_entropy: float | None = option(
        None, "Alarm where the mean entropy of a token falls to this, in nats; None: no alarm.", 0.0
    )
    stp_alarm_distinct: float | None = option(
        None, "Alarm where the distinct completions of a group fall to this; None: no alarm.", 0.0
    )
    stp_alarm_ended: float | None = option(
        None, "Alarm where the share of completions with an end of text falls to this; None: no alarm.", 0.0, 1.0
    )
    stp_alarm_equal: float | None = option(
        None, "Alarm where the share of groups of equal rewards reaches this; None: no alarm.", 0.0, 1.0
    )
    stp_alarm_collapse: float | None = option(
        0.5, "Alarm where the score of an evaluation is below this share of its best; None: no alarm.", 0.0, 1.0
    )


@dataclass
class DeviceConfig:
    """Device and speed."""

    bf16: bool | None = option(None, "Autocast model passes to bfloat16; None: on a GPU that has it.")
    stp_device: str | None = option(
        None, "Torch device; None: cuda where there is one and not use_cpu.", identity="speed"
    )
    stp_num_threads: int | None = option(
        None,
        "Torch threads; None leaves the choice to torch. One is fastest for tiny policies. Sums of other threads round "
        "otherwise.",
        1,
        1 << 12,
    )
    stp_compile: Literal["auto", "blocks", "none"] = option(
        "auto",
        "Compile the network's blocks one by one (torch.compile), which takes some time once. auto: on a CUDA device, "
        "from half a billion parameters.",
        identity="speed",
    )
    stp_adapter_dtype: Literal["keep", "float32", "bfloat16"] = option(
        "keep",
        "Type in which LoRA weights are stored and updated. Passes compute in that of bf16 wherever it is on; "
        "stored in "
        "bfloat16, an update below 1/256 of a weight is lost.",
    )
    stp_rollout_weights: Literal["adapters", "merged"] = option(
        "adapters",
        "Whether rollouts add adapters to the output of each layer, as scoring does, or to its weights, which are "
        "rounded.",
    )


@dataclass
class ProcessesConfig:
    """Several processes."""

    fsdp: bool | None = option(
        None,
        "Share the weights out over the processes (FSDP2); None: as accelerate launch says, else each process has all.",
        identity="speed",
    )
    fsdp_config: dict[str, Any] | None = option(
        None,
        "How, by accelerate's names: reshard_after_forward, cpu_offload, transformer_layer_cls_to_wrap.",
        identity="speed",
    )
    stp_rollout_gather: Literal["auto", "rollout", "forward"] = option(
        "auto",
        "With fsdp, whether weights are gathered once per rollout (all of them then lie in every process) or block by "
        "block in every forward; auto: once where they fit.",
        identity="speed",
    )


@dataclass
class TaskSection:
    """The task of a run of the command line."""

    task: str = option("sudoku", "Task: prompts, rewards and priors (docs of stp_rs.tasks).")
    data: str | None = option(None, "A file of problems to train on; None: those that the task makes.")
    train_size: int = option(4096, "Training problems.", 1, 1 << 31)
    eval_size: int = option(192, "Problems per evaluation.", 1, 1 << 31, identity="output")
    stp_keep_rollouts: int | None = option(
        50,
        "Keep every N-th rollout batch, the first and the last one for the viewer of the report; None: none.",
        1,
        1 << 31,
        identity="output",
    )


@dataclass
class ModelConfig:
    """Opening a model by its name (those of TRL's ModelConfig)."""

    model_revision: str | None = option(None, "A branch, tag or commit of the hub.")
    trust_remote_code: bool = option(
        False, "Run the modelling code that comes with the model (LLaDA, Dream, SDAR on the hub)."
    )
    dtype: str = option("auto", "Type of the weights: auto (as saved), bfloat16, float16, float32.")
    attn_implementation: str | None = option(None, "sdpa, eager, flash_attention_2; None: the choice of the model.")
    use_peft: bool = option(False, "Train LoRA adapters instead of the weights.")
    lora_r: int = option(16, "Rank of the adapters.", 1, 1 << 16)
    lora_alpha: int = option(32, "Scale of the adapters times their rank.", 1, 1 << 20)
    lora_dropout: float = option(0.05, "Recorded in the adapter; passes of a policy run without dropout.", 0.0, 0.999)
    lora_target_modules: str | None = option(
        None, "Names joined by commas, or one pattern; None: the projections of the family (docs/models.md)."
    )
    load_in_4bit: bool = option(False, "Weights in nf4 (bitsandbytes, a CUDA device); needs use_peft.")
    gradient_checkpointing: bool = option(
        False,
        "Keep only the inputs of the blocks for the backward pass, and compute them again in it.",
        identity="speed",
    )
    logit_shift: int | None = option(
        None, "0: the logits at row p predict token p. 1: row p - 1 does. None: as in the family of the model.", 0, 1
    )
    block_size: int | None = option(
        None, "Tokens per block of a block-causal model; None: as the model says.", 1, 1 << 20
    )


@dataclass
class PolicyConfig:
    """The policy of the command line: a saved model, or the embedded tiny one with its supervised warm-up."""

    model_name_or_path: str | None = option(
        None, "A model of the hub, a folder that from_pretrained opens, or a run folder; None: the tiny policy."
    )
    hidden_size: int = option(64, "Tiny policy: width.", 8, 1 << 16)
    num_hidden_layers: int = option(3, "Tiny policy: layers.", 1, 1000)
    num_attention_heads: int = option(4, "Tiny policy: attention heads.", 1, 1000)
    sft_steps: int = option(400, "Tiny policy: updates of its warm-up; 0 leaves it out.", 0, 1 << 31)
    sft_batch_size: int = option(48, "Tiny policy: demonstrations per update of its warm-up.", 1, 1 << 20)
    sft_learning_rate: float = option(3e-3, "Tiny policy: learning rate of its warm-up.", 0.0, 1.0)
