"""A whole run of a task: policy, warm-up, RL, evaluation, summary, report."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, enable_full_determinism

from stp_rs.config import TaskConfig
from stp_rs.config.sections import PolicyConfig, TaskSection
from stp_rs.config.yaml import read_yaml
from stp_rs.distributed import agree, on_main, together
from stp_rs.errors import CheckpointError, ConfigError
from stp_rs.eval.evaluate import evaluate
from stp_rs.models import character_tokenizer, load, load_configured, load_tokenizer, tiny_policy
from stp_rs.models.base import DiffusionModel
from stp_rs.models.loading import check_unopened
from stp_rs.models.masked_lm import as_diffusion_model
from stp_rs.objective.masks import make_design
from stp_rs.priors import Copy, Prior, Template
from stp_rs.rollout.params import make_unmasking
from stp_rs.tasks import get_task
from stp_rs.tasks.base import Row, Task
from stp_rs.train.alarms import best_and_last
from stp_rs.train.checkpoint import (
    Checkpoint,
    newest_checkpoint,
    plain,
    policy_folder,
    save_checkpoint,
    write_json,
)
from stp_rs.train.console import Console
from stp_rs.train.environment import environment
from stp_rs.train.folder import write_config
from stp_rs.train.kept import Keeper, KeptRollouts
from stp_rs.train.lock import run_folder
from stp_rs.train.loop import resumable
from stp_rs.train.metrics import PHASES
from stp_rs.train.priors import check_spatial, static_priors
from stp_rs.train.report import write_report
from stp_rs.train.trainer import STPTrainer
from stp_rs.train.warmup import warm_up
from stp_rs.types import Cost

WarmUp = Callable[[int, float], None]
TEST_SEED = 20_260
"""Test rows do not depend on the run's seed: every run of a task is scored on the same problems."""


def run_training(
    config: TaskConfig, callbacks: Sequence[TrainerCallback] = (), on_sft: WarmUp | None = None
) -> dict[str, Any]:
    """Train a task's policy as configured; write the run folder and return its summary.

    The folder holds config.yaml, metrics.jsonl, warmup/ (the policy before RL), checkpoint-N/, summary.json and
    report.html.

    Args:
        config: the configuration.
        callbacks: of the trainer.
        on_sft: hears each update of the warm-up: (number, loss).
    """
    with together():
        return _run_task(config, callbacks, on_sft)


def _run_task(config: TaskConfig, callbacks: Sequence[TrainerCallback], on_sft: WarmUp | None) -> dict[str, Any]:
    config.check_device()
    if config.num_generations_eval is not None:
        raise ConfigError(
            f"num_generations_eval: got {config.num_generations_eval} for a task, which is evaluated by one greedy "
            "completion of each problem; leave it out, and measure samples with `stp-rs eval --samples`"
        )
    set_threads(config)
    task = make_task(config)
    config = complete(config, task)
    check_spatial(config, task)
    make_unmasking(config)
    make_design(config)
    # what cannot be is refused before a folder is made
    _check_own(Path(str(config.output_dir)))
    agree(lambda: resumable(config, config.resume_from_checkpoint))
    with run_folder(Path(str(config.output_dir))):
        return _run_training(config, task, callbacks, on_sft)


def _run_training(
    config: TaskConfig, task: Task, callbacks: Sequence[TrainerCallback], on_sft: WarmUp | None
) -> dict[str, Any]:
    started, run = time.perf_counter(), Path(str(config.output_dir))
    on_main(partial(_begin_folder, config, run))
    sft_started = time.perf_counter()
    model, tokenizer = prepare_policy(config, task, run, on_sft)
    sft_seconds = time.perf_counter() - sft_started
    trainer = TaskTrainer(config, task, model, tokenizer)
    trainer.add_callback(KeptRollouts(Keeper(run, trainer.policy, tokenizer, task, config, trainer.rewards)))
    # another run is refused before a file of this one is touched
    checkpoint = agree(lambda: trainer.find_checkpoint(None))
    on_main(partial(write_config, config, run))
    done = None if checkpoint is None else on_main(partial(finished, config, checkpoint))
    if done is not None:
        on_main(partial(write_report, run))
        return done
    test_rows = task.rows("test", config.eval_size, TEST_SEED)
    static = evaluation_priors(config, task, tokenizer, model)
    before = evaluate(trainer.policy, tokenizer, task, test_rows, config)
    for shown in (Console, PrinterCallback):  # the caller's are shown, or none
        trainer.remove_callback(shown)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    with trainer.ledger.time("eval"):
        after = evaluate(trainer.policy, tokenizer, task, test_rows, config)
        pruned = evaluate(trainer.policy, tokenizer, task, test_rows, config, priors=static)
    summary = summarise(trainer, before, after, pruned)
    summary["seconds"] |= {"sft": sft_seconds, "total": time.perf_counter() - started}
    summary["samples"] = samples(task, test_rows[:8], before=before["completions"], after=after["completions"])
    on_main(partial(write_json, run / "summary.json", summary))
    trainer.summary = summary
    on_main(trainer.create_model_card)
    on_main(partial(write_report, run))
    return summary


_WRITTEN = ("config.yaml", "README.md", "metrics.jsonl", "summary.json", "report.html")
"""What a run writes beside its checkpoints."""


def _check_own(run: Path) -> None:
    """Refuse a folder with files of a run's names that no run wrote: they would be overwritten."""
    options = run / "config.yaml"
    ours = options.is_file() and {"task", "preset"} <= read_yaml(options).keys()
    foreign = [name for name in _WRITTEN if (run / name).is_file()]
    if foreign and not ours:
        raise ConfigError(
            f"output_dir: got {run}, whose {foreign[0]} no run wrote and a run would overwrite; needs a folder of its "
            "own"
        )


def _begin_folder(config: TaskConfig, run: Path) -> None:
    """Write the configuration of a run that starts anew, and remove what one left whose checkpoints were deleted."""
    if resumable(config, config.resume_from_checkpoint) is None:
        for left in ("summary.json", "report.html"):
            (run / left).unlink(missing_ok=True)
        write_config(config, run)


def samples(task: Task, rows: Sequence[Row], **completions: Sequence[str]) -> list[dict[str, Any]]:
    """Return prompts with completions of several policies, and whether each is right."""
    found: list[dict[str, Any]] = [{"prompt": row["prompt"]} for row in rows]
    for name, texts in completions.items():
        for sample, text, solved in zip(found, texts, task.score(texts[: len(rows)], rows)["solved"], strict=False):
            sample |= {name: text, f"{name}_solved": solved >= 1}
    return found


def finished(config: TaskConfig, checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the summary of a run that an earlier call finished, or None: its figures stay as they were."""
    path = checkpoint.path.parent / "summary.json"
    if checkpoint.step < config.max_steps or not path.is_file():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = (summary["steps"], summary["eval_size"]) == (checkpoint.step, config.eval_size)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # damaged: its figures are made again
    return summary if same else None


class TaskTrainer(STPTrainer):
    """The trainer of a task's policy: its rewards, its training rows, its priors, and its own scores as evaluation."""

    def __init__(
        self,
        config: TaskConfig,
        task: Task,
        model: DiffusionModel,
        tokenizer: Any,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.task, self._config = task, config
        rows = task.rows("train", config.train_size, config.seed)
        held_out = task.rows("validation", config.eval_size, TEST_SEED)
        super().__init__(model, list(task.reward_funcs), config, rows, held_out, tokenizer, callbacks=list(callbacks))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the rows to evaluate, all at once."""
        return list(self.eval_dataset if eval_dataset is None else eval_dataset)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,  # noqa: ARG002 - the signature is transformers'
        prediction_loss_only: bool | None = None,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Return the task's scores, greedy, free and with priors; their canvases go to the ledger."""
        with self.ledger.time("eval"):
            scores = decode_both(self.policy, self.tokenizer, self.task, dataloader, self._config)
        for kind in ("", "_prior"):
            self.ledger.add(Cost(*(scores[f"{name}{kind}"] for name in ("forwards", "tokens", "head_rows"))), "eval")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items() if isinstance(value, float)}
        return EvalLoopOutput(np.array(scores["completions"]), None, metrics, len(dataloader))


def summarise(
    trainer: STPTrainer, before: dict[str, Any], after: dict[str, Any], pruned: dict[str, Any]
) -> dict[str, Any]:
    """Return the numbers of summary.json: scores before and after RL, and with priors after it."""
    args, ledger, seconds = trainer.args, trainer.ledger, trainer.ledger.seconds
    return {
        "task": trainer.task.name,
        "preset": args.preset,
        "seed": args.seed,
        "solved_before": before["solved"],
        "solved_before_ci": before["solved_ci"],
        "solved_after": after["solved"],
        "solved_after_ci": after["solved_ci"],
        "solved_after_prior": pruned["solved"],
        "cells_after": after.get("cells"),
        "nfe_per_completion": {"free": after["nfe"], "prior": pruned["nfe"], "training": last_nfe(trainer)},
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
        "score": best_and_last(trainer.state.log_history),
        "alarms": plain(trainer.alarms.history),
        "steps": trainer.state.global_step,
        "rollouts": trainer.rollouts,
        "eval_size": len(after["completions"]),
        "environment": environment(),
    }


def make_task(config: TaskConfig, model: str | Path = "") -> Task:
    """Return the configured task, on the rows of `data` where a file is given.

    Questions are asked through the chat template of `model`, else of the model given, where its tokenizer has one.
    """
    options: dict[str, Any] = {"data": config.data} if config.data else {}
    model = model or config.model_name_or_path or ""
    if model:
        options["tokenizer"] = _tokenizer_of(config, model)
        options["chat_template_kwargs"] = config.chat_template_kwargs
    return get_task(config.task, **options)


def _tokenizer_of(config: TaskConfig, model: str | Path) -> Any:
    found, code = found_model(model), config.trust_remote_code
    return load_tokenizer(found, trust_remote_code=code, revision=config.model_revision)


def found_model(name: str | Path) -> str | Path:
    """Return where a model is: the folder of a run or of a saved model, or a name of the hub as it is."""
    return policy_folder(name) if Path(name).exists() or str(name).count("/") != 1 else name


def complete(config: TaskConfig, task: Task) -> TaskConfig:
    """Return the configuration with the task's completion length, in tokens of the policy, where none was given.

    Raises:
        ConfigError: options about opening a model, and none is named, or about the tiny policy, and a model is; or a
            task of data without data.
    """
    if config.model_name_or_path:
        _check_tiny_unasked(config)
    else:
        check_unopened(config, "the tiny policy, which is made and not opened; needs model_name_or_path")
    if not task.completion_length:
        task.rows("train", 1, config.seed)  # a task of data without data says so
    given: Any = config.max_completion_length
    if given is not None:
        least = 0 if config.model_name_or_path else layout_length(task)
        if given < least:
            raise ConfigError(
                f"max_completion_length: got {given} for the task {task.name}, whose layout has {least} tokens; needs "
                f"{least} or more, or none for its own length"
            )
        return config
    length = task.completion_length
    if config.model_name_or_path:
        length = task.completion_tokens(_tokenizer_of(config, config.model_name_or_path))
    return replace(config, max_completion_length=length)


def _check_tiny_unasked(config: TaskConfig) -> None:
    """Refuse options of the tiny policy where a model is named: they would do nothing. `sft_steps: 0` says as much."""
    default = PolicyConfig(model_name_or_path=config.model_name_or_path)
    for name in (field.name for field in fields(PolicyConfig)):
        got = getattr(config, name)
        if got != getattr(default, name) and (name, got) != ("sft_steps", 0):
            raise ConfigError(
                f"{name}: got {got!r}, which is about the tiny policy, beside model_name_or_path, whose model has its "
                f"own shape and no warm-up; needs one of the two: leave out {name} or model_name_or_path"
            )


def set_threads(config: TaskConfig) -> None:
    """Set torch's threads and kernels, before the first pass.

    Two BLAS threads under contention were 5 times slower than one for the tiny policy.
    """
    if config.stp_num_threads:
        torch.set_num_threads(config.stp_num_threads)
    if config.full_determinism:
        enable_full_determinism(config.seed)


def warm_up_identity(config: TaskConfig) -> dict[str, Any]:
    """Return the options that decide the policy before RL; runs that share them start from the same weights."""
    names = [field.name for section in (TaskSection, PolicyConfig) for field in fields(section)]
    decided = {"seed", "max_completion_length", *names} & config.identity("numbers").keys()
    rounded = {"bf16": True} if config.bf16 else {}  # named only where it is on: warm-ups from before have none
    return {name: getattr(config, name) for name in sorted(decided)} | rounded


def prepare_policy(
    config: TaskConfig, task: Task, run: Path, on_sft: WarmUp | None = None
) -> tuple[DiffusionModel, Any]:
    """Return the policy before RL and its tokenizer: the given model, a finished warm-up of this run, or a new one."""
    device = config.device
    module: Any
    if config.model_name_or_path:
        return load_configured(config, found_model(config.model_name_or_path), device)
    identity = warm_up_identity(config)
    warmed = agree(lambda: newest_checkpoint(run / "warmup")) if config.resume_from_checkpoint == "auto" else None
    if warmed is not None and warmed.state.get("config") == identity:
        return load(warmed.path, device=device)
    tokenizer = character_tokenizer(task.alphabet)
    length = config.max_completion_length
    module = tiny_policy(config, vocab_size=len(tokenizer), max_length=task.prompt_length + length, seed=config.seed)
    model = as_diffusion_model(module.to(device), tokenizer)
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
            bf16=bool(config.bf16),
            on_step=on_sft,
        )
    state = {"step": 0, "config": identity}
    on_main(lambda: save_checkpoint(run / "warmup", model=module, tokenizer=tokenizer, state=state))
    return model, tokenizer


def layout_length(task: Task) -> int:
    """Return the characters of a task's layout: of a policy whose tokens are characters, the least canvas."""
    return 1 + max((at for at, text in task.template.items() if text), default=-1)


def determined(task: Task, tokenizer: Any) -> list[Prior]:
    """Return the priors of every token that a task's layout and the prompt determine."""
    return [Template(task.template, tokenizer), Copy(task.copies, tokenizer)]


def evaluation_priors(config: TaskConfig, task: Task, tokenizer: Any, model: DiffusionModel) -> list[Prior]:
    """Return what a decode "with priors" stands under: the run's own, or those of the task where it has none.

    Nothing, where the task's places are no token places of the tokenizer.
    """
    own = static_priors(config, task, tokenizer, model)
    if own:
        return own
    try:
        task.check_places(tokenizer)
    except ConfigError:
        return []
    return determined(task, tokenizer)


def decode_both(
    model: DiffusionModel, tokenizer: Any, task: Task, rows: Sequence[Row], config: TaskConfig
) -> dict[str, Any]:
    """Return the scores of the free decode, and as `{name}_prior` those with every token that the prompt determines.

    The priors are the task's own, whatever the run was trained with: runs of all prunings are decoded alike.
    """
    priors = determined(task, tokenizer)
    free = evaluate(model, tokenizer, task, rows, config)
    prior = evaluate(model, tokenizer, task, rows, config, priors=priors)
    return {**free, **{f"{name}_prior": value for name, value in prior.items()}}


def validation(model: DiffusionModel, tokenizer: Any, task: Task, config: TaskConfig) -> dict[str, Any]:
    """Return scores on the validation split, free and with priors."""
    return decode_both(model, tokenizer, task, task.rows("validation", config.eval_size, TEST_SEED), config)


def last_nfe(trainer: STPTrainer) -> float | None:
    """Return the forwards per completion of the last logged rollout batches."""
    return next((line["diffusion/nfe"] for line in trainer.state.log_history[::-1] if "diffusion/nfe" in line), None)


def load_run(path: str | Path) -> tuple[DiffusionModel, Any, TaskConfig, Task]:
    """Return (model, tokenizer, config, task) of a run folder, of a checkpoint inside one, or of its `warmup`.

    Raises:
        CheckpointError: there is no model, or no config.yaml beside it.
    """
    folder = policy_folder(path)
    warmed = [folder.parent.parent] if folder.parent.name == "warmup" else []  # RUN/warmup/checkpoint-0
    beside = [Path(path), folder.parent, *warmed]
    configs = [place / "config.yaml" for place in beside if (place / "config.yaml").is_file()]
    if not configs:
        raise CheckpointError(f"{path}: no config.yaml in it or beside it; give a run folder")
    if "task" not in read_yaml(configs[0]):
        raise CheckpointError(f"{path}: is the run of a script, which has no task; needs one of `stp-rs train`")
    try:
        config = TaskConfig.from_yaml(configs[0])
    except ConfigError as error:
        raise ConfigError(f"{configs[0]}: {error}") from error
    set_threads(config)
    task = make_task(config, folder)
    model, tokenizer = load_configured(config, folder, config.device)
    return model, tokenizer, complete(config, task), task
