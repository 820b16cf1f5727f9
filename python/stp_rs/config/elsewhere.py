"""Options under the names that other trainers and papers give them, and what they are called here."""

from collections.abc import Mapping
from types import MappingProxyType

_NAMES: Mapping[str, str] = MappingProxyType(
    {
        # d1, LLaDA, Dream, Fast-dLLM
        "stp_prompt_mask": "p_mask_prompt prompt_mask_prob",
        "max_completion_length": "gen_length max_new_tokens max_length length response_length max_response_length",
        "max_completion_length (of a completion) or stp_max_tokens (of a forward)": "max_tokens",
        "stp_confidence": "remasking remask alg confidence",
        "stp_selection=threshold:P": "threshold",
        "stp_selection=factor:F": "factor",
        "diffusion_steps": "num_diffusion_steps denoising_steps sampling_steps gen_steps",
        "stp_max_nfe": "nfe",
        "diffusion_steps (of a completion) or max_steps (of training)": "steps",
        "task, with data for a file": "dataset dataset_name",
        "task": "env task_name",
        "data": "dataset_path data_path train_file",
        # SPG, ESPO, wd1
        "stp_bound": "logp_estimation",
        "stp_bound_power": "spg_beta",
        "stp_bound_mixture": "spg_omega mix_weight",
        "num_mc": "num_t mc mc_num mc_samples num_mc_samples n_mc",
        "stp_design": "forward_type estimator",
        # verl, OpenRLHF, and what people say
        "num_generations": "n g group_size num_gen rollout_n num_samples n_samples_per_prompt",
        "learning_rate": "lr stp_lr lr_rate actor_lr actor_learning_rate",
        "weight_decay": "wd l2",
        "beta": "kl_coef kl_loss_coef init_kl_coef kl_beta",
        "beta (its weight) or stp_kl (its estimator)": "kl",
        "stp_kl": "kl_estimator kl_loss_type",
        "epsilon": "clip clip_eps clip_range cliprange clip_ratio clip_ratio_low eps_clip eps",
        "epsilon_high": "clip_ratio_high eps_clip_high clip_high",
        "num_iterations": "mu ppo_epochs inner_epochs",
        "num_train_epochs": "epochs epoch n_epochs num_epochs total_epochs",
        "per_device_train_batch_size": "batch batch_size train_batch_size micro_batch_size",
        "per_device_eval_batch_size": "eval_batch_size",
        "gradient_accumulation_steps": "grad_accum accumulation_steps",
        "max_grad_norm": "grad_clip clip_grad gradient_clipping max_norm",
        "max_steps": "updates iterations iters total_training_steps train_steps",
        "stp_rollouts": "rollouts num_rollouts",
        "adam_beta1": "betas beta1",
        "adam_beta2": "beta2",
        "optim": "optimizer optimiser",
        "lr_scheduler_type": "scheduler lr_scheduler lr_schedule",
        "warmup_steps": "warmup",
        "model_name_or_path": "model model_path model_name model_id base_model pretrained",
        "use_peft": "lora peft use_lora",
        "lora_r": "lora_rank r rank",
        "lora_target_modules": "lora_target",
        "load_in_4bit, with use_peft": "qlora",
        "dtype": "torch_dtype precision",
        "dtype=float32": "fp32",
        "stp_device": "cuda gpu",
        "use_cpu": "cpu",
        "stp_num_threads": "threads nthreads",
        "stp_compile": "compile",
        "output_dir": "out output out_dir save_dir run_dir output_path o",
        "preset": "algo algorithm method",
        "pruning": "prune",
        "stp_spatial": "prior priors",
        "report_to": "wandb tensorboard logger tracker",
        "save_steps": "save_freq save_every",
        "eval_steps, with eval_strategy=steps": "test_freq eval_freq eval_every",
        "eval_strategy": "eval evaluation_strategy",
        "logging_steps": "log_freq log_every",
        "entropy_coef": "entropy_coeff ent_coef",
        "temperature": "t temp",
        "resume_from_checkpoint=none": "overwrite",
    }
)

ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {name: here for here, names in _NAMES.items() for name in names.split()}
)
"""What an option is called here, by the name that it has elsewhere."""
