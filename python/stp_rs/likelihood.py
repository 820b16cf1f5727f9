"""Likelihood: any design's weighted masks, evaluated by one function.

A design draws P corrupted canvases with weights; the estimate of a completion's log-likelihood is the weighted sum of
the log-probs of its masked tokens (docs/designs.md). It is a token ELBO, not a log-prob, for every design but the
trajectory's.

Shapes: R rows, P passes (canvases), L completion length, S canvas width, N scored positions, V vocabulary.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from stp_rs import _core
from stp_rs.config import STPConfig
from stp_rs.engine import HEAD_ELEMENTS
from stp_rs.errors import ConfigError
from stp_rs.metrics import Cost
from stp_rs.model import DiffusionModel, device_of, encode
from stp_rs.sampling import Sampling, allowed_rows, candidate_logits, placed

_OUTSIDE = -2
"""`unmask_step` of a position beyond a row's completion."""


class Completions(Protocol):
    """Rows whose likelihood can be estimated: a `Rollout`, a `Minibatch` of the buffer, or your own arrays."""

    @property
    def prompt_ids(self) -> NDArray[np.int64]:
        """[R, P] right-padded."""
        ...

    @property
    def prompt_length(self) -> NDArray[np.int32]:
        """[R]."""
        ...

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """[R, L]."""
        ...

    @property
    def unmask_step(self) -> NDArray[np.int32]:
        """[R, L] forward at which a position was revealed; -1 prior, -2 outside the completion."""
        ...

    @property
    def uid(self) -> NDArray[np.uint64]:
        """[R] keys of the rows' randomness."""
        ...


@dataclass(frozen=True)
class Masks:
    """Weighted masks of a batch: what every likelihood estimator is."""

    mask_PL: NDArray[np.uint8]
    weight_PL: NDArray[np.float32]
    """Zero outside the mask; a masked position may have weight zero (it hides, but is not scored)."""
    row_P: NDArray[np.int32]
    """The row a pass belongs to."""
    scored_RL: NDArray[np.uint8]
    """Positions that the likelihood is about (free ones, or all with `score_prior`)."""
    length_R: NDArray[np.int32]
    """Completion tokens of each row; what lies beyond is padding."""
    prompt_PW: NDArray[np.uint8] | None = None
    """1 where a prompt token is masked too, [P, W] over the batch's prompt columns; None where none is."""


def make_design(args: STPConfig) -> _core.Design:
    """Return the configured design.

    Raises:
        ConfigError: `stp_truncate` is no range.
        DesignError: the options do not fit the design.
    """
    likelihood, rollout = args.likelihood, args.rollout
    truncate = None
    if likelihood.stp_truncate:
        try:
            low, high = (float(part) for part in likelihood.stp_truncate.split(":"))
        except ValueError:
            raise ConfigError(f"stp_truncate: got {likelihood.stp_truncate!r}, needs LOW:HIGH, as 0.2:0.8") from None
        truncate = (low, high)
    eighth = max(1, math.ceil(rollout.max_completion_length / 8))
    return _core.Design(
        likelihood.stp_design,
        likelihood.num_mc,
        num_iterations=args.optim.num_iterations,
        block_length=likelihood.stp_mask_block or rollout.block_length or eighth,
        truncate=truncate,
    )


def scores_prior(design: _core.Design, score_prior: bool) -> bool:
    """Return whether prior tokens are scored: as wanted, but a trajectory has no state that revealed them."""
    return score_prior and design.target != "trajectory"


def draw_masks(
    design: _core.Design,
    completions: Completions,
    *,
    seed: int,
    iteration: int = 0,
    score_prior: bool = False,
    diffusion_steps: int = 1,
) -> Masks:
    """Return a design's masks for each row's own plan, keyed by (seed, uid, iteration).

    Args:
        design: the law of masks and weights.
        completions: their `unmask_step` gives each row's realised plan.
        seed: key of the run.
        iteration: index of the inner iteration (optimiser update), never of the micro-batch.
        score_prior: score prior tokens too, on the even plan of the whole completion at `diffusion_steps` (whatever the
            rollout's quota and blocks), with the row's own temporal merge.
        diffusion_steps: steps of the unpruned plan; read with `score_prior` only.
    """
    unmask_step_RL = np.ascontiguousarray(completions.unmask_step)
    uids_R = np.ascontiguousarray(completions.uid)
    counts_RT = np.empty_like(unmask_step_RL)
    _core.scored_counts(unmask_step_RL, counts_RT, score_prior=score_prior, diffusion_steps=diffusion_steps)
    scored_RL = (unmask_step_RL >= (-1 if score_prior else 0)).astype(np.uint8)
    passes = int(np.sum(design.passes(scored_RL, counts_RT)))
    masks = Masks(
        mask_PL=np.empty((passes, unmask_step_RL.shape[1]), dtype=np.uint8),
        weight_PL=np.empty((passes, unmask_step_RL.shape[1]), dtype=np.float32),
        row_P=np.empty(passes, dtype=np.int32),
        scored_RL=scored_RL,
        length_R=(unmask_step_RL > _OUTSIDE).sum(1, dtype=np.int32),
    )
    design.draw(
        scored_RL,
        counts_RT,
        unmask_step_RL,
        seed,
        uids_R,
        iteration,
        masks.mask_PL,
        masks.weight_PL,
        masks.row_P,
    )
    return masks


def mask_prompts(masks: Masks, completions: Completions, ratio: float, *, seed: int, iteration: int = 0) -> Masks:
    """Return the masks with each prompt token masked too with probability `ratio`, afresh in every pass.

    Diffu-GRPO (arXiv 2504.12216): 0.15. Keyed by (seed, uid, iteration, pass), as the masks of the completion.
    """
    if ratio == 0.0:
        return masks
    width = completions.prompt_ids.shape[1]
    prompt_RW = (np.arange(width) < completions.prompt_length[:, None]).astype(np.uint8)
    prompt_PW = np.empty((len(masks.row_P), width), dtype=np.uint8)
    uids_R = np.ascontiguousarray(completions.uid)
    _core.prompt_mask(prompt_RW, ratio, seed, uids_R, iteration, masks.row_P, prompt_PW)
    return replace(masks, prompt_PW=prompt_PW)


def without_blame(masks: Masks, unmask_step_RL: NDArray[np.int32], advantage_R: NDArray[np.float32]) -> Masks:
    """Return the masks with weight 0 on prior tokens of completions with a negative advantage.

    What hides the tokens and what a mean is over stay as they are: the free tokens keep their part of the estimate and
    of the gradient; the prior tokens' estimate is 0 under every policy, their ratio 1.
    """
    blamed_RL = (unmask_step_RL == -1) & (advantage_R < 0)[:, None]
    return replace(masks, weight_PL=np.where(blamed_RL[masks.row_P], np.float32(0.0), masks.weight_PL))


def without_tokens(masks: Masks, left_out_RL: NDArray[np.bool_]) -> Masks:
    """Return the masks without some tokens: not scored, and no part of a mean."""
    return replace(
        masks,
        weight_PL=np.where(left_out_RL[masks.row_P], np.float32(0.0), masks.weight_PL),
        scored_RL=np.where(left_out_RL, np.uint8(0), masks.scored_RL),
    )


def take_passes(masks: Masks, part: slice) -> Masks:
    """Return some of the passes; rows stay as they are numbered."""
    return replace(
        masks,
        mask_PL=masks.mask_PL[part],
        weight_PL=masks.weight_PL[part],
        row_P=masks.row_P[part],
        prompt_PW=None if masks.prompt_PW is None else masks.prompt_PW[part],
    )


def token_elbo(
    model: DiffusionModel,
    completions: Completions,
    masks: Masks,
    *,
    temperature: float = 1.0,
    forward_batch_size: int = 0,
    allowed: Tensor | None = None,
    cost: Cost | None = None,
) -> Tensor:
    """Return the weighted log-prob estimate of every token, f32 [R, L]; its row sum is the sequence estimate.

    Gradients flow to the model's parameters unless torch.no_grad is on. Logits are made for scored positions only, in
    chunks that are recomputed in the backward pass where there is more than one.

    Args:
        model: the policy, in eval mode.
        completions: R rows; positions outside a row's completion are ignored.
        masks: from `draw_masks`.
        temperature: the law's temperature (0 counts as 1): the law that drew the tokens is the law that is scored.
        forward_batch_size: canvases per forward; 0 means all at once.
        allowed: the law's possible tokens, bool [V], [L, V] or [R, L, V]; a scored token outside has log-prob -inf.
        cost: what is computed is added to it.
    """
    device = device_of(model)
    law = Sampling(temperature or 1.0, allowed=placed(allowed, device))
    prompt_R, token_ids_RL = completions.prompt_length, completions.token_ids
    rows, length = token_ids_RL.shape
    # where nothing is scored there is no graph: a leaf lets the caller's backward pass find no parameter, not an error
    no_graph = torch.is_grad_enabled() and not masks.weight_PL.any()
    total = torch.zeros(rows * length, dtype=torch.float32, device=device, requires_grad=no_graph)
    canvas_RS = _canvases(completions, model.pad_token_id)
    lengths_R = prompt_R + masks.length_R
    passes = len(masks.row_P)
    size = forward_batch_size or max(passes, 1)
    for start in range(0, passes, size):
        part = slice(start, start + size)
        row_P = masks.row_P[part]
        scored_p, scored_l = np.nonzero(masks.weight_PL[part])
        if len(scored_p) == 0:
            continue
        canvas_PS = _corrupt(canvas_RS[row_P], masks.mask_PL[part], prompt_R[row_P], model.mask_token_id)
        if masks.prompt_PW is not None:
            hidden_PW = masks.prompt_PW[part]
            canvas_PS[:, : hidden_PW.shape[1]][hidden_PW == 1] = model.mask_token_id
        width = int(lengths_R[row_P].max())
        if cost is not None:
            cost.forwards += len(row_P)
            cost.tokens += len(row_P) * width
            cost.head_rows += len(scored_p)
        ids = torch.from_numpy(np.ascontiguousarray(canvas_PS[:, :width])).to(device, non_blocking=True)
        hidden_PSH = encode(model, ids, lengths_R[row_P])
        at = scored_p * width + prompt_R[row_P][scored_p] + scored_l - model.logit_shift
        hidden_NH = hidden_PSH.reshape(len(row_P) * width, -1).index_select(0, _tensor(at, device))
        flat = row_P[scored_p].astype(np.int64) * length + scored_l
        targets_N = _tensor(token_ids_RL.reshape(-1)[flat], device)
        logprob_N = _head_logprobs(model, hidden_NH, targets_N, law, (_tensor(flat, device), length))
        weight_N = torch.from_numpy(masks.weight_PL[part][scored_p, scored_l]).to(device, non_blocking=True)
        total = total.index_add(0, _tensor(flat, device), weight_N * logprob_N)
    return total.view(rows, length)


def _canvases(completions: Completions, pad_token_id: int) -> NDArray[np.int64]:
    """Return clean canvases [R, S]: prompt, completion, padding on the right."""
    prompt_ids_RP, token_ids_RL = completions.prompt_ids, completions.token_ids
    (rows, length), width = token_ids_RL.shape, prompt_ids_RP.shape[1]
    canvas_RS = np.full((rows, width + length), pad_token_id, dtype=np.int64)
    canvas_RS[:, :width] = prompt_ids_RP
    at_RL = completions.prompt_length[:, None] + np.arange(length)
    np.put_along_axis(canvas_RS, at_RL, token_ids_RL, axis=1)
    return canvas_RS


def _corrupt(
    canvas_PS: NDArray[np.int64], mask_PL: NDArray[np.uint8], prompt_P: NDArray[np.int32], mask_token_id: int
) -> NDArray[np.int64]:
    passes, positions = np.nonzero(mask_PL)
    canvas_PS[passes, prompt_P[passes] + positions] = mask_token_id
    return canvas_PS


def _head_logprobs(
    model: DiffusionModel, hidden_NH: Tensor, targets_N: Tensor, law: Sampling, places: tuple[Tensor, int]
) -> Tensor:
    """Return the log-probs of targets at places (row times L plus position, and L) under the law."""
    places_N, length = places

    def chunk_logprobs(hidden: Tensor, targets: Tensor, at: Tensor) -> Tensor:
        logits = candidate_logits(model.head(hidden), model.mask_token_id, allowed_rows(law, at, length))
        logits = logits / law.temperature
        return torch.log_softmax(logits, dim=-1).gather(-1, targets[:, None]).squeeze(-1)

    vocab = int(getattr(getattr(model.module, "config", None), "vocab_size", 1 << 15))
    size = max(1, HEAD_ELEMENTS // vocab)
    if len(targets_N) <= size:
        return chunk_logprobs(hidden_NH, targets_N, places_N)
    columns = (hidden_NH, targets_N, places_N)
    parts = [
        checkpoint(chunk_logprobs, *(column[i : i + size] for column in columns), use_reentrant=False)
        for i in range(0, len(targets_N), size)
    ]
    return torch.cat(parts)


def _tensor(array: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(device, non_blocking=True)
