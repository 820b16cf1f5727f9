"""Options of transformers and TRL: which have their effect here, and which are refused, each with the reason."""

from collections.abc import Mapping
from types import MappingProxyType

from stp_rs.config.options import Identity

Place = tuple[str, Identity, float | None, float | None]
"""Section, what the option decides, least and greatest value."""

_NUMBERS: Place = ("Optimiser and batches", "numbers", None, None)
_LOGS: Place = ("Logging, saving and evaluation", "output", None, None)
_HUB: Place = ("Hub", "output", None, None)
_DATA: Place = ("Prompts", "speed", None, None)
_SPEED: Place = ("Device and speed", "speed", None, None)
_PROCESSES: Place = ("Several processes", "speed", None, None)


def _bounded(place: Place, low: float, high: float) -> Place:
    return (place[0], place[1], low, high)


INHERITED: Mapping[str, Place] = MappingProxyType(
    {
        "output_dir": _LOGS,
        "seed": _bounded(_NUMBERS, 0, (1 << 64) - 1),
        "data_seed": _bounded(_NUMBERS, 0, (1 << 64) - 1),
        "full_determinism": _NUMBERS,
        "num_train_epochs": _bounded(_NUMBERS, 0, 1e9),
        "gradient_accumulation_steps": _bounded(_NUMBERS, 1, 1 << 20),
        "lr_scheduler_type": _NUMBERS,
        "lr_scheduler_kwargs": _NUMBERS,
        "warmup_steps": _bounded(_NUMBERS, 0, 1 << 31),
        "warmup_ratio": _bounded(_NUMBERS, 0, 1),
        "optim": _NUMBERS,
        "optim_args": _NUMBERS,
        "optim_target_modules": _NUMBERS,
        "weight_decay": _bounded(_NUMBERS, 0, 1e3),
        "adam_beta1": _bounded(_NUMBERS, 0, 0.999999),
        "adam_beta2": _bounded(_NUMBERS, 0, 0.999999),
        "adam_epsilon": _bounded(_NUMBERS, 0, 1),
        "max_grad_norm": _bounded(_NUMBERS, 0, 1e9),
        "logging_strategy": _LOGS,
        "logging_first_step": _LOGS,
        "log_level": _LOGS,
        "disable_tqdm": _LOGS,
        "report_to": _LOGS,
        "run_name": _LOGS,
        "project": _LOGS,
        "trackio_space_id": _LOGS,
        "trackio_bucket_id": _LOGS,
        "trackio_static_space_id": _LOGS,
        "logging_dir": _LOGS,
        "include_num_input_tokens_seen": _LOGS,
        "skip_memory_metrics": _LOGS,
        "eval_strategy": _LOGS,
        "eval_steps": _bounded(_LOGS, 0, 1 << 40),
        "eval_delay": _bounded(_LOGS, 0, 1 << 40),
        "eval_on_start": _LOGS,
        "per_device_eval_batch_size": _bounded(_LOGS, 1, 1 << 20),
        "save_strategy": _LOGS,
        "save_steps": _bounded(_LOGS, 0, 1 << 40),
        "save_total_limit": _LOGS,
        "save_only_model": _LOGS,
        "load_best_model_at_end": _LOGS,
        "metric_for_best_model": _LOGS,
        "greater_is_better": _LOGS,
        "resume_from_checkpoint": _LOGS,
        "restore_callback_states_from_checkpoint": _LOGS,
        "do_train": _LOGS,
        "do_eval": _LOGS,
        "do_predict": _LOGS,
        "push_to_hub": _HUB,
        "hub_model_id": _HUB,
        "hub_strategy": _HUB,
        "hub_token": _HUB,
        "hub_private_repo": _HUB,
        "hub_always_push": _HUB,
        "hub_revision": _HUB,
        "dataloader_num_workers": _bounded(_DATA, 0, 1024),
        "dataloader_prefetch_factor": _DATA,
        "dataloader_persistent_workers": _DATA,
        "dataloader_pin_memory": _DATA,
        "use_cpu": _SPEED,
        "no_cuda": _SPEED,
        "tf32": _SPEED,
        "gradient_checkpointing": _SPEED,
        "gradient_checkpointing_kwargs": _SPEED,
        "activation_checkpointing": _SPEED,
        "activation_checkpointing_kwargs": _SPEED,
        "torch_empty_cache_steps": _SPEED,
        "ddp_timeout": _bounded(_PROCESSES, 1, 1 << 31),
        "ddp_backend": _PROCESSES,
    }
)
"""Options of transformers' TrainingArguments that hold here, with transformers' meaning."""

_ONE_SUM = "gradients are summed once per update, after its last micro-batch, and divided by what the loss says"
_OTHER_ENGINES = "the processes of a run share work through torch.distributed and FSDP2 (docs/distributed.md)"
_NO_FP16 = "no loss is scaled here; use bf16"
_OWN_SCORES = "evaluation decodes completions and scores them; it has no labels and no logits to gather"
_OWN_ROLLOUT = "completions come from the denoising rollout of this library, not from generate() or a server"
_ONE_POLICY_PASS = "rollouts and likelihoods run the policy without dropout, so that the ratio is 1 at the first update"
_OLD = "transformers removed it"
_LIGER = "its kernels compute the loss of autoregressive models"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        # transformers' TrainingArguments
        **dict.fromkeys(
            ("fp16", "fp16_full_eval", "fp16_opt_level", "half_precision_backend", "fp16_backend"), _NO_FP16
        ),
        "bf16_full_eval": "bf16 holds for rollouts and evaluation too",
        **dict.fromkeys(
            (
                *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
                *("average_tokens_across_devices", "split_batches"),
            ),
            _ONE_SUM,
        ),
        **dict.fromkeys(("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"), "its place is in fsdp_config"),
        **dict.fromkeys(
            (
                *("deepspeed", "ds3_gather_for_generation", "accelerator_config", "parallelism_config", "ray_scope"),
                *("tpu_num_cores", "tpu_metrics_debug", "mp_parameters"),
            ),
            _OTHER_ENGINES,
        ),
        "local_rank": "the launcher says it in LOCAL_RANK",
        **dict.fromkeys(
            ("log_on_each_node", "save_on_each_node", "log_level_replica"),
            "the main process alone writes logs and checkpoints",
        ),
        **dict.fromkeys(
            (
                *("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "include_for_metrics"),
                *("eval_accumulation_steps", "batch_eval_metrics", "label_names", "include_inputs_for_metrics"),
                "label_smoothing_factor",
            ),
            _OWN_SCORES,
        ),
        **dict.fromkeys(
            ("train_sampling_strategy", "group_by_length", "length_column_name"),
            "prompts are drawn in groups, in the order of shuffle_dataset",
        ),
        **dict.fromkeys(
            ("dataloader_drop_last", "dataloader_multiprocessing_context"),
            "prompts are rows of text on the host, and a rollout batch is always whole",
        ),
        "dataloader_in_order": "the order of the prompts is fixed by the seed",
        "ignore_data_skip": "the prompts of a batch follow from its number, so that nothing has to be skipped",
        "auto_find_batch_size": "a rollout batch holds whole groups; lower per_device_train_batch_size instead",
        "logging_nan_inf_filter": "a loss that is no number stops the run before the update is applied",
        "neftune_noise_alpha": "noise on the embeddings would make rollout and likelihood two policies",
        **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), _LIGER),
        **dict.fromkeys(
            ("torch_compile", "torch_compile_backend", "torch_compile_mode", "torchdynamo", "jit_mode_eval"),
            "compiling the whole model recompiles for every width of a canvas",
        ),
        "use_cache": "a bidirectional policy has no key-value cache to keep",
        "enable_jit_checkpoint": "a checkpoint is written at once and in whole; save_steps says how often",
        "debug": "the trainer has no hooks on the forward pass; a NaN stops the run with a diagnosis",
        "logging_dir": "transformers 5 reads the environment variable TENSORBOARD_LOGGING_DIR",
        "warmup_ratio": "transformers 5 takes warmup_steps below 1 as a share of all updates",
        **dict.fromkeys(
            (
                *("overwrite_output_dir", "per_gpu_train_batch_size", "per_gpu_eval_batch_size", "save_safetensors"),
                *("use_mps_device", "past_index", "adafactor", "use_legacy_prediction_loop", "push_to_hub_model_id"),
                *("push_to_hub_organization", "push_to_hub_token", "include_tokens_per_second"),
            ),
            _OLD,
        ),
        # TRL's GRPOConfig
        **dict.fromkeys(
            (
                *("use_vllm", "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_guided_decoding_regex"),
                *("vllm_structured_outputs_regex", "vllm_server_base_url", "vllm_server_host", "vllm_server_port"),
                *("vllm_server_timeout", "vllm_group_port", "vllm_gpu_memory_utilization", "vllm_max_model_length"),
                *("vllm_tensor_parallel_size", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode"),
                *("vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min"),
                *("vllm_importance_sampling_cap", "use_transformers_paged", "use_transformers_continuous_batching"),
                *("transformers_continuous_batching_config", "cache_implementation", "generation_kwargs"),
                *("repetition_penalty", "pad_to_multiple_of"),
            ),
            _OWN_ROLLOUT,
        ),
        "use_liger_loss": _LIGER,
        "disable_dropout": _ONE_POLICY_PASS,
        "cast_lm_head_to_fp32": "log-probabilities are computed in float32 from the head's output",
        "router_aux_loss_coef": "no masked-diffusion policy here has experts with a balancing loss",
        "max_prompt_length": "prompts are never cut; leave long ones out of the dataset",
        "max_tool_calling_iterations": "a completion is decoded as one canvas, which no tool can interrupt",
        "log_multimodal": "prompts are text",
        **dict.fromkeys(
            ("use_adaptive_entropy", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target"),
            "entropy_coef is one number for the whole run",
        ),
        "log_completions_hub_repo": "completions stay in output_dir/completions",
        # Other names
        "cfg_scale": "there is no classifier-free guidance: a guided step is no policy that a likelihood could be of",
        "random_masking": "masks are drawn anew for every pass, from the seed and the row",
        "mask_id": "the mask token is the tokenizer's, or the family's (docs/models.md)",
        **dict.fromkeys(
            ("reward", "rewards", "reward_funcs", "reward_fn"),
            "rewards are the task's; your own are an argument of STPTrainer, or of a task in stp_rs.tasks.TASKS",
        ),
        "do_sample": "temperature 0 decodes greedily",
        "num_inner_updates": "its name is num_iterations",
    }
)
"""Options that cannot hold here, by name, with the reason."""

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "resume": "resume_from_checkpoint: auto",
        "device": "stp_device, or use_cpu",
        "num_threads": "stp_num_threads",
    }
)
"""Options of 0.1 and what they are called now."""
