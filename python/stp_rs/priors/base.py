"""The protocol of priors, and how several of them are combined. Shapes: R rows, L completion length, V vocabulary."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stp_rs._core import PriorSet
from stp_rs.data.prompts import PromptBatch
from stp_rs.errors import PriorConflictError
from stp_rs.types import Row


class Prior(Protocol):
    """A callable that says which completion tokens of a batch of prompts are fixed before decoding."""

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        """Return the fixed tokens, one row per prompt row."""
        ...


@runtime_checkable
class Constraining(Protocol):
    """A prior that restricts the tokens that can be drawn at a position, whether or not it fixes any."""

    def allowed(self, prompts: PromptBatch, completion_length: int) -> Tensor:
        """Return bool [L, V], true where a token is allowed; [R, L, V] where rows differ."""
        ...


def knows_answer(prior: Prior) -> bool:
    """Return whether a prior reads the row's solution or earlier rollouts, so that nothing is evaluated under it."""
    return bool(getattr(prior, "knows_answer", False))


def is_soft(prior: Prior) -> bool:
    """Return whether a prior is soft: its tokens are guesses, which give way to those of hard priors."""
    return bool(getattr(prior, "soft", False))


def compose_priors(priors: Sequence[Prior], prompts: PromptBatch, completion_length: int) -> PriorSet:
    """Return one prior made of all: the hard ones in order, then the soft ones, in order, where nothing is fixed yet.

    A soft prior's token that another prior does not allow is left out.

    Raises:
        PriorConflictError: two hard priors fix one position to different tokens, or one fixes a token that is not
            allowed there.
    """
    allowed = allowed_tokens(priors, prompts, completion_length)
    combined = PriorSet.empty(len(prompts))
    for prior in sorted(priors, key=is_soft):
        fixed = prior(prompts, completion_length)
        if allowed is not None and fixed.num_anchors:
            legal_RL = _legal(fixed, allowed.cpu().numpy(), completion_length)
            if not is_soft(prior):
                _refuse(fixed, legal_RL)
            fixed = fixed.restrict(legal_RL)
        combined = combined.compose(fixed, soft=is_soft(prior))
    return combined


def allowed_tokens(priors: Sequence[Prior], prompts: PromptBatch, completion_length: int) -> Tensor | None:
    """Return the tokens that all priors allow, bool [L, V] or [R, L, V]; None where none restricts any.

    Give it to `SamplingParams(allowed=...)` and to `token_elbo(..., allowed=...)`: one law draws and scores.
    """
    tables = [p.allowed(prompts, completion_length) for p in priors if isinstance(p, Constraining)]
    if not tables:
        return None
    combined = tables[0]
    for table in tables[1:]:
        combined = combined & table
    return combined


def _legal(fixed: PriorSet, allowed: NDArray[np.bool_], length: int) -> NDArray[np.uint8]:
    ids_RL = np.empty((len(fixed), length), dtype=np.int64)
    fixed.fill(ids_RL)
    at = np.maximum(ids_RL, 0)[..., None]
    rows = np.broadcast_to(allowed, (len(fixed), *allowed.shape[-2:]))
    legal_RL = np.take_along_axis(rows, at, axis=-1)[..., 0] | (ids_RL < 0)
    return np.ascontiguousarray(legal_RL, dtype=np.uint8)


def _refuse(fixed: PriorSet, legal_RL: NDArray[np.uint8]) -> None:
    for row, position in np.argwhere(legal_RL == 0).tolist():
        token, source = next((t, s) for p, t, s in fixed.row(row) if p == position)
        raise PriorConflictError(
            f"prior row {row}: position {position} is fixed to token {token} by {source}, which the vocabulary does "
            "not allow there; allow it, or leave one of the two priors out"
        )


@runtime_checkable
class Referenced(Protocol):
    """A task that knows correct completions: the prior `Hint` gives parts of them."""

    def reference(self, row: Row) -> str | None:
        """Return a correct completion (no end-of-text), or None where the row has none."""
        ...


@runtime_checkable
class Constrained(Protocol):
    """A task whose completions have a known alphabet at each position: the prior `Vocabulary` reads it."""

    def allowed(self, position: int) -> Sequence[str] | None:
        """Return the one-token texts that are possible at a completion position ("" is end-of-text); None for all."""
        ...
