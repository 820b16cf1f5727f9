"""Rollouts: prompts and priors in, completions and how they came about out. The loop is in `engine`.

Shapes: R rows, L completion length, P longest prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs._core import PriorSet, RolloutScheduler, Sampler
from stp_rs.data.prompts import PromptBatch
from stp_rs.models.acceleration import adapters_ready
from stp_rs.models.base import DiffusionModel, device_of, end_token_ids, passes_without_dropout
from stp_rs.rollout.loop import Cohort, Engine, drive
from stp_rs.rollout.params import Sampling, check_allowed
from stp_rs.types import Cost, Mark, StopReason


@dataclass(frozen=True)
class Rollout:
    """Completions and how they came about. Any intermediate canvas can be rebuilt from `unmask_step`."""

    prompts: PromptBatch
    token_ids: NDArray[np.int64]
    """[R, L]."""
    unmask_step: NDArray[np.int32]
    """[R, L] forward at which a position was revealed, or a `Mark`."""
    logprob: NDArray[np.float32]
    """[R, L] log-probability under the law that drew the token; 0 where nothing was sampled."""
    nfe: NDArray[np.int32]
    """[R] forwards of the row (a shared first forward counts for every row that used it)."""
    stop_reason: NDArray[np.uint8]
    """[R] a `StopReason`."""
    exact: bool
    """Whether the sum of `logprob` is the trajectory's log-likelihood (the choice of positions read the state only)."""
    stats: dict[str, int]
    """Counters: forwards (canvases computed), calls, nfe, head_rows (logits read), tokens, padding among them, nan."""

    def __len__(self) -> int:
        """Return R."""
        return len(self.prompts)

    @property
    def cost(self) -> Cost:
        """What the rollout computed."""
        return Cost(self.stats["forwards"], self.stats["tokens"], self.stats["head_rows"])

    @property
    def prompt_ids(self) -> NDArray[np.int64]:
        """[R, P] right-padded."""
        return self.prompts.prompt_ids

    @property
    def prompt_length(self) -> NDArray[np.int32]:
        """[R]."""
        return self.prompts.prompt_length

    @property
    def uid(self) -> NDArray[np.uint64]:
        """[R] keys of the rows' randomness."""
        return self.prompts.uid

    @property
    def group(self) -> NDArray[np.int64]:
        """[R] rows of a group share it."""
        return self.prompts.group


@torch.no_grad()
def generate(
    model: DiffusionModel,
    prompts: PromptBatch,
    sampler: Sampler | Sequence[Sampler],
    *,
    completion_length: int,
    sampling: Sampling | None = None,
    prior: PriorSet | None = None,
    seed: int = 0,
    slots: int = 64,
    engine: Engine | None = None,
) -> Rollout:
    """Return one completion per row of `prompts`.

    Args:
        model: the policy; it runs in eval mode.
        prompts: R rows with a uid each. A row's completion depends on (seed, uid) and the model, not on the batch.
        sampler: plan, selection and pruning of every row, or one per row.
        completion_length: L, tokens to decode.
        sampling: temperature, top-k, top-p, allowed tokens; the model's own law by default.
        prior: fixed completion tokens, R rows.
        seed: key of the run's randomness.
        slots: most rows in flight.
        engine: how rows are batched.

    Raises:
        DivergenceError: the model returned NaN logits.
    """
    engine, rows = engine or Engine(), len(prompts)
    samplers = [sampler] if isinstance(sampler, Sampler) else list(sampler)
    law = check_allowed(sampling or Sampling(), model.mask_token_id, device_of(model))
    rollout = _empty(prompts, completion_length, exact=all(s.exact for s in samplers))
    scheduler = RolloutScheduler(
        mask_token_id=model.mask_token_id,
        pad_token_id=model.pad_token_id,
        eos_token_ids=end_token_ids(model),
        slots=max(1, slots),
        seed=seed,
        share_first=engine.share_first,
        max_tokens=engine.max_tokens,
        length_sorted=engine.length_sorted,
    )
    lengths_R = np.full(rows, completion_length, dtype=np.int32)
    scheduler.submit(prompts.uid, prompts.prompt_ids, prompts.prompt_length, lengths_R, samplers, prior)
    cohort = Cohort(model, scheduler, law, max(1, min(slots, rows)), completion_length)
    with passes_without_dropout(model.module), adapters_ready(model.module):
        drive(cohort)
    _collect(rollout, scheduler)
    return rollout


def _empty(prompts: PromptBatch, length: int, *, exact: bool) -> Rollout:
    rows = len(prompts)
    return Rollout(
        prompts=prompts,
        token_ids=np.empty((rows, length), dtype=np.int64),
        unmask_step=np.empty((rows, length), dtype=np.int32),
        logprob=np.empty((rows, length), dtype=np.float32),
        nfe=np.empty(rows, dtype=np.int32),
        stop_reason=np.empty(rows, dtype=np.uint8),
        exact=exact,
        stats={},
    )


def _collect(rollout: Rollout, scheduler: RolloutScheduler) -> None:
    scheduler.results(rollout.token_ids, rollout.unmask_step, rollout.logprob, rollout.nfe, rollout.stop_reason)
    rollout.stats.update(scheduler.stats())


def rollout_metrics(rollout: Rollout, completions: Sequence[str], eos_token_ids: Sequence[int]) -> dict[str, float]:
    """Return TRL's completion metrics (lengths with the token that ends the text) and the diffusion ones."""
    length = rollout.token_ids.shape[1]
    ended_RL, canvas_R = np.isin(rollout.token_ids, eos_token_ids), (rollout.unmask_step != Mark.OUTSIDE).sum(1)
    length_R = np.where(ended_RL.any(1), np.minimum(ended_RL.argmax(1) + 1, canvas_R), canvas_R)
    groups: dict[int, set[str]] = {}
    for group, text in zip(rollout.group.tolist(), completions, strict=True):
        groups.setdefault(group, set()).add(text)
    return {
        "completions/mean_length": float(length_R.mean()),
        "diffusion/nfe": float(rollout.nfe.mean()),
        "diffusion/padding_share": rollout.stats["padding"] / max(1, rollout.stats["tokens"]),
        "diffusion/anchor_share": float((rollout.unmask_step == Mark.PRIOR).sum() / (len(rollout) * length)),
        "diffusion/temporal_stop_share": float((rollout.stop_reason == StopReason.TEMPORAL).mean()),
        "diffusion/distinct": float(np.mean([len(texts) for texts in groups.values()])),
    }
