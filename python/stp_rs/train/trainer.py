"""The trainer: ten calls in the order of the data flow.

prompts -> priors -> rollout -> rewards -> advantages -> buffer -> design (masks, weights) -> likelihood -> loss

Each call is public; `examples/custom_loop.py` makes the same steps by hand. What stands around them (optimiser,
schedule, callbacks, logs, checkpoints) is `stp_rs.train.loop`.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import EvalLoopOutput

from stp_rs._core import PriorSet
from stp_rs.config.arguments import STPConfig, TaskConfig
from stp_rs.data.prompts import PromptBatch, encode_prompts
from stp_rs.data.rows import Row, Rows, check_rows
from stp_rs.data.trajectories import Rollout
from stp_rs.distributed import broadcast, is_heard, is_main, rank, same_failure, world
from stp_rs.errors import ConfigError, DivergenceError, InvalidValueError, RewardValueError
from stp_rs.models import load_configured, load_tokenizer
from stp_rs.models.acceleration import (
    adapters_merged,
    adapters_ready,
    compile_blocks,
    first_pass,
    set_adapter_dtype,
    wants_compiled,
)
from stp_rs.models.base import (
    DiffusionModel,
    autocast,
    end_token_ids,
    is_sharded,
    passes_without_dropout,
    seeded,
    trainable,
)
from stp_rs.models.loading import check_unopened
from stp_rs.models.masked_lm import as_diffusion_model
from stp_rs.models.precision import check_precision, rounded
from stp_rs.models.reference import WithoutAdapters, move_reference, reference_parameters, reference_policy
from stp_rs.models.saving import check_savable
from stp_rs.models.sharding import Steps, shard, shared_as, whole_state
from stp_rs.objective.advantages import configured_advantages, reward_metrics
from stp_rs.objective.masks import canvas_lengths, draw_masks, state_mass
from stp_rs.objective.noise import update_noise
from stp_rs.objective.replay import importance_weights, replay_logprobs
from stp_rs.priors import Hint, Prior, allowed_tokens, compose_priors
from stp_rs.priors import lifecycle as hooks
from stp_rs.priors.base import is_soft, knows_answer
from stp_rs.rollout.generate import generate, rollout_metrics
from stp_rs.rollout.loop import Batching
from stp_rs.rollout.params import draws_otherwise, make_unmasking, restricted, sampling_law
from stp_rs.rollout.regroup import informative_groups
from stp_rs.rollout.rescue import rescue_groups
from stp_rs.rollout.rewards import (
    Rewards,
    Scores,
    column_names,
    completion_lengths,
    completion_token_ids,
    decode_completions,
)
from stp_rs.rollout.shared import Played, played_together
from stp_rs.train.callbacks import Completions
from stp_rs.train.card import model_card
from stp_rs.train.checkpoint import Checkpoint, plain, write_json
from stp_rs.train.finite import not_finite
from stp_rs.train.identity import run_inputs
from stp_rs.train.kept import Keeper, KeptRollouts
from stp_rs.train.loop import TrainingLoop
from stp_rs.train.metrics import Ledger, averaged, mean
from stp_rs.train.parts import micro_batches
from stp_rs.train.priors import configured_priors, static_priors
from stp_rs.train.stepwise import stepwise
from stp_rs.train.update import PolicyUpdate
from stp_rs.types import Cost, Metrics

_EVALUATION = 1 << 40
"""Keys the randomness of evaluations: no rollout batch has such a number."""


_REFERENCE = "reference.safetensors"
"""In a checkpoint: the parameters of a KL reference that has moved."""
_REPLAYED = "replayed.safetensors"
"""In a checkpoint: the rows that are trained on again."""


@dataclass(frozen=True)
class StepResult:
    """What one rollout batch did: completions, rewards, advantages, and the means of its metrics."""

    step: int
    """Optimiser updates done."""
    rollout: Rollout
    completions: list[str]
    rewards: list[float]
    metrics: Metrics
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Columns that reward functions gave with `log_extra`."""

    def table(self) -> dict[str, list[Any]]:
        """Return the columns that TRL logs: step, prompt, completion, one per reward (None: not judged), advantage."""
        return {
            "step": [self.step] * len(self.completions),
            "prompt": [row["prompt"] for row in self.rollout.prompts.rows],
            "completion": list(self.completions),
            **{
                name: [None if math.isnan(value) else value for value in values.tolist()]
                for name, values in self.rollout.rewards.items()
            },
            "advantage": self.rollout.weights().tolist(),
            **self.extra,
        }


class STPTrainer(TrainingLoop):
    """Trains a masked-diffusion policy by RL with spatio-temporal pruning. Arguments as in TRL's GRPOTrainer.

    Args:
        model: a name or folder that `stp_rs.load` opens as `args` says, a model of transformers, or a `DiffusionModel`.
            It is moved to `args.device`.
        reward_funcs: TRL-shaped reward functions, coroutine functions and sequence classifiers (`Rewards`).
        args: the configuration; None takes every default.
        train_dataset: rows with a `prompt` (text or messages) and the columns that the rewards read: a list, a
            `datasets.Dataset`, or a stream (`IterableDataset`).
        eval_dataset: such rows, or several sets by name.
        processing_class: the tokenizer; None opens the model's own.
        reward_processing_classes: tokenizers of the classifiers among `reward_funcs`.
        callbacks: transformers' TrainerCallback; those with `on_rollout_end` hear of rollout batches too.
        optimizers: (optimiser, schedule) in place of those of the configuration.
        peft_config: adapters to train instead of the model.
        priors: spatial priors, applied in order, in place of those that `stp_spatial` names.

    Attributes:
        model: the module that is trained.
        task: of the command line's trainer; None for rows of one's own.
        policy: the same as a `DiffusionModel`.

    Raises:
        ConfigError, ModelError, CheckpointError: before anything is trained.
        DivergenceError: a NaN or infinity turned up; the checkpoints before it are intact.

    Example:
        trainer = STPTrainer(model, [reward], STPConfig(max_completion_length=64), rows, processing_class=tokenizer)
        trainer.train()
    """

    task: Any = None
    summary: Mapping[str, Any] | None = None
    """Scores of a task's run before and after, once there are some: its card says them."""

    def __init__(  # noqa: PLR0913, PLR0917 - the signature is TRL's
        self,
        model: Any,
        reward_funcs: Any = None,
        args: STPConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        *,
        priors: Sequence[Prior] | None = None,
    ) -> None:
        args = STPConfig() if args is None else args
        if isinstance(args, TaskConfig) and args.max_completion_length is None:
            raise ConfigError(
                f"args: got the TaskConfig of {args.task}, needs one that is complete; stp_rs.cli.run.run_training "
                "makes the whole run of a task"
            )
        args.check_device()
        self.policy, tokenizer = open_policy(model, processing_class, peft_config, args, check=self.task is None)
        check_savable(self.policy.module, tokenizer)
        trainable(self.policy)
        if not is_sharded(self.policy.module):  # adapters begin at random, in each process
            broadcast([*self.policy.module.parameters(), *self.policy.module.buffers()])
        self.rewards = Rewards.of(reward_funcs, args, reward_processing_classes)
        self._reward_logs: list[Metrics] = []
        self._extra: dict[str, list[Any]] = {}
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.rows = training_rows(args, train_dataset)
        several = isinstance(eval_dataset, Mapping)
        for name, rows in eval_dataset.items() if several else [("", eval_dataset)]:
            check_rows(rows, f"eval_dataset {name}".strip())
        self.rewards.check_columns(column_names(train_dataset))
        self.unmasking = make_unmasking(args)
        check_precision(args.stp_rollout_precision, args.device)
        if args.stp_adapter_dtype != "keep":
            set_adapter_dtype(self.policy.module, getattr(torch, args.stp_adapter_dtype))
        needs_reference = args.beta > 0 and args.stp_kl_target == "reference"
        shares = bool(args.fsdp and world() > 1) or is_sharded(self.policy.module)
        self.reference = (
            reference_policy(self.policy, moves=args.sync_ref_model, copies=shares) if needs_reference else None
        )
        if shares:
            self.policy, self.reference = shared_out(self.policy, self.reference, args)
        self._given_priors = priors
        self.priors = list(priors or ())
        super().__init__(args, self.policy.module, tokenizer, callbacks, optimizers)
        if args.log_completions and is_main():
            self.add_callback(Completions())
        if args.stp_keep_rollouts and self.task is None:
            keeper = Keeper(Path(str(args.output_dir)), self.policy, tokenizer, None, args, self.rewards)
            self.add_callback(KeptRollouts(keeper))
        if not shares:
            self._compile()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; transformers calls it the processing class."""
        return self.processing_class

    def count_updates(self) -> int:
        """Return the optimiser updates of the run: max_steps, or those of num_train_epochs.

        Raises:
            ConfigError: a stream of rows without max_steps.
        """
        if self.args.max_steps >= 0:
            return self.args.max_steps
        if self.rows.size is None:
            raise ConfigError("max_steps: got -1 with a stream of rows, needs a number of updates")
        batches = math.ceil(self.args.num_train_epochs * self.rows.size / self.args.groups)
        return batches * self.args.updates_per_rollout

    def count_rollouts(self) -> int:
        """Return the rollout batches of the run, without the extra ones of dynamic sampling."""
        return -(-self.count_updates() // self.args.updates_per_rollout)

    def passes_of(self, rollouts: float) -> float:
        """Return how often rollout batches have gone through the training data; of a stream, the share of the run."""
        epochs = self.rows.epochs(rollouts)
        return rollouts / max(1, self.count_rollouts()) if epochs is None else epochs

    def build(self, resumed: bool) -> None:
        """Make the priors that the configuration names, and the update."""
        if self._given_priors is None:
            with self.ledger.time("prior"), self._autocast():
                self.priors = configured_priors(
                    self.args,
                    self.task,
                    self.policy,
                    self.tokenizer,
                    read=self.rows_read,
                    resumed=resumed,
                    ledger=self.ledger,
                )
        self.hints = next((p for p in self.priors if isinstance(p, Hint) and p.when == "all_wrong"), None)
        if self.args.stp_rescue != "none" and self.hints is None:
            raise ConfigError('stp_rescue: got "hint" without one, needs Hint(..., when="all_wrong") in priors')
        self.update = self._updater(self.ledger)

    def inputs(self) -> dict[str, Any]:
        """Return hashes of rewards, rows, weights, tokenizer and priors, and the version of this library."""
        return run_inputs(
            rewards=self.rewards.functions,
            rows=self.rows,
            module=self.policy.module,
            tokenizer=self.tokenizer,
            priors=self._given_priors or None,
        )

    def parts_to_save(self) -> Mapping[str, Callable[[str], Any]]:
        """Return what writes the rows that are trained on again, and a reference that has moved."""
        replayed, parts = self.update.replayed, {}
        if replayed is not None:
            parts[_REPLAYED] = lambda path: replayed.save(Path(path))
        if self.args.sync_ref_model and self.reference is not None:
            parts[_REFERENCE] = partial(save_file, whole_state(reference_parameters(self.reference), keep=is_main()))
        return parts

    def model_card(self, name: str | None = None) -> str:
        """Return the text of the card: data, method, metrics, citation."""
        return model_card(self, self.summary, name)

    def load_parts(self, checkpoint: Checkpoint) -> None:
        """Go on with those."""
        if self.args.stp_replay_batches:
            self.update.replayed = Rollout.load(checkpoint.path / _REPLAYED)
        if self.args.sync_ref_model and self.reference is not None:
            stored = load_file(checkpoint.path / _REFERENCE)
            for name, parameter in reference_parameters(self.reference).items():
                parameter.copy_(shared_as(stored[name], parameter))

    def rows_read(self) -> list[Row]:
        """Return the training rows that the run reads, extra batches of dynamic sampling included."""
        return self.rows.read(self.count_rollouts() * (1 + self.args.stp_dynamic_sampling))

    def train_step(self) -> StepResult:
        """Make one rollout batch and the optimiser updates on it.

        Raises:
            DivergenceError: a NaN or infinity turned up; no update was made of it, and what is known of it lies in
                `output_dir`/divergence.
            RewardValueError: the same of a reward.
        """
        self.prepare()
        try:
            return self._step()
        except (DivergenceError, RewardValueError) as error:
            raise self._diagnosed(error) from error

    def _diagnosed(self, error: DivergenceError | RewardValueError) -> DivergenceError | RewardValueError:
        """Return the error with its step and the weights that are not finite; store it.

        Of several processes the one that met it stores it, under its own name, and the others name that file. What
        all met together, the numbers of an update, is the main one's.
        """
        known = {"step": self.state.global_step, "rollout_batch": self.rollouts, **error.details}
        known.setdefault("weights", not_finite(dict(self.model.named_parameters())))
        overflowed = f"; its weights hold a NaN or infinity: {known['weights'][0]}" if known["weights"] else ""
        finder = known.get("rank", rank() if is_heard(error) else 0)
        name = f"step-{self.state.global_step}" + (f"-rank-{finder}" if finder else "")
        path = Path(str(self.args.output_dir)) / "divergence" / f"{name}.json"
        told = f"; {path} holds what is known"
        message = f"step {self.state.global_step}, {known.get('phase', 'update')}: {error}{overflowed}"
        try:
            if finder == rank():
                write_json(path, plain({"error": message, **known}))
        except OSError:
            told = ""
        return same_failure(type(error)(message + told, **known), error)

    def _step(self) -> StepResult:
        config, number, started = self.args, self.rollouts, time.perf_counter()
        hooks.begin_step(self.priors, number, self.count_rollouts())
        rollout, rescued = self._play(self._prompts(number), self.priors), 0
        first, extra = rollout, self._extra
        if config.stp_rescue != "none" and self.hints is not None:
            share = config.stp_rescue_share
            rollout, rescued = rescue_groups(rollout, self._play, self.hints, share=share, priors=self.priors)
        most = config.stp_dynamic_sampling
        rollout, replaced = informative_groups(rollout, self._another_batch, most)
        extra = extra if rollout is first else {}
        hooks.observe(self.priors, rollout, rollout.earned())
        rollout, metrics = self._judged(rollout)
        metrics["num_tokens"] = float(self.state.num_input_tokens_seen)
        if config.stp_rescue != "none":
            metrics["diffusion/rescued_share"] = rescued / len(rollout)
        if most:
            metrics["diffusion/replaced_groups"] = float(replaced)
        allowed = allowed_tokens(self.priors, rollout.prompts, config.max_completion_length)
        rollout, sampling = self._corrected(rollout, allowed)
        metrics |= sampling
        if config.stp_stepwise > 0.0:
            rollout = self._stepwise(rollout, allowed)
        if config.stp_variance_every and number % config.stp_variance_every == 0:
            with self.ledger.time("variance"), self._autocast():
                for rows in micro_batches(rollout, config, end_token_ids(self.policy))[:1]:
                    given = rollout.minibatch(rows), restricted(allowed, rows)
                    noise, cost = update_noise(self.policy, self.update.design, config, *given)
                    self.ledger.add(cost, "variance")
                    metrics.update(noise)
        self.record(metrics)
        updates: list[Metrics] = []
        with self.ledger.time("update"), passes_without_dropout(self.model), self._autocast():
            for update in self.update.updates(rollout, allowed, number):
                updates.append(update)
                self.record({"step_time": time.perf_counter() - started})
                started = time.perf_counter()
                self.after_update(update, number + len(updates) / config.updates_per_rollout)
                moves = config.sync_ref_model and self.state.global_step % config.ref_model_sync_steps == 0
                if moves and self.reference is not None:
                    move_reference(self.reference, self.policy, config.ref_model_mixup_alpha)
                if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
                    break
        self.rollouts += 1
        names = dict.fromkeys(name for update in updates for name in update)
        metrics |= averaged({name: [update[name] for update in updates if name in update] for name in names})
        metrics |= {"epoch": float(self.state.epoch or 0.0), "learning_rate": self._rate, **self.ledger.counts()}
        for alarm in self.alarms.batch(metrics, self.state.global_step):
            self.alarmed(alarm)
        self._whole_step = self.state.global_step
        rewards = rollout.earned().tolist()
        result = StepResult(self.state.global_step, rollout, list(rollout.completions), rewards, metrics, extra)
        self.tell_ours("on_rollout_end", result)
        return result

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return an evaluation set in batches of prompts; `eval_dataset` is one, or the name of one of several."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise ConfigError("eval_dataset: got none, needs rows to evaluate")
        each = self.args.num_generations_eval or self.args.num_generations
        return list(_in_batches(eval_dataset, max(1, self.args.per_device_eval_batch_size // each)))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Return a set for `predict` in batches of prompts."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,  # noqa: ARG002 - the signature is transformers'
        prediction_loss_only: bool | None = None,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Decode num_generations_eval completions of every prompt under the hard priors, and score them.

        The numbers are those of training, the same random ones at every evaluation; `predictions` are token ids.
        """
        each = self.args.num_generations_eval or self.args.num_generations
        made = self.priors
        if self._given_priors is None and not self._prepared:  # before training: those that need no rollout
            made = static_priors(self.args, self.task, self.tokenizer, self.policy)
        priors = [prior for prior in made if not is_soft(prior) and not knows_answer(prior)]
        ledger = Ledger(self.args.device)
        updater = self._updater(ledger)
        found: list[tuple[int, Metrics]] = []
        ids: list[NDArray[np.int64]] = []
        with self.ledger.time("eval"):
            for number, given in enumerate(dataloader):
                rows = [{"prompt": row["prompt"]} for row in given] if self.args.remove_unused_columns else given
                prompts = self._encode(rows, range(len(rows))).repeat(each, step=_EVALUATION + number)
                rollout, metrics = self._judged(self._play(prompts, priors, ledger))
                allowed = allowed_tokens(priors, prompts, self.args.max_completion_length)
                with passes_without_dropout(self.model), self._autocast():
                    metrics |= updater.measure(rollout, allowed)
                found.append((len(rows), metrics))
                ids.append(rollout.token_ids)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        phases = ("prior", "rollout", "likelihood")
        for kind in ("forwards", "tokens", "head_rows"):
            counted = getattr(ledger, kind)
            self.ledger.add(Cost(**{kind: sum(counted[phase] for phase in phases)}), "eval")
        total = sum(count for count, _ in found)
        metrics = {}
        for name in dict.fromkeys(name for _, metrics in found for name in metrics):
            having = [(count, metrics[name]) for count, metrics in found if name in metrics]
            weighted = sum(count * value for count, value in having)
            metrics[f"{metric_key_prefix}_{name}"] = weighted / max(1, sum(count for count, _ in having))
        return EvalLoopOutput(np.concatenate(ids) if ids else np.empty((0, 0)), None, metrics, total)

    def _judged(self, rollout: Rollout) -> tuple[Rollout, Metrics]:
        """Return a scored batch with its advantages, and what to log of it."""
        given = rollout.earned(), rollout.rewards, self.rewards.weights, rollout.group
        advantages, metrics = configured_advantages(self.args, *given)
        metrics |= reward_metrics(dict(rollout.rewards)) | self._logged_by_rewards(metrics)
        metrics |= rollout_metrics(rollout, end_token_ids(self.policy))
        return rollout.replaced(advantage=advantages), metrics

    def _prompts(self, number: int) -> PromptBatch:
        """Return the prompts of a rollout batch, each once per completion."""
        return self._encode(*self.rows(number)).repeat(self.args.num_generations, step=number)

    def _encode(self, rows: Sequence[Row], uids: Sequence[int]) -> PromptBatch:
        return encode_prompts(rows, self.tokenizer, uids=uids, chat_template_kwargs=self.args.chat_template_kwargs)

    def _another_batch(self, attempt: int) -> Rollout:
        """Return an extra batch of this step: its prompts and keys are those of no step."""
        extra = self.rollouts * self.args.stp_dynamic_sampling + attempt - 1
        return self._play(self._prompts(self.count_rollouts() + extra), self.priors)

    def _play(self, prompts: PromptBatch, priors: Sequence[Prior], ledger: Ledger | None = None) -> Rollout:
        """Decode one completion per row under priors, and score it."""
        ledger, length = ledger or self.ledger, self.args.max_completion_length
        with ledger.time("prior"), self._autocast(), self._rollout_weights():
            ledger.add(hooks.prepare(priors, prompts, length), "prior")
        with ledger.time("rollout"):
            allowed, prior = allowed_tokens(priors, prompts, length), compose_priors(priors, prompts, length)
        play = partial(self._played, prompts, prior, allowed, ledger)
        played = played_together(self.policy, prompts, prior, length, play)
        rollout = played.rollout
        ledger.add(rollout.cost, "rollout")
        ledger.completions += len(rollout)
        if ledger is self.ledger:  # TRL counts those of training
            drawn_R = completion_lengths(rollout.token_ids, canvas_lengths(rollout.unmask_step), self.tokenizer)
            self.state.num_input_tokens_seen += int(rollout.prompt_length.sum()) + int(drawn_R.sum())
        self._reward_logs.append(played.metrics)
        self._extra = {name: list(values) for name, values in played.extra.items()}
        return rollout

    def _played(
        self,
        prompts: PromptBatch,
        prior: PriorSet,
        allowed: torch.Tensor | None,
        ledger: Ledger,
        rows: NDArray[np.int64],
    ) -> Played:
        """Decode and score some rows of a batch: all of them, or this process's share."""
        prompts = prompts.select(rows.tolist())
        with ledger.time("rollout"), self._autocast(), self._rollout_weights():
            rollout = generate(
                self.policy,
                prompts,
                self.unmasking,
                completion_length=self.args.max_completion_length,
                sampling=replace(sampling_law(self.args), allowed=restricted(allowed, rows)),
                prior=prior.select(rows.tolist()),
                seed=self.args.seed,
                slots=self.args.stp_slots,
                batching=Batching(
                    self.args.stp_max_tokens or 0,
                    entropies=self.args.stp_states == "entropy",
                    cache=self.args.stp_rollout_cache,
                ),
            )
        with ledger.time("reward"):
            lengths = canvas_lengths(rollout.unmask_step)
            completions = decode_completions(rollout.token_ids, lengths, self.tokenizer)
            ids = completion_token_ids(rollout.token_ids, lengths, self.tokenizer)
            scores = self._scores(completions, prompts.rows, ids, rows)
        version = np.full(len(rollout), self.rollouts, dtype=np.int64)
        earned = {"reward": scores.total, "rewards": scores.by_name}
        scored = rollout.replaced(completions=completions, policy_version=version, **earned)
        return Played(scored, scores.metrics, scores.extra)

    def _scores(
        self, texts: Sequence[str], rows: Sequence[Row], ids: Sequence[Sequence[int]], row_P: NDArray[np.int64]
    ) -> Scores:
        """Return the rewards of texts; an error names the row of the batch and its prompt."""
        try:
            return self.rewards.score(texts, rows, ids, trainer_state=self.state)
        except RewardValueError as error:
            at = error.details["row"]
            known = {"phase": "reward", "prompt": rows[at].get("prompt"), **error.details, "row": int(row_P[at])}
            raise RewardValueError(f"{error} (row {known['row']}, prompt {known['prompt']!r:.80})", **known) from error

    def _stepwise(self, rollout: Rollout, allowed: Tensor | None) -> Rollout:
        """Return the rollout with EGSPO's advantages of the states that the update scores."""
        states = self.args.stp_states

        def score(ids_PL: NDArray[np.int64], row_P: NDArray[np.int64]) -> NDArray[np.float32]:
            lengths = canvas_lengths(rollout.unmask_step)[row_P]
            texts = decode_completions(ids_PL, lengths, self.tokenizer)
            ids = completion_token_ids(ids_PL, lengths, self.tokenizer)
            rows = [rollout.prompts.rows[row] for row in row_P.tolist()]
            return self._scores(texts, rows, ids, row_P).total

        with self.ledger.time("reward"), self._autocast():
            masks = draw_masks(self.update.design, rollout, seed=self.args.seed, states=states)
            given = masks, state_mass(states, rollout), score, self.args.stp_stepwise, allowed
            rollout, cost = stepwise(self.policy, rollout, *given)
            self.ledger.add(cost, "likelihood")
        return rollout

    def _logged_by_rewards(self, builtin: Metrics) -> Metrics:
        """Return the means of what reward functions logged since the last call."""
        logs, self._reward_logs = self._reward_logs, []
        names = dict.fromkeys(name for log in logs for name in log)
        if clash := [name for name in names if name in builtin]:
            raise InvalidValueError(f"log_metric {clash[0]}: is the name of a metric of the trainer; choose another")
        return {name: mean([log[name] for log in logs if name in log]) for name in names}

    def _updater(self, ledger: Ledger) -> PolicyUpdate:
        steps = self.unmasking.diffusion_steps
        return PolicyUpdate(self.args, self.policy, self.reference, self.optimizer, ledger, steps, self.tell)

    def _compile(self) -> None:
        """Compile the blocks of the policy and of a reference of its own, as configured."""
        for model in {id(m.module): m for m in (self.policy, self.reference) if m is not None}.values():
            if wants_compiled(model.module, self.args.stp_compile):
                with self._autocast():
                    compile_blocks(model.module, probe=partial(first_pass, model))

    @contextlib.contextmanager
    def _rollout_weights(self) -> Iterator[None]:
        merged = self.args.stp_rollout_weights == "merged"
        weights = adapters_merged(self.model) if merged else contextlib.nullcontext()
        with weights, rounded(self.model, self.args.stp_rollout_precision):
            yield

    def _corrected(self, rollout: Rollout, allowed: torch.Tensor | None) -> tuple[Rollout, Metrics]:
        """Return a batch whose advantages carry the weight of the policy over what drew it, and what to log of it.

        Where rollouts are drawn as scored nothing is computed. Else every state is, once: the weight of a completion is
        that of its whole trajectory, and bounded by stp_rollout_cap (truncated importance weights).
        """
        cap = self.args.stp_rollout_cap
        if cap is None or not draws_otherwise(self.args):
            return rollout, {}
        cost, law = Cost(), replace(sampling_law(self.args), allowed=allowed)
        with self.ledger.time("update"), self.ledger.time("scoring"), self._autocast(), adapters_ready(self.model):
            size = self.args.stp_forward_batch_size or 64
            policy_RL = replay_logprobs(self.policy, rollout, law, forward_batch_size=size, cost=cost)
        self.ledger.add(cost, "likelihood")
        weight_R, metrics = importance_weights(policy_RL, rollout, cap)
        return rollout.replaced(advantage=rollout.weights() * weight_R), metrics

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return autocast(self.args.device, self.args.bf16)


def shared_out(
    policy: DiffusionModel, reference: DiffusionModel | None, args: STPConfig
) -> tuple[DiffusionModel, DiffusionModel | None]:
    """Return a policy and its reference with their weights shared out over the processes, in place."""
    steps, config = Steps(), args.fsdp_config or {}
    make = partial(shard, config=config, bf16=bool(args.bf16), steps=steps, whole=args.stp_rollout_gather)
    if reference is not None and not isinstance(reference, WithoutAdapters):
        return make(policy), make(reference)
    shared = make(policy)
    if reference is not None:
        reference.policy = shared  # the same weights, its adapters switched off
    return shared, reference


def training_rows(args: STPConfig, dataset: Any) -> Rows:
    """Return a training set by rollout batch, in the order of the configuration."""
    workers = {
        "num_workers": args.dataloader_num_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "persistent_workers": args.dataloader_persistent_workers,
    }
    seed = args.seed if args.data_seed is None else args.data_seed
    rows = Rows(
        dataset,
        args.groups,
        seed=seed if args.shuffle_dataset else None,
        columns=["prompt"] if args.remove_unused_columns else None,
        workers=workers if args.dataloader_num_workers else None,
    )
    if rows.size is None and args.stp_dynamic_sampling:
        raise ConfigError("stp_dynamic_sampling: got a stream of rows, needs a dataset that can be read in any order")
    return rows


def open_policy(
    model: Any, processing_class: Any, peft_config: Any, args: STPConfig, *, check: bool = True
) -> tuple[DiffusionModel, Any]:
    """Return (policy, tokenizer) on the device of a run: opened where the model is a name, with adapters where asked.

    Raises:
        ConfigError: no tokenizer is known, adapters are configured for a model that has some, or an option about
            opening a model comes with one that is open.
    """
    if isinstance(model, str | Path):
        policy, own = load_configured(args, model, args.device)
        model, processing_class = policy, own if processing_class is None else processing_class
    elif check:
        check_unopened(args, "a model that is open, needs its name")
    if processing_class is None:
        name = getattr(getattr(getattr(model, "module", model), "config", None), "_name_or_path", "")
        if not name:
            raise ConfigError("processing_class: got None for a model that no folder holds, needs its tokenizer")
        processing_class = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
    if peft_config is not None:
        with seeded(args.seed):
            model = with_adapters(model, peft_config)
    policy = as_diffusion_model(model, processing_class)
    if getattr(policy.module, "is_quantized", False) and not getattr(policy.module, "peft_config", None):
        raise ConfigError(
            "load_in_4bit: got a quantised model without adapters, whose weights cannot be trained; needs use_peft, or "
            "peft_config"
        )
    if not getattr(policy.module, "hf_device_map", None) and not getattr(policy.module, "is_quantized", False):
        policy.module.to(args.device)
    if args.gradient_checkpointing:
        if not hasattr(policy, "gradient_checkpointing"):
            raise ConfigError(f"gradient_checkpointing: {type(policy).__name__} cannot, needs a model of transformers")
        policy.gradient_checkpointing = True
    return policy, processing_class


def with_adapters(model: Any, peft_config: Any) -> Any:
    """Return a model of transformers with new adapters of peft."""
    from peft import PeftModel, get_peft_model

    module = model.module if isinstance(model, DiffusionModel) else model
    if isinstance(module, PeftModel):
        raise ConfigError("peft_config: got one for a model that has adapters, needs one of them: merge them first")
    return get_peft_model(module, peft_config)


def _in_batches(rows: Any, size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
