"""Which rows of a rollout batch an update computes, in which micro-batches, and what the mean of its loss is over."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stp_rs.data.trajectories import Rollout
from stp_rs.distributed import divide
from stp_rs.objective.loss import objective_of, reads_entropy
from stp_rs.objective.masks import canvas_lengths, scored_tokens
from stp_rs.types import Mark

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig


@dataclass(frozen=True)
class Totals:
    """What the mean of a loss is over: the whole update, all micro-batches of all processes together."""

    completions: int
    tokens: float
    rows: int
    mean_ratio: Tensor | float | None = None


def totals_of(rollout: Rollout, args: "STPConfig", eos_token_ids: Sequence[int] = (), *, score_prior: bool) -> Totals:
    """Return the completions and scored tokens of the update that its mean is over."""
    tokens_R = scored_tokens(rollout.unmask_step, score_prior).sum(1)
    if args.mask_truncated_completions:  # they count as completions and not as tokens, as in TRL
        tokens_R = tokens_R * _ended(rollout, eos_token_ids)
    if args.stp_zero_std == "drop":
        tokens_R = tokens_R[judged(rollout)]
    return Totals(max(1, len(tokens_R)), float(tokens_R.sum()), len(rollout))


def judged(rollout: Rollout) -> NDArray[np.bool_]:
    """Return [R], true where a completion or one of its tokens has an advantage."""
    own_RL = rollout.token_advantage
    found: NDArray[np.bool_] = rollout.weights() != 0 if own_RL is None else (own_RL != 0).any(1)
    return found


def micro_batches(rollout: Rollout, args: "STPConfig", eos_token_ids: Sequence[int] = ()) -> list[NDArray[np.int64]]:
    """Return the row numbers of each micro-batch: the rows that have a gradient, in their order.

    Without a KL term and entropies a row of advantage 0 or weight 0 adds nothing to the loss and is not computed; with
    `mask_truncated_completions` neither is one without any of `eos_token_ids`. (The denominator of loss_type bnpo is of
    the rows that are computed.)
    """
    advantage, used = rollout.weights(), judged(rollout)
    rows = np.arange(len(rollout))
    if args.beta == 0 and not reads_entropy(args) and not objective_of(args).trains_zero:
        silent = advantage < 0 if args.stp_negative_advantage_weight == 0 else np.zeros_like(rows, bool)
        rows = rows[used & ~silent]
    elif args.stp_zero_std == "drop":
        rows = rows[used]
    if args.mask_truncated_completions:
        rows = rows[_ended(rollout, eos_token_ids)[rows]]
    size = args.per_device_train_batch_size
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def dealt(
    rollout: Rollout, rows: list[NDArray[np.int64]], processes: int | None = None
) -> list[list[NDArray[np.int64]]]:
    """Return the micro-batches that each process computes: whole ones, so that their tokens are even.

    Args:
        rollout: the batch.
        rows: of each micro-batch.
        processes: that share them; None: all of the run.
    """
    length_R = rollout.prompt_length + canvas_lengths(rollout.unmask_step)
    costs = [float(length_R[part].sum()) for part in rows]
    return [[rows[i] for i in share] for share in divide(costs, processes)]


def _ended(rollout: Rollout, eos_token_ids: Sequence[int]) -> NDArray[np.bool_]:
    """Return [R], true where a completion has an end of text on its canvas."""
    ended: NDArray[np.bool_] = (np.isin(rollout.token_ids, eos_token_ids) & (rollout.unmask_step != Mark.OUTSIDE)).any(
        1
    )
    return ended
