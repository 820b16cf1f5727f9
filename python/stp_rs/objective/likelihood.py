"""Likelihood: any design's weighted masks, evaluated by one function.

A design draws P corrupted canvases with weights; the estimate of a completion's log-likelihood is the weighted sum of
the log-probs of its masked tokens (docs/designs.md). It is a token ELBO, not a log-prob, for every design but the
trajectory's.

Shapes: R rows, P passes (canvases), L completion length, S canvas width, N scored positions, V vocabulary.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stp_rs.data.trajectories import Rollout
from stp_rs.models.base import DiffusionModel, block_size_of, device_of, encode, upload
from stp_rs.objective.head import Entropies, head_logprobs
from stp_rs.objective.masks import Masks, take_passes
from stp_rs.rollout.params import SamplingParams, placed
from stp_rs.types import Cost


def token_elbo(
    model: DiffusionModel,
    completions: Rollout,
    masks: Masks,
    *,
    temperature: float = 1.0,
    forward_batch_size: int = 0,
    allowed: Tensor | None = None,
    cost: Cost | None = None,
) -> Tensor:
    """Return the weighted log-prob estimate of every token, f32 [R, L]; its row sum is the sequence estimate.

    Arguments are those of `token_estimates`, which has the entropies too.
    """
    return token_estimates(
        model,
        completions,
        masks,
        temperature=temperature,
        forward_batch_size=forward_batch_size,
        allowed=allowed,
        cost=cost,
    )[0]


def token_estimates(
    model: DiffusionModel,
    completions: Rollout,
    masks: Masks,
    *,
    temperature: float = 1.0,
    forward_batch_size: int = 0,
    allowed: Tensor | None = None,
    cost: Cost | None = None,
    entropies: Entropies = "none",
) -> tuple[Tensor, Tensor | None]:
    """Return the weighted log-prob estimate of every token, f32 [R, L], and its entropy, f32 [R, L].

    The row sum of the first is the sequence estimate. An entropy is that of the law at the token's place, in nats, the
    mean over the passes that score it; NaN where none does. Gradients flow to the model's parameters unless
    torch.no_grad is on. Logits are made for scored positions only, in chunks that are never kept
    (`head_logprobs`). Canvases that are equal are computed once where at least half are spared: a group
    whose completions are all masked is one canvas.

    Args:
        model: the policy, in eval mode.
        completions: R rows; positions outside a row's completion are ignored.
        masks: from `draw_masks`.
        temperature: the law's temperature (0 counts as 1): the law that drew the tokens is the law that is scored.
        forward_batch_size: canvases per forward; 0 means all at once.
        allowed: the law's possible tokens, bool [V], [L, V] or [R, L, V]; a scored token outside has log-prob -inf.
        cost: what is computed is added to it.
        entropies: `none` (the second value is None), `numbers`, or `gradient`.
    """
    device = device_of(model)
    law = SamplingParams(temperature or 1.0, allowed=placed(allowed, device))
    prompt_R, token_ids_RL = completions.prompt_length, completions.token_ids
    rows, length = token_ids_RL.shape
    # where nothing is scored there is no graph: a leaf lets the caller's backward pass find no parameter, not an error
    no_graph = torch.is_grad_enabled() and not masks.weight_PL.any()
    total = torch.zeros(rows * length, dtype=torch.float32, device=device, requires_grad=no_graph)
    entropy, passes_of = torch.zeros((2, rows * length), dtype=torch.float32, device=device)
    canvas_RS = _canvases(completions, model.pad_token_id)
    lengths_R = prompt_R + masks.length_R
    # a pass that scores nothing is not computed
    masks = take_passes(masks, np.unique(np.nonzero(masks.weight_PL)[0]))
    passes = len(masks.row_P)
    size = forward_batch_size or max(passes, 1)
    for start in range(0, passes, size):
        part = slice(start, start + size)
        row_P = masks.row_P[part]
        scored_p, scored_l = np.nonzero(masks.weight_PL[part])
        canvas_PS = _corrupt(canvas_RS[row_P], masks.mask_PL[part], prompt_R[row_P], model.mask_token_id)
        if masks.prompt_PW is not None:
            hidden_PW = masks.prompt_PW[part]
            canvas_PS[:, : hidden_PW.shape[1]][hidden_PW == 1] = model.mask_token_id
        width = int(lengths_R[row_P].max())
        clean_PS = canvas_RS[row_P, :width] if block_size_of(model) else None
        canvas_U, own_P = distinct_canvases(canvas_PS[:, :width], lengths_R[row_P], clean_PS)
        at = own_P[scored_p] * width + prompt_R[row_P][scored_p] + scored_l
        head_N, own_N = np.arange(len(at)), None
        if len(canvas_U) < len(row_P) and (law.allowed is None or law.allowed.dim() < 3):
            # the same place of the same canvas: one row of logits for every completion's own token
            order = np.argsort(at, kind="stable")
            scored_p, scored_l = scored_p[order], scored_l[order]
            at, head_N, own_N = np.unique(at[order], return_index=True, return_inverse=True)
        start_pair, extra = (0, 0) if clean_PS is None else _pair(canvas_PS[:, :width], clean_PS, block_size_of(model))
        if cost is not None:
            cost.forwards += len(canvas_U)
            cost.tokens += len(canvas_U) * (width + extra)
            cost.head_rows += len(at)
        flat = row_P[scored_p].astype(np.int64) * length + scored_l
        ids, index_H, index_N, targets_N, places_H, weight_N = upload(
            device,
            canvas_PS[canvas_U, :width],
            at - model.logit_shift,
            flat,
            token_ids_RL.reshape(-1)[flat],
            flat[head_N],
            masks.weight_PL[part][scored_p, scored_l],
        )
        clean = None if clean_PS is None else torch.from_numpy(clean_PS[canvas_U]).to(device)
        hidden_USH = encode(model, ids, lengths_R[row_P[canvas_U]], clean, start_pair)
        hidden_HH = hidden_USH.reshape(len(canvas_U) * width, -1).index_select(0, index_H)
        found = head_logprobs(model, hidden_HH, targets_N, law, (places_H, length), own_N, entropies)
        logprob_N, *entropy_N = found.unbind(-1)
        total = total.index_add(0, index_N, weight_N * logprob_N)
        if entropy_N:
            entropy = entropy.index_add(0, index_N, entropy_N[0] if entropies == "gradient" else entropy_N[0].detach())
            passes_of = passes_of.index_add(0, index_N, torch.ones_like(weight_N))
    if entropies == "none":
        return total.view(rows, length), None
    return total.view(rows, length), mean_entropy(entropy, passes_of).view(rows, length)


def mean_entropy(total: Tensor, passes: Tensor) -> Tensor:
    """Return sums of entropies over their number of passes; NaN where there is none."""
    return torch.where(passes > 0, total / passes.clamp(min=1.0), torch.nan)


def _canvases(completions: Rollout, pad_token_id: int) -> NDArray[np.int64]:
    """Return clean canvases [R, S]: prompt, completion, padding on the right."""
    prompt_ids_RP, token_ids_RL = completions.prompt_ids, completions.token_ids
    (rows, length), width = token_ids_RL.shape, prompt_ids_RP.shape[1]
    canvas_RS = np.full((rows, width + length), pad_token_id, dtype=np.int64)
    inside_RP = np.arange(width) < completions.prompt_length[:, None]
    canvas_RS[:, :width] = np.where(inside_RP, prompt_ids_RP, pad_token_id)
    at_RL = completions.prompt_length[:, None] + np.arange(length)
    np.put_along_axis(canvas_RS, at_RL, token_ids_RL, axis=1)
    return canvas_RS


def _corrupt(
    canvas_PS: NDArray[np.int64], mask_PL: NDArray[np.uint8], prompt_P: NDArray[np.int32], mask_token_id: int
) -> NDArray[np.int64]:
    passes, positions = np.nonzero(mask_PL)
    canvas_PS[passes, prompt_P[passes] + positions] = mask_token_id
    return canvas_PS


def _pair(canvas_PS: NDArray[np.int64], clean_PS: NDArray[np.int64], size: int) -> tuple[int, int]:
    """Return where the first block starts in which canvases differ, and the tokens that the clean half adds to each."""
    differs_S = (canvas_PS != clean_PS).any(0)
    start = int(differs_S.argmax()) // size * size if differs_S.any() else 0
    return start, (len(differs_S) - 1) // size * size - start


def distinct_canvases(
    canvas_PS: NDArray[np.int64], lengths_P: NDArray[np.int32], clean_PS: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (the first pass [U] of every distinct canvas, the place in that list of each pass's canvas [P]).

    Where more than half are distinct every pass keeps its own: the gathering would cost about what it spares.
    """
    seen: dict[tuple[bytes, int], int] = {}
    canvas_PS = canvas_PS if clean_PS is None else np.hstack([canvas_PS, clean_PS])  # what a canvas is seen with
    own_P = [seen.setdefault((row.tobytes(), int(n)), len(seen)) for row, n in zip(canvas_PS, lengths_P, strict=True)]
    if 2 * len(seen) > len(own_P):
        return np.arange(len(own_P)), np.arange(len(own_P))
    return np.unique(own_P, return_index=True)[1], np.array(own_P, dtype=np.int64)
