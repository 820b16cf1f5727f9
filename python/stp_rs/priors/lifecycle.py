"""What the trainer tells its priors, for those that want to know: progress, results, checkpoints."""

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
    """A prior that changes with training."""

    def begin_step(self, step: int, max_steps: int) -> None:
        """Hear that rollout batch `step` (from 0) of `max_steps` begins."""
        ...


@runtime_checkable
class Preparing(Protocol):
    """A prior that runs a model before it can say its tokens."""

    def prepare(self, prompts: PromptBatch, completion_length: int) -> Cost:
        """Make what the tokens of a batch depend on; return what the model computed."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A prior that learns from earlier rollouts."""

    def observe(self, prompts: PromptBatch, rollout: Rollout, rewards: NDArray[np.float32]) -> None:
        """Hear what a batch gave; rewards f32 [R]."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A prior whose tokens depend on more than its arguments: a checkpoint keeps it."""

    def state_dict(self) -> Stored:
        """Return its arrays and the hashes of what they belong to."""
        ...

    def load_state_dict(self, stored: Stored) -> None:
        """Go on from what `state_dict` returned."""
        ...


def begin_step(priors: Sequence[Prior], step: int, max_steps: int) -> None:
    """Tell the priors that a rollout batch begins."""
    for prior in priors:
        if isinstance(prior, Scheduled):
            prior.begin_step(step, max_steps)


def observe(priors: Sequence[Prior], rollout: Rollout, rewards: NDArray[np.float32]) -> None:
    """Tell the priors what a rollout batch gave."""
    for prior in priors:
        if isinstance(prior, Observing):
            prior.observe(rollout.prompts, rollout, rewards)


def prepare(priors: Sequence[Prior], prompts: PromptBatch, completion_length: int) -> Cost:
    """Return what priors computed to be ready for a batch: a refresh is compute of the run."""
    ready = [p.prepare(prompts, completion_length) for p in priors if isinstance(p, Preparing)]
    return sum(ready, Cost())


def take_states(priors: Sequence[Prior]) -> dict[str, Stored]:
    """Return the state of every stateful prior, by its place and class."""
    return {_name(i, p): p.state_dict() for i, p in enumerate(priors) if isinstance(p, Stateful)}


def load_states(priors: Sequence[Prior], states: Mapping[str, Stored]) -> None:
    """Give the priors what `take_states` returned.

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
    """Raise CheckpointError where stored ids mean other tokens."""
    if stored.hashes.get("tokenizer") != tokenizer_hash(tokenizer):
        raise CheckpointError(f"{where}: was made with another tokenizer; delete it to start anew")


def _name(place: int, prior: Prior) -> str:
    return f"{place}-{type(prior).__name__}"
