"""Nothing is accepted and ignored: every option changes a run, or it is written here why it does not.

A run is what it leaves behind: weights, logs, files, events, and what it says. Options are changed one at a time, with
what they need beside them.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from stp_rs import STPConfig, STPTrainer
from stp_rs.cli.flags import add_option_flags, given_options
from stp_rs.config.arguments import TaskConfig, options
from stp_rs.errors import ConfigError
from stp_rs.priors import Hint
from tests.fixtures import ROWS, tiny, tokenizer

BASE: dict[str, Any] = {
    "preset": "elbo",
    "pruning": "none",
    "max_completion_length": 6,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "max_steps": 4,
    "logging_steps": 2,
    "save_steps": 4,
    "eval_steps": 3,
    "eval_strategy": "steps",
    "disable_tqdm": True,
    "report_to": "none",
}
OFFLINE = {"stp_spatial": "offline_generation", "stp_keep": 0.5, "stp_selector": "random", "stp_protect_answer": False}
HINTED = {"stp_spatial": "hint", "stp_hint": 0.5, "stp_protect_answer": False}

EFFECTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # option -> (what it needs, how it is changed)
    "preset": ({}, {"preset": "stp_canvas", "pruning": "none"}),
    "pruning": ({}, {"pruning": "stp_paper"}),
    "num_generations": ({}, {"num_generations": 2}),
    "max_completion_length": ({}, {"max_completion_length": 5}),
    "diffusion_steps": ({}, {"diffusion_steps": 3}),
    "block_length": ({}, {"block_length": 3}),
    "temperature": ({}, {"temperature": 0.7}),
    "num_generations_eval": ({}, {"num_generations_eval": 2}),
    "top_k": ({}, {"top_k": 2}),
    "top_p": ({}, {"top_p": 0.5}),
    "min_p": ({}, {"min_p": 0.9}),
    "stp_confidence": ({}, {"stp_confidence": "leftmost"}),
    "stp_selection": ({}, {"stp_selection": "threshold:0.1"}),
    "stp_quota": ({"diffusion_steps": 4}, {"stp_quota": "powers_of_two"}),
    "stp_eos": ({}, {"stp_eos": "truncate"}),
    "stp_rollout_cache": ({"block_length": 3}, {"stp_rollout_cache": "dual"}),
    "stp_rollout_cap": ({"block_length": 3, "stp_rollout_cache": "prefix"}, {"stp_rollout_cap": None}),
    "stp_spatial": ({}, OFFLINE),
    "stp_temporal": ({}, {"stp_temporal": "steps:0.5"}),
    "stp_max_nfe": ({}, {"stp_max_nfe": 2}),
    "stp_score_prior": ({**OFFLINE, "preset": "elbo"}, {"stp_score_prior": True}),
    "stp_keep": (OFFLINE, {"stp_keep": 1.0}),
    "stp_selector": (OFFLINE, {"stp_selector": "prefix"}),
    "stp_protect_answer": (OFFLINE, {"stp_protect_answer": True}),
    "stp_length": ({"stp_spatial": "length"}, {"stp_length": "3"}),
    "stp_hint": (HINTED, {"stp_hint": 1.0}),
    "stp_frequency": ({"stp_spatial": "frequency", "max_steps": 8}, {"stp_frequency": 0.3}),
    "stp_prior_anneal": (HINTED, {"stp_prior_anneal": "linear:0.5"}),
    "stp_prior_per": (OFFLINE, {"stp_prior_per": "sample"}),
    "stp_prior_refresh": ({**OFFLINE, "max_steps": 12, "learning_rate": 0.1}, {"stp_prior_refresh": 1}),
    "stp_anchor_cache": (OFFLINE, {"stp_anchor_cache": "anchors"}),
    "stp_rescue": ({}, {"stp_rescue": "hint"}),
    "stp_rescue_share": ({"stp_rescue": "hint"}, {"stp_rescue_share": 1.0}),
    "stp_advantage": ({}, {"stp_advantage": "leave_one_out"}),
    "scale_rewards": ({}, {"scale_rewards": "none"}),
    "stp_stepwise": ({"preset": "egspo"}, {"stp_stepwise": 0.5}),
    "reward_weights": ({}, {"reward_weights": [3.0]}),
    "multi_objective_aggregation": ({}, {"multi_objective_aggregation": "normalize_then_sum"}),
    "stp_zero_std": ({"beta": 0.1}, {"stp_zero_std": "drop"}),
    "stp_dynamic_sampling": ({}, {"stp_dynamic_sampling": 2}),
    "stp_replay_batches": ({}, {"stp_replay_batches": 1}),
    "stp_design": ({}, {"stp_design": "coupled"}),
    "num_mc": ({}, {"num_mc": 1}),
    "stp_prompt_mask": ({}, {"stp_prompt_mask": 0.9}),
    "stp_truncate": ({"stp_design": "coupled"}, {"stp_truncate": "0.4:0.6"}),
    "stp_least_prob": ({"stp_design": "state"}, {"stp_least_prob": 0.5}),
    "stp_states": ({"stp_design": "state"}, {"stp_states": "doubt"}),
    "stp_divide_weights": ({"stp_design": "state"}, {"stp_divide_weights": True}),
    "stp_mask_block": ({"stp_design": "block_random"}, {"stp_mask_block": 2}),
    "stp_bound": ({}, {"stp_bound": "eubo"}),
    "stp_bound_power": ({"stp_bound": "eubo"}, {"stp_bound_power": 3.0}),
    "stp_bound_mixture": ({"stp_bound": "mixture"}, {"stp_bound_mixture": 0.1}),
    "loss_type": ({"learning_rate": 0.1}, {"loss_type": "vespo"}),
    "stp_objective": ({}, {"stp_objective": "reinforce"}),
    "stp_guidance": ({"preset": "gdsd"}, {"stp_guidance": 0.1}),
    "importance_sampling_level": ({"learning_rate": 0.1}, {"importance_sampling_level": "token"}),
    "epsilon": ({"learning_rate": 0.1}, {"epsilon": 1e-4}),
    "epsilon_high": ({"learning_rate": 0.1}, {"epsilon_high": 1e-4}),
    "beta": ({}, {"beta": 0.5}),
    "stp_kl": ({"beta": 0.5}, {"stp_kl": "k1"}),
    "stp_kl_target": ({"beta": 0.5}, {"stp_kl_target": "old"}),
    "stp_negative_advantage_weight": ({}, {"stp_negative_advantage_weight": 1.0}),
    "stp_blame_prior": ({**OFFLINE, "preset": "elbo", "stp_score_prior": True}, {"stp_blame_prior": True}),
    "delta": ({"learning_rate": 0.1}, {"delta": 0.5}),
    "sapo_temperature_pos": ({"loss_type": "sapo", "learning_rate": 0.1}, {"sapo_temperature_pos": 9.0}),
    "sapo_temperature_neg": ({"loss_type": "sapo", "learning_rate": 0.1}, {"sapo_temperature_neg": 9.0}),
    "vespo_k_pos": ({"loss_type": "vespo", "learning_rate": 0.1}, {"vespo_k_pos": 0.5}),
    "vespo_lambda_pos": ({"loss_type": "vespo", "learning_rate": 0.1}, {"vespo_lambda_pos": 0.5}),
    "vespo_k_neg": ({"loss_type": "vespo", "learning_rate": 0.1}, {"vespo_k_neg": 0.5}),
    "vespo_lambda_neg": ({"loss_type": "vespo", "learning_rate": 0.1}, {"vespo_lambda_neg": 0.5}),
    "off_policy_mask_threshold": ({"learning_rate": 0.3}, {"off_policy_mask_threshold": 0.0}),
    "use_bias_correction_kl": ({"beta": 0.5, "learning_rate": 0.1}, {"use_bias_correction_kl": True}),
    "top_entropy_quantile": ({}, {"top_entropy_quantile": 0.2}),
    "entropy_coef": ({}, {"entropy_coef": 0.5}),
    "mask_truncated_completions": ({}, {"mask_truncated_completions": True}),
    "sync_ref_model": (
        {"beta": 0.5, "ref_model_sync_steps": 1, "learning_rate": 0.1},
        {"sync_ref_model": True},
    ),
    "ref_model_sync_steps": ({"beta": 0.5, "sync_ref_model": True, "learning_rate": 0.1}, {"ref_model_sync_steps": 1}),
    "ref_model_mixup_alpha": (
        {"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1, "learning_rate": 0.1},
        {"ref_model_mixup_alpha": 0.1},
    ),
    "learning_rate": ({}, {"learning_rate": 2e-2}),
    "num_iterations": ({}, {"num_iterations": 1}),
    "per_device_train_batch_size": ({}, {"per_device_train_batch_size": 4}),
    "max_steps": ({}, {"max_steps": 2}),
    "stp_rollouts": ({"max_steps": None}, {"stp_rollouts": 1}),
    "generation_batch_size": ({}, {"generation_batch_size": 16}),
    "steps_per_generation": ({}, {"steps_per_generation": 2}),
    "shuffle_dataset": ({}, {"shuffle_dataset": False}),
    "logging_steps": ({}, {"logging_steps": 1}),
    "log_completions": ({}, {"log_completions": True}),
    "num_completions_to_print": ({"log_completions": True}, {"num_completions_to_print": 1}),
    "log_unique_prompts": ({"log_completions": True}, {"log_unique_prompts": True}),
    "stp_variance_every": ({}, {"stp_variance_every": 1}),
    "stp_keep_rollouts": ({}, {"stp_keep_rollouts": 1}),
    "bf16": ({}, {"bf16": True}),
    "stp_on_alarm": ({"stp_alarm_equal": 0.0, "max_steps": 8}, {"stp_on_alarm": "rollback"}),
    "stp_alarm_equal": ({"max_steps": 8}, {"stp_alarm_equal": 0.0}),
    "stp_alarm_patience": ({"stp_alarm_equal": 0.0}, {"stp_alarm_patience": 1}),
    "stp_num_threads": ({}, {"stp_num_threads": 2}),
    "seed": ({}, {"seed": 1}),
    "data_seed": ({}, {"data_seed": 1}),
    "num_train_epochs": ({"max_steps": None, "num_train_epochs": 1}, {"num_train_epochs": 2}),
    "gradient_accumulation_steps": ({}, {"gradient_accumulation_steps": 2}),
    "lr_scheduler_type": ({}, {"lr_scheduler_type": "cosine"}),
    "lr_scheduler_kwargs": ({"lr_scheduler_type": "cosine"}, {"lr_scheduler_kwargs": {"num_cycles": 2}}),
    "warmup_steps": ({}, {"warmup_steps": 2}),
    "optim": ({}, {"optim": "sgd"}),
    "weight_decay": ({}, {"weight_decay": 0.5}),
    "adam_beta1": ({}, {"adam_beta1": 0.5}),
    "adam_beta2": ({}, {"adam_beta2": 0.5}),
    "adam_epsilon": ({}, {"adam_epsilon": 1e-2}),
    "max_grad_norm": ({}, {"max_grad_norm": 1e-3, "optim": "sgd"}),
    "output_dir": ({}, {"output_dir": "elsewhere"}),
    "logging_strategy": ({}, {"logging_strategy": "no"}),
    "logging_first_step": ({}, {"logging_first_step": True}),
    "disable_tqdm": ({}, {"disable_tqdm": False}),
    "include_num_input_tokens_seen": ({}, {"include_num_input_tokens_seen": True}),
    "eval_strategy": ({}, {"eval_strategy": "no"}),
    "eval_steps": ({}, {"eval_steps": 1}),
    "eval_delay": ({}, {"eval_delay": 5}),
    "eval_on_start": ({}, {"eval_on_start": True}),
    "per_device_eval_batch_size": ({}, {"per_device_eval_batch_size": 4}),
    "save_strategy": ({}, {"save_strategy": "no"}),
    "save_steps": ({}, {"save_steps": 2}),
    "save_total_limit": ({"save_steps": 2}, {"save_total_limit": 1}),
    "save_only_model": ({}, {"save_only_model": True}),
    "resume_from_checkpoint": ({}, {"resume_from_checkpoint": "true"}),
    "metric_for_best_model": ({"eval_steps": 2, "save_steps": 2}, {"metric_for_best_model": "reward"}),
    "greater_is_better": (
        {"eval_steps": 2, "save_steps": 2, "metric_for_best_model": "reward"},
        {"greater_is_better": False},
    ),
    "gradient_checkpointing": ({}, {"gradient_checkpointing": True}),
}
UNCHANGED = {
    # of several processes; tests/distributed is about them
    "fsdp": "where the weights lie changes no number",
    "fsdp_config": "nor does how they are shared out",
    "stp_rollout_gather": "nor when they are gathered",
    "ddp_timeout": "how long a process is waited for that does not come",
    "ddp_backend": "how they talk",
    **dict.fromkeys(
        ("stp_alarm_entropy", "stp_alarm_distinct", "stp_alarm_ended", "stp_alarm_ratio", "stp_alarm_collapse"),
        "alarms of readings that are right here (tests/unit/test_alarms.py)",
    ),
    "stp_alarm_kl": "an alarm of a reading that is right here (tests/unit/test_alarms.py)",
    "stp_slots": "rows do not depend on their batch",
    "reward_timeout": "a reward that hangs (tests/unit/test_rewards_that_misbehave.py)",
    "stp_reward_errors": "a reward that fails (tests/unit/test_rewards_that_misbehave.py)",
    "stp_allow_changed": "read at a resume (tests/unit/test_damage.py)",
    "stp_max_tokens": "rows do not depend on their batch",
    "stp_constant_memory": "memory alone: the same gradient (tests/invariant/test_objectives.py)",
    "stp_forward_batch_size": "memory alone: the same estimates (tests/properties/test_likelihood.py)",
    "stp_compile": "speed alone (tests/unit/test_acceleration.py)",
    "stp_adapter_dtype": "needs adapters (tests/unit/test_acceleration.py)",
    "stp_rollout_weights": "needs adapters (tests/unit/test_acceleration.py)",
    "stp_rollout_precision": "needs torchao, or what plays its part (tests/unit/test_rollout_cache.py)",
    "stp_device": "one device here (tests/e2e/test_trl_scenarios.py)",
    "use_cpu": "one device here",
    "remove_unused_columns": "rewards see it (tests/e2e/test_trl_scenarios.py)",
    "chat_template_kwargs": "conversations see it (tests/e2e/test_trl_scenarios.py)",
    "full_determinism": "seeds the global generators, which no number comes from, and forbids operations on a GPU",
    "tf32": "a CUDA device's",
    "torch_empty_cache_steps": "a CUDA device's",
    "activation_checkpointing": "the new name of gradient_checkpointing",
    "activation_checkpointing_kwargs": "activations are recomputed by this library's own code",
    "gradient_checkpointing_kwargs": "activations are recomputed by this library's own code",
    "optim_target_modules": "of optimisers of other packages (galore, apollo), through transformers' own code",
    "optim_args": "read by optimisers of other packages, through transformers' own code",
    "load_best_model_at_end": "where the last is not the best (tests/e2e/test_trl_scenarios.py)",
    "dataloader_num_workers": "rows are read ahead, the same ones",
    "dataloader_prefetch_factor": "rows are read ahead, the same ones",
    "dataloader_persistent_workers": "rows are read ahead, the same ones",
    "dataloader_pin_memory": "rows of text are not pinned; it says nothing about them",
    "do_train": "flags of a script, which transformers does not read either",
    "do_eval": "flags of a script, which transformers does not read either",
    "do_predict": "flags of a script, which transformers does not read either",
    "log_level": "of transformers' logger, which a script sets with it",
    "restore_callback_states_from_checkpoint": "callbacks of a resumed run, by transformers' own code",
    "skip_memory_metrics": "needs psutil, by transformers' own code",
    **dict.fromkeys(("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id"), "a tracker's"),
    **dict.fromkeys(("trackio_static_space_id", "logging_dir"), "a tracker's"),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo", "hub_always_push"),
        "the hub's, by transformers' own code; no connection leaves a test",
    ),
    "hub_revision": "the hub's",
}


class Events(TrainerCallback):
    """Hears every event but those of the step, of which there are as many as there are updates."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.heard.append("evaluate")

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self.heard.append("prediction")


def reward(completions: list[str], **_: Any) -> list[float]:
    """Fail every other group, so that there is something to rescue and to replace."""
    return [0.0 if i // 4 % 2 else text.count("1") + 0.5 * text.count("2") for i, text in enumerate(completions)]


def left_behind(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **given: Any) -> Any:
    """Return what a run leaves behind, without seconds and bytes."""
    monkeypatch.chdir(run)
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    chosen = {**BASE, "output_dir": "run", **given}
    events, rows = Events(), [{**row, "solution": "1212"} for row in ROWS]
    priors = None
    if chosen.get("stp_rescue") == "hint":
        priors = [Hint(lambda row: row["solution"], tokenizer(), 0.5, when="all_wrong")]
    config = STPConfig(**chosen)
    made = STPTrainer(tiny().module, reward, config, rows, rows[:3], tokenizer(), callbacks=[events], priors=priors)
    made.train()
    measured = ("seconds", "bytes", "_runtime", "per_second", "step_time")
    lines = [
        {k: v for k, v in line.items() if not any(word in k for word in measured)} for line in made.state.log_history
    ]
    digest = hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in made.model.parameters())).hexdigest()
    files = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    said = capsys.readouterr()
    text = [line for line in said.out.splitlines() if "{" not in line]
    bars = "0/4" in said.err
    best = made.state.best_metric, made.state.best_model_checkpoint
    recomputes = bool(getattr(made.policy, "gradient_checkpointing", False))
    return digest, lines, files, text, bars, events.heard, best, threads, recomputes


@pytest.mark.parametrize("name", EFFECTS)
def test_every_option_changes_a_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    needs, change = EFFECTS[name]
    found = []
    for place, given in (("a", needs), ("b", {**needs, **change})):
        (tmp_path / place).mkdir()
        try:
            found.append(left_behind(tmp_path / place, capsys, monkeypatch, **given))
        except Exception as error:  # a refusal is an effect too; which one, is told below
            found.append(f"{type(error).__name__}: {error}")
    assert not isinstance(found[0], str), found[0]
    assert found[0] != found[1], f"{name} changes nothing"
    if isinstance(found[1], str):
        refusals = {"resume_from_checkpoint": "no checkpoint to resume from", "stp_on_alarm": "was rolled back 8 times"}
        assert refusals.get(name, "no refusal") in found[1]


def test_every_option_is_in_one_of_the_two_lists():
    known = set(options(STPConfig))
    opening = {
        "model_revision",
        "trust_remote_code",
        "dtype",
        "attn_implementation",
        "use_peft",
        "lora_r",
        "lora_alpha",
    }
    opening |= {"lora_dropout", "lora_target_modules", "load_in_4bit", "logit_shift", "block_size"}  # refused, below
    assert not set(EFFECTS) & set(UNCHANGED)
    assert set(EFFECTS) | set(UNCHANGED) | opening >= known, known - set(EFFECTS) - set(UNCHANGED) - opening


def test_options_about_opening_a_model_are_refused_with_one_that_is_open(tmp_path: Path):
    for name, value in (
        ("use_peft", True),
        ("dtype", "bfloat16"),
        ("attn_implementation", "sdpa"),
        ("model_revision", "main"),
    ):
        config = STPConfig(**{**BASE, name: value, "output_dir": str(tmp_path)})
        with pytest.raises(ConfigError, match=f"{name}: got .* for a model that is open, needs its name"):
            STPTrainer(tiny().module, reward, config, ROWS, processing_class=tokenizer())


def test_a_configuration_of_the_command_line_is_refused_without_its_task():
    with pytest.raises(ConfigError, match="args: got the TaskConfig of sudoku"):
        STPTrainer(tiny().module, reward, TaskConfig(), ROWS, processing_class=tokenizer())


@pytest.mark.parametrize("name", EFFECTS)
def test_a_flag_and_a_line_of_yaml_are_the_argument(name: str, tmp_path: Path):
    needs, change = EFFECTS[name]
    sizes = {"per_device_train_batch_size": 8, "num_generations": 4}
    given = {key: value for key, value in {**sizes, **needs, **change}.items() if value is not None}
    parser = argparse.ArgumentParser()
    add_option_flags(parser)
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in given.items()}
    flags = given_options(parser.parse_args([f"--{key}={text}" for key, text in texts.items()]))
    path = tmp_path / "options.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in given.items()))
    direct = TaskConfig(**given).to_flat()
    assert TaskConfig(**flags).to_flat() == direct
    assert TaskConfig.from_yaml(path).to_flat() == direct
