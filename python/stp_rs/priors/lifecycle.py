"""Optional methods of priors that the trainer calls: at the start of a step, after a rollout, at a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import CheckpointError
from stp_rs.priors.base import Prior
from stp_rs.priors.hashes import tokenizer_hash
from stp_rs.types import Cost, Stored


@runtime_checkable
class Scheduled(Protocol):
    """A prior that depends on how far training is."""

    def begin_step(self, step: int, max_steps: int) -> None:
        """Note that rollout batch `step` (from 0) of `max_steps` begins."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A prior that runs a model before it can be called."""

    def prepare(self, prompts: PromptBatch, completion_length: int) -> Cost:
        """Run the model for a batch of prompts; return what that cost."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A prior that learns from earlier rollouts."""

    def observe(self, prompts: PromptBatch, rollout: Rollout, rewards: NDArray[np.float32]) -> None:
        """Learn from a rollout and its rewards, f32 [R]."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A prior with state of its own, which checkpoints keep."""

    def state_dict(self) -> Stored:
        """Return the state: arrays, and hashes of the tokenizer or policy that they belong to."""
        ...

    def load_state_dict(self, stored: Stored) -> None:
        """Continue from a state that `state_dict` returned."""
        ...


def begin_step(priors: Sequence[Prior], step: int, max_steps: int) -> None:
    """Call `begin_step` of every prior that has it."""
    for prior in priors:
        if isinstance(prior, Scheduled):
            prior.begin_step(step, max_steps)


def observe(priors: Sequence[Prior], rollout: Rollout, rewards: NDArray[np.float32]) -> None:
    """Call `observe` of every prior that has it, with a rollout and its rewards."""
    for prior in priors:
        if isinstance(prior, Observing):
            prior.observe(rollout.prompts, rollout, rewards)


def prepare(priors: Sequence[Prior], prompts: PromptBatch, completion_length: int) -> Cost:
    """Call `prepare` of every prior that has it; return the sum of the costs, which the run's ledger counts."""
    ready = [p.prepare(prompts, completion_length) for p in priors if isinstance(p, Preparing)]
    return sum(ready, Cost())


def take_states(priors: Sequence[Prior]) -> dict[str, Stored]:
    """Return the state of every stateful prior, keyed by its place in the list and its class."""
    return {_name(i, p): p.state_dict() for i, p in enumerate(priors) if isinstance(p, Stateful)}


def load_states(priors: Sequence[Prior], states: Mapping[str, Stored]) -> None:
    """Restore the states that `take_states` returned.

    Raises:
        CheckpointError: the checkpoint was made with other priors, or another tokenizer.
    """
    ours = {_name(i, p): p for i, p in enumerate(priors) if isinstance(p, Stateful)}
    if ours.keys() != states.keys():
        raise CheckpointError(
            f"priors: the checkpoint holds the state of {', '.join(states) or 'none'}, the run has "
            f"{', '.join(ours) or 'none'}; resume with the same priors in the same order"
        )
    for name, prior in ours.items():
        prior.load_state_dict(states[name])


def check_tokenizer(stored: Stored, tokenizer: Any, where: str) -> None:
    """Raise CheckpointError where stored ids were made with another tokenizer."""
    if stored.hashes.get("tokenizer") != tokenizer_hash(tokenizer):
        raise CheckpointError(f"{where}: was made with another tokenizer; delete it to start anew")


def _name(place: int, prior: Prior) -> str:
    return f"{place}-{type(prior).__name__}"
