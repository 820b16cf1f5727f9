"""Rollouts: prompts and priors in, completions and how they came about out. The loop is in `loop`.

Shapes: R rows, L completion length, P longest prompt.
"""

import contextlib
from collections.abc import Sequence

import numpy as np
import torch

from stp_rs._core import PriorSet, RolloutScheduler, Unmasking
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import DivergenceError, ModelError
from stp_rs.models.acceleration import adapters_ready, blocks_as_they_are
from stp_rs.models.base import (
    DiffusionModel,
    block_size_of,
    check_ids,
    device_of,
    end_token_ids,
    in_step,
    passes_without_dropout,
)
from stp_rs.models.keys import KeyCache
from stp_rs.rollout.loop import Batching, Cohort, drive
from stp_rs.rollout.params import SamplingParams, check_allowed
from stp_rs.text import shown
from stp_rs.types import Mark, StopReason


@torch.no_grad()
def generate(
    model: DiffusionModel,
    prompts: PromptBatch,
    unmasking: Unmasking | Sequence[Unmasking],
    *,
    completion_length: int,
    sampling: SamplingParams | None = None,
    prior: PriorSet | None = None,
    seed: int = 0,
    slots: int = 64,
    batching: Batching | None = None,
) -> Rollout:
    """Return one completion per row of `prompts`.

    Args:
        model: the policy; it runs in eval mode.
        prompts: R rows with a uid each. A row's completion depends on (seed, uid) and the model, not on the batch.
        unmasking: plan, selection and pruning of every row, or one per row.
        completion_length: L, tokens to decode.
        sampling: temperature, top-k, top-p, allowed tokens; the model's own law by default.
        prior: fixed completion tokens, R rows.
        seed: key of the run's randomness.
        slots: most rows in flight.
        batching: how rows are batched, and whether entropies are recorded.

    Raises:
        DivergenceError: the model returned NaN logits.
        ModelError: a prompt holds a token that the model has no embedding for, a canvas does not fit the model, or the
            model cannot be called with the cache that `batching` asks for.
    """
    batching, rows = batching or Batching(), len(prompts)
    check_ids(model, prompts.prompt_ids)
    unmaskings = [unmasking] if isinstance(unmasking, Unmasking) else list(unmasking)
    law = check_allowed(sampling or SamplingParams(), model.mask_token_id, device_of(model))
    with passes_without_dropout(model.module), adapters_ready(model.module):
        keys = None if batching.cache == "none" else KeyCache(model, batching.cache)
    rollout = Rollout.empty(prompts, completion_length, exact=keys is None and all(s.exact for s in unmaskings))
    scheduler = RolloutScheduler(
        mask_token_id=model.mask_token_id,
        pad_token_id=model.pad_token_id,
        eos_token_ids=end_token_ids(model),
        slots=max(1, slots),
        seed=seed,
        share_first=batching.share_first and keys is None,  # each row keeps keys of its own
        max_tokens=batching.max_tokens,
        length_sorted=batching.length_sorted,
        block_size=block_size_of(model),
    )
    lengths_R = np.full(rows, completion_length, dtype=np.int32)
    scheduler.submit(prompts.uid, prompts.prompt_ids, prompts.prompt_length, lengths_R, unmaskings, prior)
    in_flight = max(1, min(slots, rows))
    entropy_RL = np.zeros((rows, completion_length), dtype=np.float32) if batching.entropies else None
    cohort = Cohort(model, scheduler, law, in_flight, completion_length, entropy_RL)
    cohort.keys = keys
    plain = contextlib.nullcontext() if keys is None else blocks_as_they_are(model.module)
    with passes_without_dropout(model.module), adapters_ready(model.module), plain, in_step(model):
        try:
            drive(cohort)
        except DivergenceError as error:
            raise _with_row(error, prompts) from None
        except ModelError as error:
            raise _with_longest(error, model, prompts, completion_length) from None
    # the scheduler writes into the record's own columns
    scheduler.results(rollout.token_ids, rollout.unmask_step, rollout.logprob, rollout.nfe, rollout.stop_reason)
    stats = scheduler.stats()
    cache = cohort.cache if keys is None else keys
    if cache is not None:  # what went through the model, not the canvases that it stands for
        stats |= {"calls": cache.calls, "tokens": cache.tokens, "padding": cache.padding}
    if entropy_RL is not None:  # every candidate of every forward wrote there, those that were drawn last
        rollout = rollout.replaced(entropy=np.where(rollout.unmask_step >= 0, entropy_RL, np.float32(0.0)))
    return rollout.replaced(stats=stats)


def _with_longest(error: ModelError, model: DiffusionModel, prompts: PromptBatch, completion_length: int) -> ModelError:
    """Return the error with the prompt that the model has too few positions for, where that is what it is about."""
    positions, longest = int(getattr(model, "context_length", 0)), int(prompts.prompt_length.max(initial=0))
    if not positions or longest + completion_length <= positions:
        return error
    prompt = prompts.rows[int(prompts.prompt_length.argmax())].get("prompt")
    return ModelError(f"{error} (the longest prompt has {longest} tokens: {shown(prompt, 80)})")


def _with_row(error: DivergenceError, prompts: PromptBatch) -> DivergenceError:
    """Return the error with the first row whose prompt the canvas begins with."""
    canvas = error.details.pop("canvas", None)
    if canvas is None:
        return error
    for row, length in enumerate(prompts.prompt_length.tolist()):
        if canvas[:length] == prompts.prompt_ids[row, :length].tolist():
            prompt = prompts.rows[row].get("prompt")
            known = {**error.details, "row": row, "prompt": prompt, "canvas": canvas}
            return DivergenceError(f"{error} (first in row {row}, prompt {prompt!r:.80})", **known)
    return error


def rollout_metrics(rollout: Rollout, eos_token_ids: Sequence[int]) -> dict[str, float]:
    """Return TRL's completion metrics and the diffusion ones.

    A length counts the token that ends the text. Completions without one are clipped; lengths of the terminated ones
    are 0 where all are.
    """
    length = rollout.token_ids.shape[1]
    inside_RL = rollout.unmask_step != Mark.OUTSIDE
    ended_RL = np.isin(rollout.token_ids, eos_token_ids) & inside_RL
    ended_R, length_R = ended_RL.any(1), np.where(ended_RL.any(1), ended_RL.argmax(1) + 1, inside_RL.sum(1))
    terminated = length_R[ended_R] if ended_R.any() else np.zeros(1)
    groups: dict[int, set[str]] = {}
    for group, text in zip(rollout.group.tolist(), rollout.completions, strict=True):
        groups.setdefault(group, set()).add(text)
    return {
        "completions/mean_length": float(length_R.mean()),
        "completions/min_length": float(length_R.min()),
        "completions/max_length": float(length_R.max()),
        "completions/mean_terminated_length": float(terminated.mean()),
        "completions/min_terminated_length": float(terminated.min()),
        "completions/max_terminated_length": float(terminated.max()),
        "completions/clipped_ratio": float(1.0 - ended_R.mean()),
        "diffusion/nfe": float(rollout.nfe.mean()),
        "diffusion/padding_share": rollout.stats["padding"] / max(1, rollout.stats["tokens"]),
        "diffusion/anchor_share": float((rollout.unmask_step == Mark.PRIOR).sum() / (len(rollout) * length)),
        "diffusion/temporal_stop_share": float((rollout.stop_reason == StopReason.TEMPORAL).mean()),
        "diffusion/distinct": float(np.mean([len(texts) for texts in groups.values()])),
    }
