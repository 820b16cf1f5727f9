"""A whole run of a task: policy, warm-up, RL, evaluation, summary, report."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from stp_rs.cli.environment import environment
from stp_rs.config.sections import STPConfig
from stp_rs.errors import CheckpointError
from stp_rs.eval.evaluate import evaluate
from stp_rs.eval.kept import Keeper
from stp_rs.eval.report import write_report
from stp_rs.models import character_tokenizer, load, load_configured, load_tokenizer, tiny_policy
from stp_rs.models.base import DiffusionModel, device_of
from stp_rs.models.masked_lm import as_diffusion_model
from stp_rs.objective.masks import make_design
from stp_rs.priors import Copy, Prior, Template
from stp_rs.rollout.params import make_unmasking
from stp_rs.tasks import get_task
from stp_rs.tasks.base import Row, Task
from stp_rs.train.checkpoint import (
    Checkpoint,
    atomic_file,
    newest_checkpoint,
    policy_folder,
    save_checkpoint,
    write_json,
)
from stp_rs.train.metrics import PHASES, Ledger, read_metrics
from stp_rs.train.priors import check_spatial, static_priors, training_priors
from stp_rs.train.trainer import StepResult, STPTrainer, resumable, rows_read
from stp_rs.train.warmup import warm_up
from stp_rs.types import Cost

TEST_SEED = 20_260
"""Test rows do not depend on the run's seed: every run of a task is scored on the same problems."""


@dataclass(frozen=True)
class Events:
    """What a run tells whoever watches it; every callback may be left out."""

    on_phase: Callable[[str, int], None] = lambda _name, _steps: None
    on_sft: Callable[[int, float], None] = lambda _step, _loss: None
    on_step: Callable[[StepResult], None] = lambda _result: None

    def also(self, on_step: Callable[[StepResult], None]) -> "Events":
        """Return the same callbacks with another one for steps."""
        first = self.on_step

        def both(result: StepResult) -> None:
            first(result)
            on_step(result)

        return replace(self, on_step=both)


def run_training(config: STPConfig, events: Events | None = None) -> dict[str, Any]:
    """Train a task's policy as configured; write the run folder and return its summary.

    The folder holds config.yaml, metrics.jsonl, warmup/ (the policy before RL), checkpoint-N/, summary.json and
    report.html.
    """
    events = events or Events()
    started = time.perf_counter()
    set_threads(config)
    task = make_task(config)
    config = complete(config, task)
    run = Path(config.output_dir)
    check_spatial(config)
    make_unmasking(config)
    make_design(config)
    checkpoint = resumable(config)  # before anything in the folder is touched
    write_config(config, run)
    if checkpoint is not None and (done := finished(config, checkpoint)) is not None:
        write_report(run)
        return done
    sft_started = time.perf_counter()
    model, tokenizer = prepare_policy(config, task, run, events)
    sft_seconds = time.perf_counter() - sft_started
    test_rows = task.rows("test", config.eval_size, TEST_SEED)
    static = static_priors(config, task, tokenizer, model)
    before = evaluate(model, tokenizer, task, test_rows, config)
    trainer = make_trainer(config, task, model, tokenizer)
    events.on_phase("rl", config.max_steps - trainer.step)
    try:
        trainer.train(events.also(Keeper(run, model, tokenizer, task, config)).on_step)
    finally:
        if trainer.step:
            write_report(run)  # of what there is, if the run is stopped
    with trainer.ledger.time("eval"):
        after = evaluate(trainer.model, tokenizer, task, test_rows, config)
        pruned = evaluate(trainer.model, tokenizer, task, test_rows, config, priors=static)
    summary = summarise(trainer, before, after, pruned)
    summary["seconds"] |= {"sft": sft_seconds, "total": time.perf_counter() - started}
    summary["samples"] = samples(task, test_rows[:8], before=before["completions"], after=after["completions"])
    write_json(run / "summary.json", summary)
    write_report(run)
    return summary


def samples(task: Task, rows: Sequence[Row], **completions: Sequence[str]) -> list[dict[str, Any]]:
    """Return prompts with completions of several policies, and whether each is right."""
    found: list[dict[str, Any]] = [{"prompt": row["prompt"]} for row in rows]
    for name, texts in completions.items():
        for sample, text, solved in zip(found, texts, task.score(texts[: len(rows)], rows)["solved"], strict=False):
            sample |= {name: text, f"{name}_solved": solved >= 1}
    return found


def finished(config: STPConfig, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the summary of a run that an earlier call finished, or None: its figures stay as they were."""
    path = checkpoint.path.parent / "summary.json"
    if checkpoint.step < config.max_steps or not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    same = (summary["steps"], summary["eval_size"]) == (checkpoint.step, config.eval_size)
    return summary if same else None


def make_trainer(config: STPConfig, task: Task, model: DiffusionModel, tokenizer: Any) -> STPTrainer:
    """Return the trainer of a task's policy, at the newest checkpoint of its run folder."""
    rows = task.rows("train", config.train_size, config.seed)
    static = static_priors(config, task, tokenizer, model)
    read = [rows[i] for i in rows_read(config, len(rows))]
    before = Ledger(device_of(model))
    with before.time("prior"):
        priors = training_priors(config, task, model, tokenizer, rows=read, static=static, ledger=before)
    trainer = STPTrainer(
        model,
        list(task.reward_funcs),
        config,
        rows,
        tokenizer,
        priors=priors,
        evaluate=lambda trainer: logged_validation(trainer, task, tokenizer),
    )
    trainer.ledger.include(before)
    return trainer


def summarise(
    trainer: STPTrainer, before: dict[str, Any], after: dict[str, Any], pruned: dict[str, Any]
) -> dict[str, Any]:
    """Return the numbers of summary.json: scores before and after RL, and with priors after it."""
    args, ledger, seconds = trainer.args, trainer.ledger, trainer.ledger.seconds
    return {
        "task": args.task,
        "preset": trainer.args.preset,
        "seed": args.seed,
        "solved_before": before["solved"],
        "solved_before_ci": before["solved_ci"],
        "solved_after": after["solved"],
        "solved_after_ci": after["solved_ci"],
        "solved_after_prior": pruned["solved"],
        "cells_after": after.get("cells"),
        "nfe_per_completion": {"free": after["nfe"], "prior": pruned["nfe"], "training": last_nfe(trainer.run)},
        "forwards": {phase: ledger.forwards[phase] for phase in PHASES},
        "forward_equivalents": ledger.forward_equivalents,
        "tokens": dict(ledger.tokens),
        "head_rows": dict(ledger.head_rows),
        "peak_bytes": int(ledger.measured()["diffusion/peak_bytes"]),
        "seconds": {
            "rl": seconds["prior"] + seconds["rollout"] + seconds["reward"] + seconds["update"],
            "rollout": seconds["rollout"],
            "update": seconds["update"],
            "eval": seconds["eval"],
            "scoring": seconds["scoring"],
            **{f"cpu_{phase}": value for phase, value in ledger.cpu_seconds.items()},
            **{f"gpu_{phase}": value for phase, value in ledger.gpu_seconds.items()},
        },
        "steps": trainer.step,
        "eval_size": len(after["completions"]),
        "environment": environment(),
    }


def make_task(config: STPConfig, model: str | Path = "") -> Task:
    """Return the configured task, on the rows of `data` where a file is given.

    Questions are asked through the chat template of `model`, else of the model given, where its tokenizer has one.
    """
    options: dict[str, Any] = {"data": config.data} if config.data else {}
    model = model or config.model_name_or_path
    if model:
        options["tokenizer"] = load_tokenizer(found_model(model), trust_remote_code=config.trust_remote_code)
    return get_task(config.task, **options)


def found_model(name: str | Path) -> str | Path:
    """Return where a model is: the folder of a run or of a saved model, or a name of the hub as it is."""
    return policy_folder(name) if Path(name).exists() or str(name).count("/") != 1 else name


def complete(config: STPConfig, task: Task) -> STPConfig:
    """Return the configuration with the task's completion length, in tokens of the policy, where none was given."""
    if config.max_completion_length:
        return config
    length = task.completion_length
    if config.model_name_or_path:
        given = found_model(config.model_name_or_path)
        length = task.completion_tokens(load_tokenizer(given, trust_remote_code=config.trust_remote_code))
    return replace(config, max_completion_length=length)


def set_threads(config: STPConfig) -> None:
    """Set torch's threads; two BLAS threads under contention were 5 times slower than one for the tiny policy."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)


def pick_device(config: STPConfig) -> torch.device:
    """Return the configured device, or cuda where there is one."""
    return torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))


_WARMUP_OPTIONS = {
    *("task", "data", "seed", "train_size", "max_completion_length", "hidden_size", "num_hidden_layers"),
    *("num_attention_heads", "sft_steps", "sft_batch_size", "sft_learning_rate"),
}
"""A finished warm-up is used again where these are the same."""


def warm_up_identity(config: STPConfig) -> dict[str, Any]:
    """Return the options that decide the policy before RL; runs that share them start from the same weights."""
    return {k: v for k, v in config.to_flat().items() if k in _WARMUP_OPTIONS}


def prepare_policy(config: STPConfig, task: Task, run: Path, events: Events) -> tuple[DiffusionModel, Any]:
    """Return the policy before RL and its tokenizer: the given model, a finished warm-up of this run, or a new one."""
    device = pick_device(config)
    module: Any
    if config.model_name_or_path:
        return load_configured(config, found_model(config.model_name_or_path), device)
    identity = warm_up_identity(config)
    warmed = newest_checkpoint(run / "warmup") if config.resume else None
    if warmed is not None and warmed.state.get("config") == identity:
        return load(warmed.path, device=device)
    tokenizer = character_tokenizer(task.alphabet)
    length = config.max_completion_length
    module = tiny_policy(config, vocab_size=len(tokenizer), max_length=task.prompt_length + length, seed=config.seed)
    model = as_diffusion_model(module.to(device), tokenizer)
    events.on_phase("sft", config.sft_steps)
    if config.sft_steps:
        warm_up(
            model,
            tokenizer,
            task.demonstrations(config.train_size, config.seed),
            completion_length=length,
            steps=config.sft_steps,
            batch_size=config.sft_batch_size,
            learning_rate=config.sft_learning_rate,
            seed=config.seed,
            on_step=events.on_sft,
        )
    save_checkpoint(
        run / "warmup", model=module, tokenizer=tokenizer, optimizer={}, state={"step": 0, "config": identity}
    )
    return model, tokenizer


def decode_both(
    model: DiffusionModel, tokenizer: Any, task: Task, rows: Sequence[Row], config: STPConfig
) -> dict[str, Any]:
    """Return the scores of the free decode, and as `{name}_prior` those with every token that the prompt determines.

    The priors are the task's own, whatever the run was trained with: runs of all prunings are decoded alike.
    """
    priors: list[Prior] = [Template(task.template, tokenizer), Copy(task.copies, tokenizer)]
    free = evaluate(model, tokenizer, task, rows, config)
    prior = evaluate(model, tokenizer, task, rows, config, priors=priors)
    return {**free, **{f"{name}_prior": value for name, value in prior.items()}}


def validation(model: DiffusionModel, tokenizer: Any, task: Task, config: STPConfig) -> dict[str, Any]:
    """Return scores on the validation split, free and with priors."""
    return decode_both(model, tokenizer, task, task.rows("validation", config.eval_size, TEST_SEED), config)


def logged_validation(trainer: STPTrainer, task: Task, tokenizer: Any) -> dict[str, float]:
    """Return validation scores for the metrics file; their canvases go to the ledger."""
    scores = validation(trainer.model, tokenizer, task, trainer.args)
    for kind in ("", "_prior"):
        trainer.ledger.add(Cost(*(scores[f"{name}{kind}"] for name in ("forwards", "tokens", "head_rows"))), "eval")
    return {f"eval/{name}": value for name, value in scores.items() if isinstance(value, float)}


def last_nfe(run: Path) -> float | None:
    """Return the forwards per completion of the last logged training step."""
    lines = read_metrics(run / "metrics.jsonl")
    return lines[-1]["diffusion/nfe"] if lines else None


def write_config(config: STPConfig, run: Path) -> None:
    """Write config.yaml: the options of this run by their flat names."""
    import yaml

    run.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.to_flat(), sort_keys=False)
    with atomic_file(run / "config.yaml") as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_run(path: str | Path) -> tuple[DiffusionModel, Any, STPConfig, Task]:
    """Return (model, tokenizer, config, task) of a run folder, or of a checkpoint inside one.

    Raises:
        CheckpointError: there is no model, or no config.yaml beside it.
    """
    folder = policy_folder(path)
    configs = [f / "config.yaml" for f in (Path(path), folder.parent) if (f / "config.yaml").is_file()]
    if not configs:
        raise CheckpointError(f"{path}: no config.yaml in it or beside it; give a run folder")
    config = STPConfig.from_yaml(configs[0])
    set_threads(config)
    task = make_task(config, folder)
    model, tokenizer = load_configured(config, folder, pick_device(config))
    return model, tokenizer, complete(config, task), task
