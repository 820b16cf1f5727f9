"""The trainer: ten calls in the order of the data flow.

prompts -> priors -> rollout -> rewards -> advantages -> design (masks, weights) -> likelihood -> loss

Each call is public; `examples/custom_loop.py` makes the same steps by hand.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stp_rs.config.sections import STPConfig
from stp_rs.data.prompts import PromptBatch, batch_indices, encode_prompts, rows_of_batches
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import CheckpointError, ConfigError, InvalidValueError
from stp_rs.models import load_configured
from stp_rs.models.acceleration import adapters_merged, compile_blocks, first_pass, set_adapter_dtype, wants_compiled
from stp_rs.models.base import DiffusionModel, device_of, end_token_ids, passes_without_dropout, trainable
from stp_rs.models.masked_lm import as_diffusion_model
from stp_rs.models.reference import reference_policy
from stp_rs.models.saving import check_savable
from stp_rs.objective.advantages import decoupled_advantages, group_advantages, reward_metrics
from stp_rs.objective.masks import canvas_lengths
from stp_rs.objective.noise import update_noise
from stp_rs.priors import Prior, Reference, allowed_tokens, compose_priors
from stp_rs.priors import lifecycle as hooks
from stp_rs.rollout.generate import generate, rollout_metrics
from stp_rs.rollout.loop import Batching
from stp_rs.rollout.params import make_unmasking, restricted, sampling_law
from stp_rs.rollout.regroup import informative_groups
from stp_rs.rollout.rescue import rescue_groups
from stp_rs.rollout.rewards import Rewards, column_names, completion_token_ids, decode_completions
from stp_rs.train.checkpoint import Checkpoint, clear_partial, load_weights, newest_checkpoint, save_checkpoint
from stp_rs.train.metrics import Ledger, MetricsFile
from stp_rs.train.update import PolicyUpdate, micro_batches

Metrics = dict[str, float]


@dataclass(frozen=True)
class StepResult:
    """What one step did: the rollout with its texts and rewards, and the metrics that were logged."""

    step: int
    rollout: Rollout
    completions: list[str]
    rewards: list[float]
    metrics: Metrics


class STPTrainer:
    """Trains a masked-diffusion policy by RL with spatio-temporal pruning. Arguments as in TRL's GRPOTrainer.

    Args:
        model: a name or folder that `stp_rs.load` opens as `args` says, a model of transformers, or a `DiffusionModel`.
        reward_funcs: TRL-shaped reward functions, coroutine functions and sequence classifiers (`Rewards`).
        args: the configuration; `max_completion_length` must be set.
        train_dataset: rows with a `prompt` and the columns that the rewards read.
        processing_class: the tokenizer; of a model given by name its own by default.
        reward_processing_classes: tokenizers of the classifiers among `reward_funcs`.
        priors: spatial priors, applied in order.
        evaluate: called as `evaluate(trainer)` every `eval_steps`; returns metrics to log.

    Raises:
        ConfigError, ModelError, CheckpointError: before anything is trained.
        DivergenceError: a NaN or infinity turned up; the checkpoints before it are intact.

    Example:
        trainer = STPTrainer(model, [reward], STPConfig.make(max_completion_length=64), rows, tokenizer)
        trainer.train()
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: STPConfig,
        train_dataset: Sequence[Mapping[str, Any]],
        processing_class: Any = None,
        *,
        reward_processing_classes: Any = None,
        priors: Sequence[Prior] = (),
        evaluate: Callable[["STPTrainer"], Metrics] | None = None,
    ) -> None:
        self.args = args
        if isinstance(model, str | Path):
            model, own = load_configured(args, model, args.device or None)
            processing_class = own if processing_class is None else processing_class
        self.tokenizer = processing_class
        self.model: DiffusionModel = as_diffusion_model(model, processing_class)
        check_savable(self.model.module, processing_class)
        device = device_of(self.model)
        self.rewards = Rewards(reward_funcs, reward_processing_classes, args.reward_weights, device=device)
        self.train_dataset = train_dataset
        self.priors = list(priors)
        self.evaluate = evaluate
        self.ledger = Ledger(device)
        self._reward_logs: list[Metrics] = []
        self.step = 0
        self.run = Path(args.output_dir)
        if args.max_completion_length < 1:
            raise ConfigError("max_completion_length: got 0, needs the tokens of a completion canvas (at least 1)")
        if len(train_dataset) == 0:
            raise ConfigError("train_dataset: got no rows, needs at least one")
        self.rewards.check_columns(column_names(train_dataset))
        self.unmasking = make_unmasking(args)
        if args.stp_adapter_dtype != "keep":
            set_adapter_dtype(self.model.module, getattr(torch, args.stp_adapter_dtype))
        self.optimizer = torch.optim.AdamW(
            trainable(self.model),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.weight_decay,
        )
        needs_reference = args.beta > 0 and args.stp_kl_target == "reference"
        self.reference = reference_policy(self.model) if needs_reference else None
        self._compile()
        self.update = PolicyUpdate(
            args, self.model, self.reference, self.optimizer, self.ledger, self.unmasking.diffusion_steps
        )
        self.hints = next((p for p in self.priors if isinstance(p, Reference) and p.when == "all_wrong"), None)
        if args.stp_rescue != "none" and self.hints is None:
            raise ConfigError(
                'stp_rescue: got "reference" without hints, needs Reference(..., when="all_wrong") in priors'
            )
        self._resume()
        self._metrics = MetricsFile(self.run / "metrics.jsonl", resume_step=self.step)

    def train(self, on_step: Callable[[StepResult], None] | None = None) -> None:
        """Run the steps that are left; log, evaluate and save as configured."""
        while self.step < self.args.max_steps:
            result = self.train_step()
            metrics = result.metrics
            if self.evaluate is not None and self.args.eval_steps and self.step % self.args.eval_steps == 0:
                with self.ledger.time("eval"):
                    metrics.update(self.evaluate(self))
            if self.step % self.args.logging_steps == 0:
                self._metrics.write({"step": self.step, **metrics, **self.ledger.measured()})
            if self.args.save_steps and self.step % self.args.save_steps == 0:
                self.save()
            if on_step is not None:
                on_step(result)
        if not (self.run / f"checkpoint-{self.step}").exists():
            self.save()

    def train_step(self) -> StepResult:
        """Make one rollout batch and the optimiser updates on it."""
        config = self.args
        hooks.begin_step(self.priors, self.step, config.max_steps)
        rollout, rescued = self._play(self._prompts(self.step), self.priors), 0
        if config.stp_rescue != "none" and self.hints is not None:
            share = config.stp_rescue_share
            rollout, rescued = rescue_groups(rollout, self._play, self.hints, share=share, priors=self.priors)
        most = config.stp_dynamic_sampling
        rollout, replaced = informative_groups(rollout, self._another_batch, most)
        rewards = rollout.earned()
        hooks.observe(self.priors, rollout, rewards)
        advantages, metrics = group_advantages(rewards, rollout.group, config.scale_rewards, config.stp_advantage)
        if config.multi_objective_aggregation == "normalize_then_sum":
            by_function = np.stack(list(rollout.rewards.values()))
            advantages = decoupled_advantages(by_function, self.rewards.weights, rollout.group)
        if config.stp_rescue != "none":
            metrics["diffusion/rescued_share"] = rescued / len(rollout)
        if most:
            metrics["diffusion/replaced_groups"] = float(replaced)
        rollout = rollout.replaced(advantage=advantages)
        allowed = allowed_tokens(self.priors, rollout.prompts, config.max_completion_length)
        if config.stp_variance_every and self.step % config.stp_variance_every == 0:
            with self.ledger.time("variance"), self._autocast():
                for rows in micro_batches(rollout, config, end_token_ids(self.model))[:1]:
                    given = rollout.minibatch(rows), restricted(allowed, rows)
                    noise, cost = update_noise(self.model, self.update.design, config, *given)
                    self.ledger.add(cost, "variance")
                    metrics.update(noise)
        with self.ledger.time("update"), passes_without_dropout(self.model.module), self._autocast():
            metrics.update(self.update.run(rollout, self.step, allowed))
        metrics.update(reward_metrics(dict(rollout.rewards)) | self._logged_by_rewards(metrics))
        metrics.update(rollout_metrics(rollout, end_token_ids(self.model)))
        self.step += 1
        metrics["epoch"] = self.step * groups_of(self.args) / len(self.train_dataset)
        metrics.update(self.ledger.counts())
        return StepResult(self.step, rollout, list(rollout.completions), rewards.tolist(), metrics)

    def _prompts(self, number: int) -> PromptBatch:
        """Return the prompts of a rollout batch, each once per completion; numbers from `max_steps` on are extra."""
        picked = batch_indices(number, groups_of(self.args), len(self.train_dataset), self.args.seed)
        prompts = encode_prompts([self.train_dataset[i] for i in picked], self.tokenizer, uids=picked)
        return prompts.repeat(self.args.num_generations, step=number)

    def _another_batch(self, attempt: int) -> Rollout:
        """Return an extra batch of this step: its prompts and keys are those of no step."""
        extra = self.step * self.args.stp_dynamic_sampling + attempt - 1
        return self._play(self._prompts(self.args.max_steps + extra), self.priors)

    def _play(self, prompts: PromptBatch, priors: Sequence[Prior]) -> Rollout:
        """Decode one completion per row under priors, and score it."""
        length = self.args.max_completion_length
        with self.ledger.time("prior"), self._autocast(), self._rollout_weights():
            self.ledger.add(hooks.prepare(priors, prompts, length), "prior")
        with self.ledger.time("rollout"), self._autocast(), self._rollout_weights():
            rollout = generate(
                self.model,
                prompts,
                self.unmasking,
                completion_length=length,
                sampling=replace(sampling_law(self.args), allowed=allowed_tokens(priors, prompts, length)),
                prior=compose_priors(priors, prompts, length),
                seed=self.args.seed,
                slots=self.args.stp_slots,
                batching=Batching(max_tokens=self.args.stp_max_tokens),
            )
            self.ledger.add(rollout.cost, "rollout")
            self.ledger.completions += len(rollout)
        with self.ledger.time("reward"):
            lengths = canvas_lengths(rollout.unmask_step)
            completions = decode_completions(rollout.token_ids, lengths, self.tokenizer)
            ids = completion_token_ids(rollout.token_ids, lengths, self.tokenizer)
            scores = self.rewards.score(completions, prompts.rows, ids, trainer_state=getattr(self, "state", None))
            self._reward_logs.append(scores.metrics)
        version = np.full(len(rollout), self.step, dtype=np.int64)
        earned = {"reward": scores.total, "rewards": scores.by_name}
        return rollout.replaced(completions=completions, policy_version=version, **earned)

    def _logged_by_rewards(self, builtin: Metrics) -> Metrics:
        """Return the means of what reward functions logged since the last call."""
        logs, self._reward_logs = self._reward_logs, []
        names = dict.fromkeys(name for log in logs for name in log)
        if clash := [name for name in names if name in builtin]:
            raise InvalidValueError(f"log_metric {clash[0]}: is the name of a metric of the trainer; choose another")
        return {name: _mean([log[name] for log in logs if name in log]) for name in names}

    def _compile(self) -> None:
        """Compile the blocks of the policy and of a reference of its own, as configured."""
        for model in {id(m.module): m for m in (self.model, self.reference) if m is not None}.values():
            if wants_compiled(model.module, self.args.stp_compile):
                with self._autocast():
                    compile_blocks(model.module, probe=partial(first_pass, model))

    def _rollout_weights(self) -> contextlib.AbstractContextManager[None]:
        merged = self.args.stp_rollout_weights == "merged"
        return adapters_merged(self.model.module) if merged else contextlib.nullcontext()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.args.bf16:
            return contextlib.nullcontext()
        # no cache of casts: it would outlive an optimiser step, and the next inner iteration would see old weights
        return torch.autocast(device_of(self.model).type, dtype=torch.bfloat16, cache_enabled=False)

    def save(self) -> Path:
        """Write a checkpoint of this step and return its folder."""
        state = {"step": self.step, "ledger": self.ledger.to_dict(), "config": _identity(self.args)}
        folder = save_checkpoint(
            self.run,
            model=self.model.module,
            tokenizer=self.tokenizer,
            optimizer=self.optimizer.state_dict(),
            state=state,
            priors=hooks.take_states(self.priors),
        )
        if self.update.replayed is not None:
            self.update.replayed.save(folder / _REPLAYED)
        return folder

    def _resume(self) -> None:
        """Continue from the newest checkpoint of this run folder; all randomness is keyed by step."""
        clear_partial(self.run)
        checkpoint = resumable(self.args)
        if checkpoint is None:
            return
        load_weights(self.model.module, checkpoint.path)
        self.optimizer.load_state_dict(checkpoint.optimizer_state())
        self.ledger.restore(checkpoint.state["ledger"])
        hooks.load_states(self.priors, checkpoint.prior_states())
        self.step = checkpoint.step
        if self.args.stp_replay_batches:
            self.update.replayed = Rollout.load(checkpoint.path / _REPLAYED)


_REPLAYED = "replayed.safetensors"
"""In a checkpoint: the rows that are trained on again."""


def groups_of(config: STPConfig) -> int:
    """Return the prompts of a rollout batch."""
    completions = config.per_device_train_batch_size * config.gradient_accumulation_steps
    return completions // config.num_generations


def rows_read(config: STPConfig, num_rows: int) -> list[int]:
    """Return the rows of a dataset that a run's rollouts can read, extra batches of dynamic sampling included."""
    batches = config.max_steps * (1 + config.stp_dynamic_sampling)
    return rows_of_batches(batches, groups_of(config), num_rows, config.seed)


def resumable(config: STPConfig) -> Checkpoint | None:
    """Return the newest checkpoint of the configuration's run folder, or None where a run starts from nothing.

    Raises:
        CheckpointError: it was made with other settings.
    """
    checkpoint = newest_checkpoint(Path(config.output_dir)) if config.resume else None
    if checkpoint is None:
        return None
    ours, theirs = _identity(config), checkpoint.state.get("config", {})
    changed = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
    if changed:
        raise CheckpointError(
            f"{checkpoint.path}: was made with other settings ({', '.join(changed)}); use another output_dir, "
            "delete the folder, or restore the settings"
        )
    return checkpoint


def _mean(values: Any) -> float:
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if array.size else 0.0


def _identity(config: STPConfig) -> dict[str, Any]:
    """The options that decide the numbers of a run; a resume with others would be another run."""
    free = {"output_dir", "resume", "device", "num_threads", "logging_steps", "save_steps", "eval_steps"}
    free |= {
        "stp_compile",
        "num_completions_to_print",
        "stp_slots",
        "eval_size",
        "stp_variance_every",
        "stp_keep_rollouts",
    }
    return {k: v for k, v in config.to_flat().items() if k not in free}
