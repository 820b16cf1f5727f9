"""Named configurations: every algorithm is a choice of design, objective, advantages and pruning, never a trainer.

A preset holds what defines its algorithm, as published where it is; rollouts, batch sizes and the optimiser are common
to all, so that `--preset` changes the algorithm and nothing else. `--pruning` composes with every preset. Sources and
where a setting departs from them: docs/presets.md.
"""

from typing import Any

PRUNINGS: dict[str, dict[str, Any]] = {
    "none": {"stp_spatial": "none", "stp_temporal": "none", "stp_score_prior": False},
    "stp": {"stp_spatial": "template+copy", "stp_temporal": "steps:0.6", "stp_score_prior": False},
    "stp_paper": {
        "stp_spatial": "offline_generation",
        "stp_temporal": "fill_ratio_batch:0.95",
        "stp_score_prior": False,
        "stp_keep": 0.05,
        "stp_selector": "top_confidence",
    },
}
"""Pruning is configuration of (canvas, plan) and composes with every preset."""

_TOKEN = {"importance_sampling_level": "token", "stp_negative_advantage_weight": 1.0}
_SEQUENCE = {"importance_sampling_level": "sequence", "stp_negative_advantage_weight": 1.0}

_EGSPO = {
    **{"importance_sampling_level": "step", "stp_negative_advantage_weight": 1.0, "scale_rewards": "none"},
    **{
        "stp_design": "top_states",
        "num_mc": 8,
        "stp_states": "entropy",
        "epsilon_high": 0.5,
        "beta": 0.04,
        "stp_kl": "k3",
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "stp": {**_TOKEN, "pruning": "stp", "stp_design": "state", "num_mc": 1, "stp_truncate": "0.5:1"},
    "stp_spread": {"pruning": "stp", "stp_design": "spread", "num_mc": 2},
    "elbo": {"stp_design": "uniform_count", "num_mc": 2},
    "grpo": {  # GRPOConfig's own, on the states that the rollout passed through
        **_TOKEN,
        **{"stp_design": "trajectory", "num_mc": 0, "num_iterations": 1, "loss_type": "dapo", "stp_kl": "k3"},
    },
    "diffu_grpo": {
        **_TOKEN,
        **{"stp_design": "mean_field", "num_mc": 1, "stp_prompt_mask": 0.15, "num_iterations": 12},
        **{"epsilon": 0.5, "beta": 0.04, "stp_kl": "k3", "scale_rewards": "none"},
    },
    "unigrpo": {
        **_TOKEN,
        **{"stp_design": "unigrpo", "num_mc": 1, "num_iterations": 4, "beta": 0.04, "stp_kl": "k3"},
    },
    "stp_paper": {
        **_TOKEN,
        **{"pruning": "stp_paper", "stp_design": "stp_paper", "num_mc": 3, "num_iterations": 4},
        **{"beta": 0.04, "stp_kl": "k3", "num_generations": 6, "per_device_train_batch_size": 24},
    },
    "espo": {
        **_SEQUENCE,
        **{"stp_design": "coupled", "num_mc": 2, "num_iterations": 8, "beta": 0.01, "stp_kl": "k2"},
        **{"stp_advantage": "leave_one_out", "scale_rewards": "none"},
    },
    "coupled_grpo": {
        **_TOKEN,
        **{"stp_design": "coupled", "num_mc": 3, "stp_truncate": "0.2:0.8", "num_iterations": 2, "epsilon": 0.5},
        **{"beta": 0.01, "stp_kl": "k3", "stp_advantage": "leave_one_out", "scale_rewards": "none"},
    },
    "spg": {
        **_SEQUENCE,
        **{"stp_design": "block_random", "num_mc": 2, "stp_prompt_mask": 0.15, "num_iterations": 4},
        **{"stp_objective": "reinforce", "stp_bound": "mixture", "scale_rewards": "none", "loss_type": "dapo"},
    },
    "wd1": {
        **_SEQUENCE,
        **{"stp_design": "mean_field", "num_mc": 1, "stp_prompt_mask": 0.15, "num_iterations": 8},
        **{"stp_objective": "reinforce", "stp_advantage": "softmax", "scale_rewards": "none"},
    },
    "cj_grpo": {**_TOKEN, "stp_design": "trajectory", "num_mc": 0, "epsilon": 0.5, "beta": 0.04, "stp_kl": "k3"},
    "trace": {**_TOKEN, "stp_design": "trajectory", "num_mc": 4, "beta": 0.01, "stp_kl": "k3"},
    "just_grpo": {**_TOKEN, "stp_design": "autoregressive", "num_mc": 1, "stp_confidence": "leftmost"},
    "stable_drl": {
        **_SEQUENCE,
        **{"stp_design": "block_random", "num_mc": 2, "stp_objective": "stable", "stp_bound": "mixture"},
        **{"num_iterations": 4, "scale_rewards": "none"},
    },
    "bgpo": {**_SEQUENCE, "stp_design": "uniform_count", "num_mc": 16, "stp_objective": "linear"},
    "gdpo": {**_SEQUENCE, "stp_design": "quadrature", "num_mc": 2, "scale_rewards": "none"},
    "igpo": {
        **_TOKEN,
        **{"stp_design": "mean_field", "num_mc": 1, "stp_prompt_mask": 0.15, "num_iterations": 4},
        **{"epsilon": 0.5, "beta": 0.01, "stp_kl": "k3", "stp_rescue": "hint"},
    },
    "egspo": _EGSPO,
    "egspo_sa": {**_EGSPO, "stp_stepwise": 0.5},
    "gdsd": {
        **_SEQUENCE,
        **{"stp_design": "stp_paper", "num_mc": 1, "stp_objective": "distil", "epsilon": 4e-4, "num_iterations": 8},
        **{"beta": 1e-3, "stp_kl": "k2", "stp_advantage": "leave_one_out", "scale_rewards": "none"},
    },
    "d2_stepmerge": {**_TOKEN, "stp_design": "step_merge", "num_mc": 16, "loss_type": "dapo"},
    "rldf": {
        **_TOKEN,
        **{"stp_design": "state", "num_mc": 1, "stp_states": "surprisal", "stp_least_prob": 0.1},
    },
    "stp_canvas": {**_TOKEN, "pruning": "stp", "stp_design": "canvas", "num_mc": 1},
    "stp_decision": {**_TOKEN, "pruning": "stp", "stp_design": "decision", "num_mc": 2, "stp_states": "doubt"},
    "stp_mix": {**_TOKEN, "pruning": "stp", "stp_design": "canvas", "num_mc": 2},
}
"""Named configurations; an option given by the user wins over the preset's."""

TASK: dict[str, Any] = {
    **{"learning_rate": 3e-4, "adam_beta2": 0.99, "optim": "adamw_torch", "per_device_train_batch_size": 32},
    **{"stp_rollouts": 200, "max_completion_length": None, "seed": 0, "bf16": False, "stp_num_threads": 1},
    **{"resume_from_checkpoint": "auto", "num_completions_to_print": 6},
}
"""What the command line sets for its own tasks: they are small, and so is the policy that it makes for them."""
