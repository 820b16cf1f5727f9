"""What stands around the steps of training: transformers' Trainer, without the parts that need an accelerator.

Optimiser, schedule, callbacks, trackers, logs, best model, model card and hub are transformers' own code. What is here
is the order of events around our step, where a rollout batch makes several updates, and checkpoints written atomically.
"""

import contextlib
import json
import logging
import math
import time
import warnings
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import trainer_utils
from transformers.trainer import Trainer
from transformers.trainer_callback import (
    CallbackHandler,
    DefaultFlowCallback,
    ExportableState,
    PrinterCallback,
    TrainerControl,
    TrainerState,
)
from transformers.trainer_utils import SaveStrategy, TrainerMemoryTracker, TrainOutput, speed_metrics

from stp_rs.config.arguments import STPConfig
from stp_rs.distributed import agree, gather, is_main, local_rank, on_main, together
from stp_rs.errors import CheckpointError, ConfigError, DivergenceError, StpError
from stp_rs.models.base import is_sharded
from stp_rs.models.sharding import shared_optimizer_state, whole_state
from stp_rs.priors import lifecycle as hooks
from stp_rs.priors.base import Prior
from stp_rs.train.alarms import ROLLBACKS, Alarm, Alarms
from stp_rs.train.callbacks import LastLog, MetricsFile, RolloutCallback
from stp_rs.train.card import CARD, write_card
from stp_rs.train.checkpoint import (
    ARGUMENTS,
    TRAINER,
    Checkpoint,
    load_weights,
    newest_checkpoint,
    read_checkpoint,
    remove_checkpoints,
    rotate_checkpoints,
    save_checkpoint,
    save_policy,
)
from stp_rs.train.console import Console
from stp_rs.train.finite import not_finite
from stp_rs.train.folder import RunFolder
from stp_rs.train.lock import run_folder
from stp_rs.train.memory import Trimmer
from stp_rs.train.metrics import Ledger, averaged
from stp_rs.types import Metrics

_LOGGER = logging.getLogger(__name__)


class TrainingLoop(Trainer):
    """The events of training; a subclass makes the steps (`train_step`) and the evaluation (`evaluation_loop`).

    Attributes:
        state: transformers' TrainerState; `global_step` counts optimiser updates.
        rollouts: rollout batches done, which all randomness is keyed by.
        ledger: what was computed, by phase.
    """

    args: STPConfig
    model: Any
    optimizer: Any
    lr_scheduler: Any
    train_dataset: Any
    eval_dataset: Any
    compute_metrics: Any
    model_init: Any
    data_collator: Any
    state: TrainerState
    control: TrainerControl

    alarms: Alarms
    """What went off, and what is watched for."""

    def __init__(  # the constructor of transformers would build an accelerator
        self,
        args: STPConfig,
        model: torch.nn.Module,
        processing_class: Any,
        callbacks: Iterable[Any] | None,
        optimizers: tuple[Any, Any],
    ) -> None:
        self.args, self.model, self.model_wrapped, self.processing_class = args, model, model, processing_class
        self.optimizer, self.lr_scheduler = optimizers
        self.optimizer_cls_and_kwargs = self.data_collator = self.compute_metrics = self.model_init = None
        self.hub_model_id = self.push_in_progress = self.hp_search_backend = self.hp_name = self._trial = None
        self.is_deepspeed_enabled = self.is_fsdp_enabled = self.is_fsdp_xla_v2_enabled = False
        self._created_lr_scheduler = False
        self._memory_tracker = TrainerMemoryTracker(args.skip_memory_metrics)
        self.is_in_train = self._prepared = self._evaluation_due = self._save_due = self._trained = self._owns = False
        self.rollouts = 0
        self._inputs: dict[str, Any] | None = None
        self.alarms = Alarms(args)
        self._due: Alarm | None = None
        self._whole_step = 0
        self.ledger = Ledger(args.device)
        self._window: dict[str, list[float]] = defaultdict(list)
        self._logged_step, self._rate = 0, 0.0
        self._losses = array("d")  # one per update: eight bytes
        self._trim = Trimmer()
        given = [DefaultFlowCallback, LastLog, *_trackers(args.report_to), *(callbacks or ())]
        self.callback_handler = CallbackHandler(given, model, processing_class, self.optimizer, self.lr_scheduler)
        if is_main():
            self.add_callback(MetricsFile(Path(str(args.output_dir)) / "metrics.jsonl"))
        self.add_callback(RunFolder)
        self.add_callback(PrinterCallback if args.disable_tqdm else Console(quiet=not is_main()))
        self.control = TrainerControl()
        self.state = self._new_state(0)
        if args.push_to_hub and is_main():
            self.init_hf_repo()
        self.control = self.callback_handler.on_init_end(args, self.state, self.control)

    # what a subclass brings

    priors: list[Prior]
    """Spatial priors; a checkpoint keeps their state."""

    def train_step(self) -> Any:
        """Make one rollout batch and the updates on it, each told to `after_update`."""
        raise NotImplementedError

    def count_updates(self) -> int:
        """Return the optimiser updates of the run."""
        raise NotImplementedError

    def passes_of(self, rollouts: float) -> float:
        """Return how often rollout batches have gone through the training data."""
        raise NotImplementedError

    def build(self, resumed: bool) -> None:
        """Make what a run needs once that is neither model nor optimiser."""

    def inputs(self) -> dict[str, Any]:
        """Return what tells a run from another beside its options, JSON-ready (`identity.run_inputs`)."""
        return {}

    def parts_to_save(self) -> Mapping[str, Callable[[str], Any]]:
        """Return what else a checkpoint holds: what writes each file, by its name."""
        return {}

    def load_parts(self, checkpoint: Checkpoint) -> None:
        """Go on from what `parts_to_save` wrote."""

    # training

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> TrainOutput:
        """Train, log, evaluate and save as configured; return (global_step, training_loss, metrics).

        Args:
            resume_from_checkpoint: a checkpoint's folder; True for the newest of `output_dir`; "auto" for that one if
                there is any. None reads the option of that name; False starts anew.
            trial: of a hyperparameter search; none is made here.
            ignore_keys_for_eval: evaluation has no outputs to leave out.

        Raises:
            CheckpointError: there is no such checkpoint, or it was made with other settings.
            ConfigError: `output_dir` cannot be written, or another run is in it; an evaluation without rows.
            StorageError: the disk is full, broken or read-only.
            RankError: another process of the run failed.
        """
        with together():
            # what cannot be is refused before a folder is made
            self._check_evaluated()
            agree(lambda: self.find_checkpoint(resume_from_checkpoint))
            with run_folder(Path(str(self.args.output_dir))):
                checkpoint = agree(lambda: self.find_checkpoint(resume_from_checkpoint))
                return self._train(checkpoint, trial, ignore_keys_for_eval)

    def _check_evaluated(self) -> None:
        """Refuse options that evaluate where there is nothing to evaluate."""
        asked = {"eval_strategy": self.args.eval_strategy != "no", "eval_on_start": self.args.eval_on_start}
        for name in (name for name, wanted in asked.items() if wanted and self.eval_dataset is None):
            got = getattr(self.args, name)
            raise ConfigError(
                f"{name}: got {getattr(got, 'value', got)!r} and no eval_dataset, needs rows to evaluate: "
                f"pass eval_dataset or leave out {name}"
            )

    def _train(self, checkpoint: Checkpoint | None, trial: Any, ignore_keys_for_eval: Any) -> TrainOutput:
        self._memory_tracker.start()
        self._owns = True
        if self._trained:  # a second call trains again, as transformers' does
            self.rollouts, self._prepared, self._trained = 0, False, False
            if checkpoint is None:
                self._inputs = None
                on_main(lambda: remove_checkpoints(Path(str(self.args.output_dir)), after=-1))
        self.prepare(checkpoint)
        if self.args.stp_on_alarm == "rollback" and checkpoint is None:
            self.save()  # there is something to go back to from the first update on
        started, first = time.time(), self.state.global_step
        self.is_in_train = True
        del self._losses[:]
        try:
            self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
            if self.args.eval_on_start:
                scores = self._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)
                self.alarms.evaluation(scores, self.state.global_step)
            self._steps()
        except BaseException:  # Ctrl-C too: what was done has its report
            self.is_in_train = False
            with contextlib.suppress(StpError, OSError):  # why training stopped is what is raised
                self.tell_ours("on_stop")
            raise
        return self._finish(started, first)

    def _steps(self) -> None:
        """Make every step that is left."""
        epoch = self.passes_of(self.rollouts)
        begins = True
        while self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            if begins:
                self.control = self.callback_handler.on_epoch_begin(self.args, self.state, self.control)
            try:
                with together():  # what one process meets, all of them go back from
                    self.train_step()
                    self.act()
                    if self.state.global_step >= self.state.max_steps:
                        self._check_weights()
            except DivergenceError as error:
                if self.args.stp_on_alarm != "rollback" or "alarm" in error.details:
                    raise
                self._due = Alarm("nan", self.state.global_step, math.nan, math.nan, str(error), self._whole_step)
                self._rolled_back()
            after = self.passes_of(self.rollouts)
            begins, epoch = int(after) > int(epoch), after
            if begins or self.state.global_step >= self.state.max_steps:
                self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
                self._log_if_due()
                self.act()

    def prepare(self, checkpoint: Checkpoint | None = None) -> None:
        """Make optimiser, schedule and state, once, and go on from a checkpoint where one is given."""
        if not self._prepared:
            self._make(resumed=checkpoint is not None)
        if checkpoint is not None:
            self._load(checkpoint)
            self._logged_step = self._whole_step = self.state.global_step

    def _make(self, *, resumed: bool) -> None:
        args = self.args
        if args.full_determinism:
            trainer_utils.enable_full_determinism(args.seed)
        if args.stp_num_threads:
            torch.set_num_threads(args.stp_num_threads)
        updates = self.count_updates()
        self._own_inputs()
        self.state = self._new_state(updates)
        if self._created_lr_scheduler:
            self.lr_scheduler = None
        try:
            self.create_optimizer_and_scheduler(updates)
        except (ValueError, TypeError) as error:
            given = "optim, optim_args, lr_scheduler_type, lr_scheduler_kwargs"
            raise ConfigError(
                f"{given}: do not make an optimiser and a schedule: {' '.join(str(error).split())}"
            ) from error
        self.build(resumed)
        for name in ("model", "optimizer", "lr_scheduler"):
            setattr(self.callback_handler, name, getattr(self, name))
        self._window.clear()
        self._logged_step, self._prepared = 0, True
        self._whole_step, self.alarms = 0, Alarms(args)

    def find_checkpoint(self, asked: str | bool | None) -> Checkpoint | None:
        """Return the checkpoint that a run goes on from, or None where it starts from nothing."""
        asked = self.args.resume_from_checkpoint if asked is None else asked
        return resumable(self.args, asked, self._own_inputs, own=self._owns)

    def _own_inputs(self) -> dict[str, Any]:
        """Return `inputs` as they are when a run starts: its weights change from then on."""
        if self._inputs is None:
            self._inputs = self.inputs()
        return self._inputs

    def tell(self, event: str) -> None:
        """Tell the callbacks what happens to the optimiser; outside `train` they hear nothing."""
        if not self.is_in_train:
            return
        self.control = getattr(self.callback_handler, event)(self.args, self.state, self.control)

    def tell_ours(self, event: str, *heard: Any) -> None:
        """Tell the callbacks that know our own events: the result of a rollout batch, or that training is stopped."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, RolloutCallback):
                getattr(callback, event)(self.args, self.state, self.control, *heard)

    def record(self, metrics: Mapping[str, float]) -> None:
        """Add values whose mean belongs in the next log."""
        for name, value in metrics.items():
            self._window[name].append(value)

    def after_update(self, metrics: Metrics, rollouts: float) -> None:
        """Count an optimiser update: schedule, callbacks, log; `rollouts` are the batches done, this one in part."""
        rate = self._get_learning_rate()
        if not isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.lr_scheduler.step()
        self.state.global_step += 1
        self.state.epoch = self.passes_of(rollouts)
        self.record(metrics)
        self._rate = rate
        self._losses.append(metrics["loss"])
        self.tell("on_step_end")
        self._evaluation_due |= self.control.should_evaluate
        self._save_due |= self.control.should_save
        self._log_if_due()
        every = self.args.torch_empty_cache_steps
        if every and self.state.global_step % every == 0 and self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        self._trim()

    def act(self) -> None:
        """Evaluate and save where that is due: between rollout batches, so that a resumed run is the same run.

        An alarm that asks for it rolls the run back, and nothing of what was due is done.
        """
        if self._rolled_back():
            return
        if self._evaluation_due or self.control.should_evaluate:
            self._evaluation_due = False
            metrics = self._evaluate(None, None)
            for alarm in self.alarms.evaluation(metrics, self.state.global_step):
                self.alarmed(alarm)
            if self._rolled_back():
                return
            best = self._determine_best_metric(metrics, None)
            if self.args.save_strategy == SaveStrategy.BEST:
                self._save_due = best
        if self._save_due or self.control.should_save:
            self._save_due = False
            self.save()
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def alarmed(self, alarm: Alarm) -> None:
        """Say that an alarm went off, in the metrics and to the callbacks, and do what `stp_on_alarm` says.

        Raises:
            DivergenceError: it says stop.
        """
        action = self.args.stp_on_alarm
        self.alarms.history.append(alarm.record(action))
        self.log({f"alarm/{alarm.name}": 1.0})
        self._say(f"{alarm.message}; {_DONE[action]}")
        if action == "stop":
            raise DivergenceError(
                f"{alarm.message}; the run is stopped, as stp_on_alarm says: lower learning_rate "
                f"({self.args.learning_rate:g}), or raise the bound; checkpoints up to step {alarm.fine} are good",
                phase="alarm",
                **alarm.record(action),
            )
        if action == "rollback" and self.is_in_train:
            self._due = alarm

    def _say(self, message: str) -> None:
        """Show a message, in the bar's place where there is one."""
        self.tell_ours("on_alarm", message)
        if is_main() and not any(isinstance(callback, Console) for callback in self.callback_handler.callbacks):
            _LOGGER.warning(message)

    def _rolled_back(self) -> bool:
        """Go back to the last good checkpoint where an alarm asks for it, with half the rate; return whether it did."""
        alarm, self._due = self._due, None
        if alarm is None:
            return False
        if alarm.name == "nan":
            self.alarms.history.append(alarm.record("rollback"))
            self._say(f"{alarm.message}; {_DONE['rollback']}")
        run, left = Path(str(self.args.output_dir)), self.state.global_step
        good = agree(lambda: newest_checkpoint(run, until=alarm.fine))
        if good is None or self.alarms.rollbacks == ROLLBACKS:
            why = f"it was rolled back {ROLLBACKS} times" if good else f"no checkpoint up to step {alarm.fine} is left"
            raise DivergenceError(f"{alarm.message}; the run is stopped: {why}", **alarm.record("stop"))
        on_main(lambda: remove_checkpoints(run, after=good.step))
        spent, history = self.ledger.to_dict(), self.alarms.history
        self._load(good)
        self.ledger.restore(spent)  # what was computed was computed
        self.alarms.history, self.alarms.rollbacks = history, self.alarms.rollbacks + 1
        history[-1] |= {"rolled_back_to": good.step}
        for group in self.optimizer.param_groups:
            group.update({name: group[name] / 2 for name in _RATES if name in group})
        _halve(self.lr_scheduler)
        self._window.clear()
        self._logged_step, self._evaluation_due, self._save_due = self.state.global_step, False, False
        self._whole_step = self.state.global_step
        self.control = TrainerControl()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, MetricsFile):  # its lines go on from here
                callback.on_train_begin(self.args, self.state, self.control)
        self.log(
            {
                **{f"alarm/{alarm.name}": 1.0, "alarm/rollback": 1.0},
                **{"rolled_back_from": float(left), "learning_rate": self._get_learning_rate()},
            }
        )
        self.save()  # a run that is killed from here on does not meet the same fault again
        return True

    def _check_weights(self) -> None:
        """Check that weights and optimiser hold no NaN or infinity: nobody could go on from them.

        Raises:
            DivergenceError: they do; the message names the first.
        """
        moments = {
            f"optimizer {i}.{name}": value
            for i, state in enumerate(self.optimizer.state.values() if self.optimizer is not None else ())
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        every = gather(lambda: not_finite({**dict(self.model.named_parameters()), **moments}))
        if bad := list(dict.fromkeys(name for found in every for name in found)):
            raise DivergenceError(
                f"step {self.state.global_step}: {bad[0]} holds a NaN or infinity ({len(bad)} tensors do); nothing is "
                "saved of it, and checkpoints from before are intact: lower learning_rate "
                f"({self.args.learning_rate:g})",
                phase="weights",
                weights=bad,
            )

    def _log_if_due(self) -> None:
        if not self.control.should_log or self.state.global_step <= self._logged_step:
            return
        logs = averaged(self._window)
        logs |= {"learning_rate": self._rate, **self.ledger.counts(), **self.ledger.measured()}
        self._window.clear()
        self._logged_step = self.state.global_step
        self.log(logs)

    def _finish(self, started: float, first: int) -> TrainOutput:
        steps = self.state.global_step - first
        metrics = speed_metrics("train", started, num_samples=steps * self.args.train_batch_size, num_steps=steps)
        metrics |= {"total_flos": 0.0, "train_loss": float(np.sum(self._losses)) / max(1, steps)}
        self.is_in_train, self._trained = False, True
        self._memory_tracker.stop_and_update_metrics(metrics)
        self.log(metrics)
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            load_weights(self.model, read_checkpoint(Path(best)).path)
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        if self.args.process_index == 0 and Path(str(self.args.output_dir)).is_dir():
            self.create_model_card()
        self._finish_current_push()
        return TrainOutput(self.state.global_step, metrics["train_loss"], metrics)

    def log(self, logs: Mapping[str, Any], start_time: float | None = None) -> None:
        """Log numbers, those of numpy and torch as plain ones; a warning names what is none and is left out."""
        plain: dict[str, float] = {}
        for name, value in logs.items():
            try:
                number = value.item() if hasattr(value, "item") else value
                plain[name] = number if isinstance(number, int | float) else float(number)
            except (TypeError, ValueError, RuntimeError):
                warnings.warn(f"metric {name}: got {value!r:.80}, needs one number; it is not logged", stacklevel=2)
        super().log(plain, start_time)

    # saving

    def save(self) -> Path:
        """Write a checkpoint of this step and return its folder; the main process writes it."""
        with run_folder(Path(str(self.args.output_dir))):
            return self._write_checkpoint()

    def _write_checkpoint(self) -> Path:
        self._check_weights()
        weights, keep = self._whole_weights(), is_main()
        states = (
            {}
            if self.args.save_only_model
            else {
                "optimizer": whole_state(self.optimizer.state_dict(), keep=keep),
                "scheduler": self.lr_scheduler.state_dict(),
            }
        )
        parts, self._owns = agree(self.parts_to_save), True
        folder, self.state.best_model_checkpoint = on_main(lambda: self._write(weights, states, parts))
        return folder

    def _whole_weights(self) -> Any:
        """Return the weights of a module that is shared out, where this process writes them; None for any other."""
        return whole_state(self.model.state_dict(), keep=is_main()) if is_sharded(self.model) else None

    def _write(
        self, weights: Any, states: Mapping[str, Any], parts: Mapping[str, Callable[[str], Any]]
    ) -> tuple[Path, str | None]:
        run = Path(str(self.args.output_dir))
        folder = run / f"checkpoint-{self.state.global_step}"
        best = self.state.best_global_step
        if best and (best == self.state.global_step or (run / f"checkpoint-{best}").is_dir()):
            self.state.best_model_checkpoint = str(run / f"checkpoint-{best}")
        self.state.stateful_callbacks = self._callback_states()
        ours = {"rollouts": self.rollouts, "ledger": self.ledger.to_dict(), "config": self.args.identity("numbers")}
        ours |= {"inputs": self._own_inputs(), "alarms": self.alarms.to_dict()}
        save_checkpoint(
            run,
            model=self.model,
            tokenizer=self.processing_class,
            state={"step": self.state.global_step, **ours},
            parts=states,
            weights=weights,
            write={
                TRAINER: self.state.save_to_json,
                ARGUMENTS: self._write_arguments,
                CARD: lambda path: Path(path).write_text(self.model_card(), encoding="utf-8"),
                **parts,
            },
            priors=hooks.take_states(self.priors),
        )
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        kept = best if self.state.best_model_checkpoint else None
        rotate_checkpoints(run, self.args.save_total_limit, newest=self.state.global_step, best=kept)
        return folder, self.state.best_model_checkpoint

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy and its tokenizer so that `from_pretrained` opens them."""
        folder = Path(str(output_dir or self.args.output_dir))
        push, weights = self.args.push_to_hub and not _internal_call, self._whole_weights()
        on_main(partial(self._save_model, folder, weights, push=push))

    def _save_model(self, folder: Path, weights: Any, *, push: bool) -> None:
        save_policy(folder, self.model, self.processing_class, weights)
        self._write_arguments(folder / ARGUMENTS)
        write_card(folder, self.model_card())
        if push:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def create_model_card(  # type: ignore[override] # the rest of the card is known here
        self, *, model_name: str | None = None, **_: Any
    ) -> None:
        """Write the card of the run's folder: what transformers asks for before it uploads."""
        write_card(Path(str(self.args.output_dir)), self.model_card(model_name))

    def model_card(self, name: str | None = None) -> str:
        """Return the text of the card: data, method, metrics, citation."""
        raise NotImplementedError

    def _write_arguments(self, path: str | Path) -> None:
        text = json.dumps(self.args.to_flat(), indent=2, default=str) + "\n"
        Path(path).write_text(text, encoding="utf-8")

    def _new_state(self, updates: int) -> TrainerState:
        state = TrainerState(
            max_steps=updates, train_batch_size=self.args.train_batch_size, stateful_callbacks=self._callback_states()
        )
        state.is_world_process_zero, state.is_local_process_zero = is_main(), local_rank() == 0
        state.num_train_epochs = max(1, int(np.ceil(self.args.num_train_epochs)))
        state.compute_steps(self.args, updates)
        return state

    def _callback_states(self) -> Any:
        kept: Any = [*self.callback_handler.callbacks, self.control]
        exported: Any = [callback for callback in kept if isinstance(callback, ExportableState)]
        return TrainerState(stateful_callbacks=exported).stateful_callbacks

    def _load(self, checkpoint: Checkpoint) -> None:
        try:
            self._go_on_from(checkpoint)
        except StpError:
            raise
        except Exception as error:  # whole, by its manifest, and not what this version writes
            said = " ".join(str(error).split())
            text = f"{checkpoint.path}: cannot be gone on from: {type(error).__name__}: {said:.200}"
            raise CheckpointError(text) from error

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        updates = self.state.max_steps
        optimizer, scheduler = checkpoint.part("optimizer"), checkpoint.part("scheduler")
        if optimizer is None or scheduler is None:
            raise CheckpointError(
                f"{checkpoint.path}: has no optimizer.safetensors (save_only_model was on); give it as the model "
                "instead"
            )
        load_weights(self.model, checkpoint.path)
        self.optimizer.load_state_dict(shared_optimizer_state(optimizer, self.optimizer))
        self.lr_scheduler.load_state_dict(scheduler)
        self.state = TrainerState.load_from_json(str(checkpoint.path / TRAINER))
        self.state.is_world_process_zero, self.state.is_local_process_zero = is_main(), local_rank() == 0
        self.state.max_steps = updates
        self.state.compute_steps(self.args, updates)
        if self.state.best_model_checkpoint and not Path(self.state.best_model_checkpoint).is_dir():
            self.state.best_model_checkpoint = None
        self._load_callback_state()
        self.rollouts = int(checkpoint.state["rollouts"])
        self.ledger.restore(checkpoint.state["ledger"])
        self.alarms.restore(checkpoint.state.get("alarms", {}))
        hooks.load_states(self.priors, checkpoint.prior_states())
        self.load_parts(checkpoint)


def _trackers(report_to: Any) -> list[Any]:
    """Return the callbacks of trackers.

    Raises:
        ConfigError: there is no such tracker, or it is not installed.
    """
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks

    try:
        return [made() for made in get_reporting_integration_callbacks(report_to)]
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"report_to: {' '.join(str(error).split())}") from error


def resumable(
    config: STPConfig,
    asked: str | bool | None,
    inputs: Callable[[], Mapping[str, Any]] | None = None,
    *,
    own: bool = False,
) -> Checkpoint | None:
    """Return the checkpoint that is asked for: a folder; True or "true", the newest; "auto", that one if there is any.

    Args:
        config: the options of the run.
        asked: as above; None, False and "none" start anew.
        inputs: what else tells it from another run, asked for where there is a checkpoint; None looks at options alone.
        own: whether a run in the folder is the caller's own, so that it may start anew there.

    Raises:
        CheckpointError: there is none; it was made with other settings; or a run starts anew where another one is.
    """
    run, newest = Path(str(config.output_dir)), asked in (True, "true", "auto")
    if asked in (None, False, "none"):
        if not own and (there := sorted(path.name for path in run.glob("checkpoint-*") if path.is_dir())):
            raise CheckpointError(
                f"output_dir: {run} holds a run ({there[-1]}), whose weights would be taken for those of the new one: "
                "go on with it (resume_from_checkpoint=auto), choose another output_dir, or delete that folder"
            )
        return None
    checkpoint = newest_checkpoint(run) if newest else read_checkpoint(Path(str(asked)))
    if checkpoint is None:
        if asked == "auto":
            return None
        raise CheckpointError(f"{run}: no checkpoint to resume from")
    ours, theirs = config.identity("numbers"), dict(checkpoint.state.get("config", {}))
    if inputs is not None:
        ours |= inputs()
        theirs |= checkpoint.state.get("inputs", {})
    accepted = {name.strip() for name in (config.stp_allow_changed or "").split(",")}
    changed = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)} - accepted
    if _goes_on(config):
        changed -= _LENGTH
    if changed and changed <= _LENGTH:
        raise CheckpointError(
            f"{checkpoint.path}: was made for {theirs.get('max_steps')} updates, not {ours.get('max_steps')}; its "
            f"learning rate ({config.lr_scheduler_type}) or priors shrink over the whole run, so the updates that are "
            f"left would not be those of one run: accept that with stp_allow_changed={','.join(sorted(changed))}, or "
            "use another output_dir"
        )
    if changed:
        told = "; ".join(_difference(name, ours.get(name), theirs.get(name)) for name in sorted(changed))
        raise CheckpointError(
            f"{checkpoint.path}: was made with other settings ({', '.join(sorted(changed))}): {told}; restore them, "
            "start anew in another or an emptied output_dir, or go on with what changed: "
            f"stp_allow_changed={','.join(sorted(changed))}"
        )
    return checkpoint


_DONE = {
    "warn": "the run goes on (stp_on_alarm)",
    "stop": "the run is stopped (stp_on_alarm)",
    "rollback": "the run goes back to the last checkpoint from before it, with half the learning rate (stp_on_alarm)",
}


_RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""Entries of an optimiser's groups that are rates; schedules keep some of theirs there."""


def _halve(schedule: Any) -> None:
    """Halve the rates that a schedule starts from, those of schedules inside it too."""
    for name in ("base_lrs", "_last_lr"):
        if hasattr(schedule, name):
            setattr(schedule, name, [rate / 2 for rate in getattr(schedule, name)])
    for inner in getattr(schedule, "_schedulers", ()):
        _halve(inner)


def _difference(name: str, ours: Any, theirs: Any) -> str:
    """Return in words what differs between a run and its checkpoint."""
    if name == "reward_funcs" and isinstance(theirs, dict):
        names = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
        return f"reward_funcs: {', '.join(sorted(names))} {'is' if len(names) == 1 else 'are'} new, gone, or other code"
    if name in _CONTENT:
        return f"{name}: {'was not noted or not given' if theirs is None else 'has another content'}"
    return f"{name} is {ours!r:.60}, was {theirs!r:.60}"


_CONTENT = {"train_dataset", "model", "peft_config", "processing_class", "priors", "reward_funcs"}
"""Inputs of which a checkpoint keeps a hash."""
_LENGTH = {"max_steps", "num_train_epochs"}
"""Options that say how long a run is."""


def _goes_on(config: STPConfig) -> bool:
    """Return whether a longer run begins with the updates of a shorter one: nothing reads how much is left."""
    constant = str(getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)).startswith("constant")
    return constant and config.stp_prior_anneal == "none" and not config.stp_dynamic_sampling
