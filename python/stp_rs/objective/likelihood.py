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
from torch.utils.checkpoint import checkpoint

from stp_rs.models.base import HEAD_ELEMENTS, DiffusionModel, device_of, encode
from stp_rs.objective.masks import Completions, Masks
from stp_rs.rollout.logits import candidate_logits
from stp_rs.rollout.params import Sampling, allowed_rows, placed
from stp_rs.types import Cost


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
