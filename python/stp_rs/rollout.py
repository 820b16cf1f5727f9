"""Rollouts: the Rust scheduler says what to compute, the model computes it, the scheduler commits.

Shapes: R rows, L completion length, B canvases of one call, S their width, N candidates.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs import _core
from stp_rs.errors import DivergenceError
from stp_rs.model import DiffusionModel, device_of, encode, passes_without_dropout
from stp_rs.prompts import PromptBatch
from stp_rs.sampling import COLUMNS, Sampling, candidate_logits, reduce_logits

HEAD_ELEMENTS = 1 << 24
"""Logits of one head chunk: bounds memory at large vocabularies."""


@dataclass(frozen=True)
class Rollout:
    """Completions and how they came about. Any intermediate canvas can be rebuilt from `unmask_step`."""

    prompts: PromptBatch
    token_ids: NDArray[np.int64]
    """[R, L]."""
    unmask_step: NDArray[np.int32]
    """[R, L] forward at which a position was revealed; -1 fixed by the prior, -2 outside the completion."""
    logprob: NDArray[np.float32]
    """[R, L] log-probability under the law that drew the token; 0 where nothing was sampled."""
    nfe: NDArray[np.int32]
    """[R] forwards of the row (a shared first forward counts for every row that used it)."""
    stop_reason: NDArray[np.uint8]
    """[R] 1 plan, 2 temporal rule, 3 forward budget, 4 nothing to decode."""
    exact: bool
    """Whether the sum of `logprob` is the trajectory's log-likelihood (the choice of positions read the state only)."""
    stats: dict[str, int]
    """Counters: forwards, calls, nfe, head_rows, tokens, padding."""

    def __len__(self) -> int:
        """Return R."""
        return len(self.prompts)

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
    sampler: _core.Sampler,
    *,
    completion_length: int,
    sampling: Sampling | None = None,
    prior: _core.PriorSet | None = None,
    seed: int = 0,
    slots: int = 64,
) -> Rollout:
    """Return one completion per row of `prompts`.

    Args:
        model: the policy; it runs in eval mode.
        prompts: R rows with a uid each. A row's completion depends on (seed, uid) and the model, not on the batch.
        sampler: plan, selection and pruning of every row.
        completion_length: L, tokens to decode.
        sampling: temperature, top-k, top-p; the model's own law by default.
        prior: fixed completion tokens, R rows.
        seed: key of the run's randomness.
        slots: most rows in flight.

    Raises:
        DivergenceError: the model returned NaN logits.
    """
    scheduler = _core.RolloutScheduler(
        mask_token_id=model.mask_token_id, pad_token_id=model.pad_token_id, slots=slots, seed=seed
    )
    lengths_R = np.full(len(prompts), completion_length, dtype=np.int32)
    scheduler.submit(prompts.uid, prompts.prompt_ids, prompts.prompt_length, lengths_R, sampler, prior)
    with passes_without_dropout(model.module):
        _drive(model, scheduler, sampling or Sampling(), min(slots, max(len(prompts), 1)))
    shape = (len(prompts), completion_length)
    rollout = Rollout(
        prompts=prompts,
        token_ids=np.empty(shape, dtype=np.int64),
        unmask_step=np.empty(shape, dtype=np.int32),
        logprob=np.empty(shape, dtype=np.float32),
        nfe=np.empty(shape[0], dtype=np.int32),
        stop_reason=np.empty(shape[0], dtype=np.uint8),
        exact=sampler.exact,
        stats=scheduler.stats(),
    )
    scheduler.results(rollout.token_ids, rollout.unmask_step, rollout.logprob, rollout.nfe, rollout.stop_reason)
    return rollout


def _drive(model: DiffusionModel, scheduler: _core.RolloutScheduler, law: Sampling, slots: int) -> None:
    device = device_of(model)
    pinned = device.type == "cuda"
    tokens, positions = scheduler.capacity()
    ids = torch.empty(tokens, dtype=torch.int64, pin_memory=pinned)
    lengths = torch.empty(slots, dtype=torch.int32, pin_memory=pinned)
    at = torch.empty(positions, dtype=torch.int32, pin_memory=pinned)
    uniforms = torch.empty(positions, dtype=torch.float32, pin_memory=pinned)
    packed = torch.empty((positions, COLUMNS), dtype=torch.float32, pin_memory=pinned)
    views = (ids.numpy(), lengths.numpy(), at.numpy(), uniforms.numpy())
    packed_view = packed.numpy()
    while True:
        rows, width, count = scheduler.next_step(*views)
        if rows == 0:
            return
        ids_BS = ids[: rows * width].view(rows, width).to(device, non_blocking=True)
        hidden_BSH = encode(model, ids_BS, views[1][:rows])
        at_N = at[:count].to(device, non_blocking=True) - model.logit_shift
        hidden_NH = hidden_BSH.reshape(rows * width, -1).index_select(0, at_N)
        uniforms_N = uniforms[:count].to(device, non_blocking=True)
        start = 0
        while start < count:
            logits_NV = candidate_logits(model.head(hidden_NH[start : start + _chunk(model)]), model.mask_token_id)
            stop = start + logits_NV.shape[0]
            packed[start:stop].copy_(reduce_logits(logits_NV, uniforms_N[start:stop], law), non_blocking=True)
            start = stop
        if pinned:
            torch.cuda.current_stream(device).synchronize()
        bad = int(np.isnan(packed_view[:count]).any(1).sum())
        if bad:  # before the commit: the token of a NaN candidate means nothing
            raise DivergenceError(
                f"the model returned NaN logits for {bad} of {count} candidates of a forward; its weights or "
                "activations have overflowed: lower learning_rate, or check bf16 and the checkpoint"
            )
        scheduler.commit(packed_view[:count])


def _chunk(model: DiffusionModel) -> int:
    vocab = int(getattr(getattr(model.module, "config", None), "vocab_size", 1 << 15))
    return max(1, HEAD_ELEMENTS // vocab)
