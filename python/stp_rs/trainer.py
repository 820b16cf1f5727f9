"""The trainer: ten calls in the order of the data flow.

prompts -> priors -> rollout -> rewards -> advantages -> buffer -> design (masks, weights) -> likelihood -> loss

Each call is public; `examples/custom_loop.py` makes the same steps by hand.
"""

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stp_rs import _core
from stp_rs.advantages import group_advantages
from stp_rs.analysis.gradients import update_noise
from stp_rs.buffer import Minibatch, TrajectoryBuffer, fill_buffer, gather
from stp_rs.checkpoint import Checkpoint, clear_partial, newest_checkpoint, save_checkpoint
from stp_rs.config import STPConfig
from stp_rs.engine import Engine
from stp_rs.errors import CheckpointError, ConfigError, DivergenceError
from stp_rs.likelihood import Masks, draw_masks, token_elbo
from stp_rs.loss import LossInputs, policy_loss
from stp_rs.metrics import Ledger, MetricsFile
from stp_rs.model import DiffusionModel, MaskedLMAdapter, as_diffusion_model, device_of, passes_without_dropout
from stp_rs.priors import Prior, Reference, allowed_tokens, compose_priors, hooks
from stp_rs.prompts import PromptBatch, batch_indices, encode_prompts
from stp_rs.rescue import Played, rescue_groups
from stp_rs.rewards import RewardFunc, decode_completions, score_rewards
from stp_rs.rollout import Rollout, generate, rollout_metrics
from stp_rs.sampling import Sampling, restricted

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
        model: a transformers masked LM, or any `DiffusionModel`.
        reward_funcs: TRL-shaped reward functions; their sum is the reward.
        args: the configuration; `max_completion_length` must be set.
        train_dataset: rows with a `prompt` and the columns that the rewards read.
        processing_class: the tokenizer.
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
        reward_funcs: Sequence[RewardFunc] | RewardFunc,
        args: STPConfig,
        train_dataset: Sequence[Mapping[str, Any]],
        processing_class: Any,
        *,
        priors: Sequence[Prior] = (),
        evaluate: Callable[["STPTrainer"], Metrics] | None = None,
    ) -> None:
        self.args = args
        self.tokenizer = processing_class
        self.model: DiffusionModel = as_diffusion_model(model, processing_class)
        self.reward_funcs = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        self.train_dataset = train_dataset
        self.priors = list(priors)
        self.evaluate = evaluate
        self.ledger = Ledger()
        self.step = 0
        self.run = Path(args.run.output_dir)
        if args.rollout.max_completion_length < 1:
            raise ConfigError("max_completion_length: got 0, needs the tokens of a completion canvas (at least 1)")
        if len(train_dataset) == 0:
            raise ConfigError("train_dataset: got no rows, needs at least one")
        self.sampler = make_sampler(args)
        self.design = _core.Design(
            args.loss.stp_design,
            args.loss.num_mc,
            num_iterations=args.optim.num_iterations,
            block_length=args.rollout.block_length,
        )
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.module.parameters() if p.requires_grad],
            lr=args.optim.learning_rate,
            betas=(args.optim.adam_beta1, args.optim.adam_beta2),
            weight_decay=args.optim.weight_decay,
        )
        self.hints = next((p for p in self.priors if isinstance(p, Reference) and p.when == "all_wrong"), None)
        if args.pruning.stp_rescue != "none" and self.hints is None:
            raise ConfigError(
                'stp_rescue: got "reference" without hints, needs Reference(..., when="all_wrong") in priors'
            )
        self._allowed: Tensor | None = None
        self.reference = frozen_copy(self.model, self.tokenizer) if args.loss.beta > 0 else None
        self._resume()
        self._metrics = MetricsFile(self.run / "metrics.jsonl", resume_step=self.step)

    def train(self, on_step: Callable[[StepResult], None] | None = None) -> None:
        """Run the steps that are left; log, evaluate and save as configured."""
        run = self.args.run
        while self.step < self.args.optim.max_steps:
            result = self.train_step()
            metrics = result.metrics
            if self.evaluate is not None and run.eval_steps and self.step % run.eval_steps == 0:
                with self.ledger.time("eval"):
                    metrics.update(self.evaluate(self))
            if self.step % run.logging_steps == 0:
                self._metrics.write({"step": self.step, **metrics})
            if run.save_steps and self.step % run.save_steps == 0:
                self.save()
            if on_step is not None:
                on_step(result)
        if not (self.run / f"checkpoint-{self.step}").exists():
            self.save()

    def train_step(self) -> StepResult:
        """Make one rollout batch and the optimiser updates on it."""
        config, seed = self.args, self.args.run.seed
        group_size = config.rollout.num_generations
        batch_size = config.optim.per_device_train_batch_size * config.optim.gradient_accumulation_steps
        hooks.begin_step(self.priors, self.step, config.optim.max_steps)
        picked = batch_indices(self.step, batch_size // group_size, len(self.train_dataset), seed)
        rows = [self.train_dataset[i] for i in picked]
        prompts = encode_prompts(rows, self.tokenizer, uids=picked).repeat(group_size, step=self.step)
        self._allowed = allowed_tokens(self.priors, prompts, config.rollout.max_completion_length)
        played, rescued = self._play(prompts, self.priors), 0
        if config.pruning.stp_rescue != "none" and self.hints is not None:
            share = config.pruning.stp_rescue_share
            played, rescued = rescue_groups(played, self._play, self.hints, share=share, priors=self.priors)
        rollout, completions, rewards, by_name = played.rollout, played.completions, played.rewards, played.by_name
        hooks.observe(self.priors, rollout, rewards)
        advantages, metrics = group_advantages(rewards, prompts.group, config.loss.scale_rewards)
        if config.pruning.stp_rescue != "none":
            metrics["diffusion/rescued_share"] = rescued / len(rollout)
        buffer = fill_buffer(rollout, rewards, advantages, version=self.step)
        if config.run.stp_variance_every and self.step % config.run.stp_variance_every == 0:
            with self.ledger.time("variance"), self._autocast():
                metrics.update(
                    update_noise(self.model, self.design, config, self._micro_batches(buffer), self._allowed)
                )
        with self.ledger.time("update"), passes_without_dropout(self.model.module), self._autocast():
            metrics.update(self._update(buffer))
        metrics.update({f"rewards/{name}/mean": _mean(values) for name, values in by_name.items()})
        metrics.update(rollout_metrics(rollout, completions, self.model.eos_token_id))
        self.step += 1
        metrics["epoch"] = self.step * (batch_size // group_size) / len(self.train_dataset)
        metrics.update({f"diffusion/forwards_{name}": float(n) for name, n in self.ledger.forwards.items()})
        return StepResult(self.step, rollout, completions, rewards.tolist(), metrics)

    def _play(self, prompts: PromptBatch, priors: Sequence[Prior]) -> Played:
        """Decode one completion per row under priors, and score it."""
        rollout_config = self.args.rollout
        length = rollout_config.max_completion_length
        with self.ledger.time("rollout"), self._autocast():
            rollout = generate(
                self.model,
                prompts,
                self.sampler,
                completion_length=length,
                sampling=replace(sampling_law(self.args), allowed=allowed_tokens(priors, prompts, length)),
                prior=compose_priors(priors, prompts, length),
                seed=self.args.run.seed,
                slots=rollout_config.generation_batch_size,
                engine=Engine(max_tokens=rollout_config.stp_max_tokens),
            )
            self.ledger.forwards["rollout"] += rollout.stats["forwards"] + hooks.take_forwards(priors)
        with self.ledger.time("reward"):
            lengths = (rollout.unmask_step >= -1).sum(1)
            completions = decode_completions(rollout.token_ids, lengths, self.tokenizer)
            rewards, by_name = score_rewards(self.reward_funcs, completions, prompts.rows, rollout.token_ids.tolist())
        return Played(rollout, completions, rewards, by_name)

    def _update(self, buffer: TrajectoryBuffer) -> Metrics:
        """Make `num_iterations` optimiser updates on the buffer; the inner index counts updates, not micro-batches."""
        optim, loss_config = self.args.optim, self.args.loss
        batches = list(self._micro_batches(buffer))
        old: dict[tuple[int, int], Tensor] = {}
        reference: dict[tuple[int, int], Tensor] = {}
        masks = {(j, i): self._draw(batch, j) for j in range(optim.num_iterations) for i, batch in enumerate(batches)}
        with torch.no_grad():
            for (j, i), drawn in masks.items():
                if j > 0:  # at j = 0 the policy is still the old one: its new estimate is the old one
                    old[j, i] = self._estimate(self.model, batches[i], drawn)
                if self.reference is not None:
                    reference[j, i] = self._estimate(self.reference, batches[i], drawn)
        totals: dict[str, list[float]] = {}
        for j in range(optim.num_iterations):
            self._set_learning_rate(j)
            self.optimizer.zero_grad(set_to_none=True)
            update: Metrics = {"loss": 0.0}
            for i, batch in enumerate(batches):
                new_RL = self._estimate(self.model, batch, masks[j, i])
                device = new_RL.device
                inputs = LossInputs(
                    new_RL=new_RL,
                    old_RL=old.get((j, i), new_RL.detach()),
                    ref_RL=reference.get((j, i)),
                    advantages_R=torch.from_numpy(batch.advantage).to(device),
                    scored_RL=torch.from_numpy(masks[j, i].scored_RL).to(device).float(),
                )
                loss, metrics = policy_loss(inputs, loss_config, num_completions=len(buffer))
                loss.backward()
                self.ledger.forwards["backward"] += len(masks[j, i].row_P)
                update["loss"] += float(loss.detach())
                for name, value in metrics.items():
                    totals.setdefault(name, []).append(value)
                elbo = float(new_RL.detach().sum()) / max(1.0, float(masks[j, i].scored_RL.sum()))
                totals.setdefault("diffusion/token_elbo", []).append(elbo)
            if not batches:  # the full computation would give a gradient of zero, which moves the moments
                for parameter in self.optimizer.param_groups[0]["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            update["grad_norm"] = self._step_optimizer(j, update["loss"])
            for name, value in update.items():
                totals.setdefault(name, []).append(value)
        return {name: _mean(values) for name, values in totals.items()} | {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "diffusion/rows_used": float(sum(len(b) for b in batches)) / len(buffer),
        }

    def _micro_batches(self, buffer: TrajectoryBuffer) -> Iterator[Minibatch]:
        """Yield the rows that have a gradient, in the order of the buffer.

        A row of advantage 0 (and, without a KL term, of weight 0) adds exactly nothing: it is not computed.
        """
        advantage = np.empty(len(buffer), dtype=np.float32)
        rows = np.arange(len(buffer), dtype=np.int32)
        buffer.minibatch(rows, advantage=advantage)
        if self.reference is None:
            silent = advantage < 0 if self.args.loss.stp_negative_advantage_weight == 0 else np.zeros_like(rows, bool)
            rows = rows[(advantage != 0) & ~silent]
        size = self.args.optim.per_device_train_batch_size
        for start in range(0, len(rows), size):
            yield gather(buffer, rows[start : start + size], pad_token_id=self.model.pad_token_id)

    def _draw(self, batch: Minibatch, iteration: int) -> Masks:
        return draw_masks(
            self.design,
            batch,
            seed=self.args.run.seed,
            iteration=iteration,
            score_prior=self.args.pruning.stp_score_prior,
            diffusion_steps=self.sampler.diffusion_steps,
        )

    def _estimate(self, model: DiffusionModel, batch: Minibatch, masks: Masks) -> Tensor:
        self.ledger.forwards["likelihood"] += len(masks.row_P)
        allowed = restricted(self._allowed, batch.rows)
        return token_elbo(model, batch, masks, temperature=self.args.rollout.temperature, allowed=allowed)

    def _set_learning_rate(self, iteration: int) -> None:
        updates = self.args.optim.num_iterations * self.args.optim.max_steps
        done = self.step * self.args.optim.num_iterations + iteration
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.optim.learning_rate * learning_rate_factor(self.args, done, updates)

    def _step_optimizer(self, iteration: int, loss: float) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.args.optim.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergenceError(
                f"step {self.step + 1}, inner iteration {iteration}: loss {loss}, gradient norm {norm}; the update "
                f"was not applied. Lower learning_rate ({self.args.optim.learning_rate}), raise beta, or lower "
                f"stp_negative_advantage_weight ({self.args.loss.stp_negative_advantage_weight}); the newest "
                f"checkpoint in {self.run} is from before"
            )
        self.optimizer.step()
        return norm

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.args.run.bf16:
            return contextlib.nullcontext()
        return torch.autocast(device_of(self.model).type, dtype=torch.bfloat16)

    def save(self) -> Path:
        """Write a checkpoint of this step and return its folder."""
        state = {"step": self.step, "ledger": self.ledger.to_dict(), "config": _identity(self.args)}
        return save_checkpoint(
            self.run,
            model=self.model.module,
            tokenizer=self.tokenizer,
            optimizer=self.optimizer.state_dict(),
            state=state,
            priors=hooks.take_states(self.priors),
        )

    def _resume(self) -> None:
        """Continue from the newest checkpoint of this run folder; all randomness is keyed by step."""
        clear_partial(self.run)
        checkpoint = resumable(self.args)
        if checkpoint is None:
            return
        loaded = type(self.model.module).from_pretrained(checkpoint.path)  # type: ignore[attr-defined]
        self.model.module.load_state_dict(loaded.state_dict())
        self.optimizer.load_state_dict(checkpoint.optimizer_state())
        self.ledger.restore(checkpoint.state["ledger"])
        hooks.load_states(self.priors, checkpoint.prior_states())
        self.step = checkpoint.step


def resumable(config: STPConfig) -> Checkpoint | None:
    """Return the newest checkpoint of the configuration's run folder, or None where a run starts from nothing.

    Raises:
        CheckpointError: it was made with other settings.
    """
    checkpoint = newest_checkpoint(Path(config.run.output_dir)) if config.run.resume else None
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


def make_sampler(config: STPConfig, *, prune: bool = True) -> _core.Sampler:
    """Return the sampler of a configuration; `prune=False` leaves temporal pruning and truncation out."""
    rollout, pruning = config.rollout, config.pruning
    return _core.Sampler(
        rollout.diffusion_steps or max(1, rollout.max_completion_length),
        block_length=rollout.block_length,
        quota=rollout.stp_quota,
        selection=rollout.stp_selection,
        confidence=rollout.stp_confidence,
        temporal=pruning.stp_temporal if prune else "none",
        max_nfe=pruning.stp_max_nfe if prune else 0,
        eos=rollout.stp_eos if prune or rollout.stp_eos != "truncate" else "none",
    )


def sampling_law(config: STPConfig) -> Sampling:
    """Return the training-time sampling law of a configuration."""
    return Sampling(config.rollout.temperature, config.rollout.top_k, config.rollout.top_p)


def frozen_copy(model: DiffusionModel, tokenizer: Any) -> DiffusionModel:
    """Return a copy of the policy that never trains: the reference of the KL term."""
    if isinstance(model, MaskedLMAdapter):  # split again: its parts are closures over the policy's own modules
        module = copy.deepcopy(model.module).eval()
        copied: DiffusionModel = MaskedLMAdapter(module, tokenizer, logit_shift=model.logit_shift)
    else:
        copied = copy.deepcopy(model)
    copied.module.eval().requires_grad_(False)
    return copied


def learning_rate_factor(config: STPConfig, done: int, updates: int) -> float:
    """Return the learning rate's factor after `done` of `updates` optimiser updates."""
    warmup = config.optim.warmup_steps
    if done < warmup:
        return (done + 1) / warmup
    progress = (done - warmup) / max(1, updates - warmup)
    kind = config.optim.lr_scheduler_type
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[kind]


def _mean(values: Any) -> float:
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if array.size else 0.0


def _identity(config: STPConfig) -> dict[str, Any]:
    """The options that decide the numbers of a run; a resume with others would be another run."""
    free = {"output_dir", "resume", "device", "num_threads", "logging_steps", "save_steps", "eval_steps"}
    free |= {"num_completions_to_print", "generation_batch_size", "eval_size", "stp_variance_every"}
    return {k: v for k, v in config.to_flat().items() if k not in free}
