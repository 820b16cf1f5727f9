"""What a step of training will compute, counted before anything is trained.

The trainer itself is run for one rollout batch, with its own prompts, priors, scheduler, designs and updates; only the
network is replaced by one that computes nothing and notes what it is asked for. So the counts are those of the run, but
where the run's own numbers decide: `Forecast.notes` says which these are.

Shapes: B canvases, S canvas width, N positions of the head, V vocabulary.
"""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stp_rs.config.arguments import STPConfig
from stp_rs.config.sections import ModelConfig
from stp_rs.data.trajectories import Rollout
from stp_rs.models.base import DiffusionModel, block_size_of, end_token_ids
from stp_rs.objective.masks import canvas_lengths
from stp_rs.priors import Prior
from stp_rs.priors import lifecycle as hooks
from stp_rs.rollout.params import draws_otherwise
from stp_rs.tasks.base import Task
from stp_rs.train.metrics import Ledger
from stp_rs.train.parts import dealt
from stp_rs.train.priors import spatial_names
from stp_rs.train.trainer import STPTrainer
from stp_rs.train.update import PolicyUpdate
from stp_rs.types import Cost, Metrics

if TYPE_CHECKING:
    from stp_rs.models.prefix import Prefix

_VOCAB = 64
"""Tokens of the stand-in where the policy has more than `_SMALL`: which token is drawn changes no count."""
_SMALL = 4096
_SPATIAL_LOG = "stp_rs.train.priors"


@dataclass
class Call:
    """One model call of a step."""

    phase: str
    """prior, rollout, scoring (of an update, without gradient) or gradient."""
    canvases: int
    tokens: int
    """Of all canvases, padding included."""
    head_rows: int = 0


@dataclass(frozen=True)
class Forecast:
    """What one rollout batch and its updates compute."""

    cost: Mapping[str, Cost]
    """Of all processes, by phase of the ledger: prior, rollout, likelihood (every pass of an update), backward."""
    calls: Sequence[Call]
    """The calls of the process that has most to do."""
    largest: Call
    """The most that a pass with gradient has of each count, in whichever process: micro-batches are dealt whole."""
    completions: int
    updates: int
    """Optimiser updates."""
    rollouts: int
    """Rollout batches of the run; 0 where nobody knows."""
    host_seconds: float
    """What the step took here without a network: scheduler, masks, loss; of all processes' rows."""
    processes: int
    idle: int
    """Processes that have no group."""
    notes: Sequence[str]

    def counts(self) -> dict[str, float]:
        """Return the counts as the trainer logs them, `diffusion/forwards_rollout` for example."""
        names = ("forwards", "tokens", "head_rows")
        return {
            f"diffusion/{name}_{phase}": float(getattr(cost, name))
            for name in names
            for phase, cost in self.cost.items()
        }


def forecast(
    config: STPConfig,
    rows: Any,
    tokenizer: Any,
    *,
    task: Task | None = None,
    policy: DiffusionModel | None = None,
    priors: Sequence[Prior] | None = None,
    processes: int = 1,
) -> Forecast:
    """Return what the first rollout batch of a run and its updates compute.

    Args:
        config: the run's; complete, with a completion length.
        rows: the training rows.
        tokenizer: the policy's.
        task: of the command line; None for rows of one's own.
        policy: the policy, whose traits (blocks, padding, shift) decide what a call is; None takes a model that sees
            the whole canvas and respects padding.
        priors: spatial priors in place of those that the configuration names, as the trainer takes them.
        processes: processes that share a rollout batch, whole groups and whole micro-batches each.
    """
    with tempfile.TemporaryDirectory() as folder:
        alone = _alone(config, folder)
        network = Uncomputed(tokenizer, policy)
        with _unwarned(_SPATIAL_LOG):  # a note says it
            trainer = _Trainer(task, network, _distinct, alone, rows, processing_class=tokenizer, priors=priors)
            given = spatial_names(alone, task) if priors is None else [alone.stp_spatial]
        trainer.ledger = ledger = _Watched(network.seen)
        trainer.callback_handler.callbacks.clear()  # nobody is told of it
        with _unwarned(_SPATIAL_LOG):
            trainer.prepare()
        trainer.update.seen = network.seen
        share = -(-alone.groups // processes)
        first = ledger.forwards["prior"]
        calls = _own_rollout(trainer, share, network.seen) if share < alone.groups else None
        start = time.perf_counter()
        trainer.train_step()
        host = time.perf_counter() - start
        cost = {
            phase: Cost(ledger.forwards[phase], ledger.tokens[phase], ledger.head_rows[phase])
            for phase in ("prior", "rollout", "likelihood", "backward")
        }
        made = list(network.seen.calls)
        largest = _largest(made)
        if processes > 1:
            before = made[: trainer.update.began]
            if calls is not None:  # states that stp_stepwise scores are every process's
                before = [*calls, *(call for call in before if call.phase == "scoring")]
            made = [*before, *_own_updates(trainer, processes)]
        rollouts = 0 if config.max_steps < 0 else -(-config.max_steps // config.updates_per_rollout)
    return Forecast(
        cost=cost,
        calls=made,
        largest=largest,
        completions=int(config.generation_batch_size or 0),
        updates=config.updates_per_rollout,
        rollouts=rollouts,
        host_seconds=host,
        processes=processes,
        idle=max(0, processes - -(-alone.groups // share)),
        notes=_notes(config, given, prior=first > 0, blocks=network.block_size > 0),
    )


class Uncomputed:
    """A `DiffusionModel` that computes nothing: it notes each call, and draws every token alike.

    Args:
        tokenizer: gives the vocabulary.
        policy: whose traits it takes.
    """

    def __init__(self, tokenizer: Any, policy: DiffusionModel | None) -> None:
        known = getattr(getattr(policy, "module", None), "config", None)
        size = int(getattr(known, "vocab_size", 0)) or len(tokenizer)
        own = size <= _SMALL
        vocab = size if own else _VOCAB
        self.mask_token_id, self.pad_token_id = vocab - 1, 0
        self.eos_token_ids: tuple[int, ...] = (1,)
        if own:
            self.mask_token_id = int(policy.mask_token_id if policy is not None else tokenizer.mask_token_id)
            self.pad_token_id = int(policy.pad_token_id if policy is not None else tokenizer.pad_token_id)
            self.eos_token_ids = end_token_ids(policy) if policy is not None else (int(tokenizer.eos_token_id),)
        self.eos_token_id = self.eos_token_ids[0]
        self.logit_shift = 0 if policy is None else policy.logit_shift
        self.respects_padding = policy is None or policy.respects_padding
        self.masks_pads = bool(getattr(policy, "masks_pads", False))
        self.block_size = 0 if policy is None else block_size_of(policy)
        if self.block_size:
            self.hidden_cached = self._hidden_cached
        self.module: nn.Module = _Nothing(vocab)
        self.seen = Seen()
        # a slope that is turned at every call: no two forwards agree on a most likely token
        self._ramp_V = 1e-3 * torch.arange(vocab) / vocab
        self._never = [self.pad_token_id, *self.eos_token_ids]

    def hidden(self, ids_BS: Tensor, _lengths_B: Tensor | None) -> Tensor:
        """Return nothing of the canvases, [B, S, 1]."""
        return self._called(ids_BS, ids_BS.numel())

    def hidden_pair(self, noisy_BS: Tensor, _clean_BS: Tensor, _lengths_B: Tensor | None, start: int = 0) -> Tensor:
        """Return nothing of doubled canvases, [B, S, 1]."""
        rows, width = noisy_BS.shape
        clean = (width - 1) // self.block_size * self.block_size - start
        return self._called(noisy_BS, rows * (width + clean))

    def _hidden_cached(self, ids_BQ: Tensor, _position: Tensor, _seen: Tensor, prefix: "Prefix") -> Tensor:
        nothing = torch.zeros(len(ids_BQ), 1, ids_BQ.shape[1], 1)
        prefix.update(nothing, nothing, 0)
        return self._called(ids_BQ, ids_BQ.numel())

    def _called(self, ids_BS: Tensor, tokens: int) -> Tensor:
        self.seen.call(len(ids_BS), tokens)
        return torch.zeros(*ids_BS.shape, 1) * next(self.module.parameters())

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return nearly equal logits [N, V]; no text ends by itself."""
        self.seen.rows(len(hidden_NH))
        row_V = self._ramp_V.roll(len(self.seen.calls))
        row_V[self._never] = -1e4
        return hidden_NH + row_V


class _Nothing(nn.Module):
    """A module with one parameter, and a configuration that says the vocabulary."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.config: Any = SimpleNamespace(vocab_size=vocab)


class Seen:
    """The calls of a network and of its copies."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.phase = "prior"

    def call(self, canvases: int, tokens: int) -> None:
        """Note a call."""
        phase = self.phase
        if phase not in ("prior", "rollout"):
            phase = "gradient" if torch.is_grad_enabled() else "scoring"
        self.calls.append(Call(phase, canvases, tokens))

    def rows(self, count: int) -> None:
        """Note rows of the head, of the call before."""
        if self.calls:
            self.calls[-1].head_rows += count

    def __deepcopy__(self, _memo: Any) -> "Seen":
        """Return itself: a reference policy is a copy whose calls are the run's."""
        return self


class _Watched(Ledger):
    """A ledger that says which phase the calls are of."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Time a phase; the calls in it are of it."""
        before, self._seen.phase = self._seen.phase, phase
        try:
            with super().time(phase):
                yield
        finally:
            self._seen.phase = before


class _Updates(PolicyUpdate):
    """Updates that can be made again, as one of several processes."""

    processes = 1
    seen: "Seen"
    given: tuple[Any, ...] = ()
    """What the last were made of."""
    began = 0
    """Calls before the last."""

    def updates(self, *given: Any) -> Iterator[Metrics]:
        """Make the updates, and note of what."""
        self.given, self.began = given, len(self.seen.calls)
        return super().updates(*given)

    def _dealt(self, rollout: Rollout, rows: list[NDArray[np.int64]]) -> list[list[NDArray[np.int64]]]:
        """Return the micro-batches of the process that has the most tokens."""
        shares = dealt(rollout, rows, self.processes)
        length_R = rollout.prompt_length + canvas_lengths(rollout.unmask_step)
        return [max(shares, key=lambda share: sum(int(length_R[part].sum()) for part in share))]


class _Trainer(STPTrainer):
    """The trainer with a task that is given."""

    update: _Updates

    def __init__(self, task: Task | None, *args: Any, **options: Any) -> None:
        self.task = task
        super().__init__(*args, **options)

    def _updater(self, ledger: Ledger) -> _Updates:
        steps = self.unmasking.diffusion_steps
        return _Updates(self.args, self.policy, self.reference, self.optimizer, ledger, steps, self.tell)


def _distinct(completions: Sequence[str], **_: Any) -> list[float]:
    """Reward every completion differently, so that each has an advantage."""
    return [float(value) for value in np.random.default_rng(0).random(len(completions))]


def _alone(config: STPConfig, folder: str) -> STPConfig:
    """Return the configuration of one rollout batch on this CPU that nobody watches."""
    opening: dict[str, Any] = {f.name: f.default for f in fields(ModelConfig)}
    quiet: dict[str, Any] = {
        "stp_rollouts": 1,
        "max_steps": -1,
        "output_dir": folder,
        "resume_from_checkpoint": "none",
        "model_name_or_path": None,
        "use_cpu": True,
        "stp_device": "cpu",
        "stp_compile": "none",
        "fsdp": False,
        "stp_rollout_cache": "none",
        "stp_rollout_precision": "same",
        "optim": "adamw_torch",
        "report_to": "none",
        "disable_tqdm": True,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "push_to_hub": False,
        "log_completions": False,
        "stp_variance_every": None,
        "stp_num_threads": None,
        "activation_checkpointing": False,  # what transformers 5.20 calls gradient_checkpointing
    }
    known = {f.name for f in fields(config) if f.init}
    return replace(config, **{name: value for name, value in {**opening, **quiet}.items() if name in known})


@contextmanager
def _unwarned(name: str) -> Iterator[None]:
    """Switch a logger off."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _own_rollout(trainer: STPTrainer, share: int, seen: Seen) -> list[Call]:
    """Return the calls of a rollout of the first groups of the batch."""
    rows = range(share * trainer.args.num_generations)
    hooks.begin_step(trainer.priors, 0, 1)
    before = len(seen.calls)
    trainer._play(trainer._prompts(0).select(rows), trainer.priors, _Watched(seen))
    made = seen.calls[before:]
    del seen.calls[before:]
    return seen.calls[:before] + made


def _own_updates(trainer: _Trainer, processes: int) -> list[Call]:
    """Return the calls of the step's updates, made again by the process that is dealt most."""
    updates, calls = trainer.update, trainer.update.seen.calls
    updates.processes, updates.replayed, before = processes, None, len(calls)
    with trainer.ledger.time("update"):
        for _ in updates.updates(*updates.given):
            pass
    return calls[before:]


def _largest(calls: Sequence[Call]) -> Call:
    """Return the most of each count of the passes with gradient."""
    graded = [call for call in calls if call.phase == "gradient"]
    names = ("canvases", "tokens", "head_rows")
    return Call("gradient", *(max((getattr(call, name) for call in graded), default=0) for name in names))


_READ = ("confidence", "margin", "entropy", "stable")


def _notes(config: STPConfig, given: Sequence[str], *, prior: bool, blocks: bool) -> list[str]:
    """Return what the counts of a configuration, of whose priors some were `given`, leave out or bound."""
    most = "counted as if it never did: the run makes at most so many forwards"
    found = []
    if config.stp_spatial not in ("none", "+".join(given)):
        found.append(f"stp_spatial {config.stp_spatial}: {'+'.join(given) or 'none'} of it is counted without a task")
    if config.stp_temporal.startswith(_READ):
        found.append(f"stp_temporal {config.stp_temporal}: when it fires depends on the policy; {most}")
    if not config.stp_selection.startswith("top_k"):
        sure = "how many tokens a step takes depends on the policy; counted for one that is sure of nothing"
        found.append(f"stp_selection {config.stp_selection}: {sure}")
    if config.stp_eos == "truncate":
        found.append(f"stp_eos truncate: when a row ends depends on the policy; {most}")
    if config.stp_dynamic_sampling:
        found.append(
            f"stp_dynamic_sampling {config.stp_dynamic_sampling}: up to so many rollouts more where groups earn alike"
        )
    if config.stp_rescue != "none":
        found.append("stp_rescue: rows of groups that earn nothing are decoded again")
    if config.stp_least_prob > 0:
        found.append("stp_least_prob: tokens that it leaves out are counted")
    if config.stp_prior_anneal != "none" or any(n in config.stp_spatial for n in ("frequency", "quantile", "hint")):
        found.append("stp_spatial: counted for the first rollout batch; what later ones are given changes")
    if draws_otherwise(config):
        found.append(
            "stp_rollout_cache and stp_rollout_precision: rollouts are counted without them, and the correction "
            "(stp_rollout_cap), which computes every state again, is not counted"
        )
    if blocks:
        found.append("cache of blocks: completions of a group that begin alike share one, which spares tokens")
    if prior:
        found.append("offline_generation: made once before training; counted for the prompts of one rollout batch")
    found.append("every completion is counted as one with an advantage; a row whose group earns alike costs no update")
    return found
