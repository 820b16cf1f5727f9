"""Replay: any intermediate state of a stored trajectory, and its log-likelihood recomputed from these states.

Shapes: R rows, L completion length, P passes (row, step), S canvas width, N revealed positions, V vocabulary.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs.data.trajectories import Rollout
from stp_rs.models.base import DiffusionModel, device_of, encode, head_rows, passes_without_dropout
from stp_rs.objective.masks import canvas_lengths
from stp_rs.rollout.logits import law_logprobs
from stp_rs.rollout.params import SamplingParams, allowed_rows, check_allowed
from stp_rs.types import Cost, Mark, Metrics


def state_at(trajectories: Rollout, step: int, mask_token_id: int) -> NDArray[np.int64]:
    """Return the completions i64 [R, L] as they stood before denoising step `step`: the input of that forward.

    A row that ended earlier is shown as it ended.
    """
    last_R1 = trajectories.unmask_step.max(1, initial=-1, keepdims=True)
    return np.where(_hidden(trajectories.unmask_step, step, last_R1), mask_token_id, trajectories.token_ids)


def _hidden(step_RL: NDArray[np.int32], before: Any, last: Any) -> NDArray[np.bool_]:
    """Return which positions show the mask before a step: those revealed later, and until the end those undrawn."""
    hidden: NDArray[np.bool_] = (step_RL >= before) | ((step_RL == Mark.UNDRAWN) & (last >= before))
    return hidden


@torch.no_grad()
def replay_logprobs(
    model: DiffusionModel,
    trajectories: Rollout,
    sampling: SamplingParams | None = None,
    *,
    forward_batch_size: int = 64,
    cost: Cost | None = None,
) -> NDArray[np.float32]:
    """Return the log-prob f32 [R, L] of every drawn token at the state that it was drawn from; 0 where none was drawn.

    With the policy and the law of the rollout this is its `logprob` again, and the row sum is the trajectory's
    log-likelihood where the rollout is `exact`. One forward per row and step.

    Args:
        model: the policy.
        trajectories: R rows.
        sampling: the law that is scored: temperature (0 counts as 1), top-k, top-p, allowed tokens.
        forward_batch_size: canvases per forward.
        cost: what is computed is added to it.
    """
    device = device_of(model)
    law = check_allowed(sampling or SamplingParams(), model.mask_token_id, device)
    step_RL, token_ids_RL = trajectories.unmask_step, trajectories.token_ids
    nfe_R = step_RL.max(1, initial=-1) + 1
    row_P = np.repeat(np.arange(len(nfe_R)), nfe_R)
    step_P = np.arange(len(row_P)) - np.repeat(nfe_R.cumsum() - nfe_R, nfe_R)
    out_RL = np.zeros(step_RL.shape, dtype=np.float32)
    with passes_without_dropout(model.module):
        for start in range(0, len(row_P), forward_batch_size):
            row, step = row_P[start : start + forward_batch_size], step_P[start : start + forward_batch_size]
            ids_PS, lengths_P = _canvases(trajectories, row, step, model)
            hidden_PSH = encode(model, torch.from_numpy(ids_PS).to(device), lengths_P)
            pass_N, place_N = np.nonzero(step_RL[row] == step[:, None])
            row_N = row[pass_N]
            if cost is not None:
                cost.forwards, cost.tokens = cost.forwards + len(ids_PS), cost.tokens + ids_PS.size
                cost.head_rows += len(pass_N)
            flat_N = pass_N * ids_PS.shape[1] + trajectories.prompt_length[row_N] + place_N - model.logit_shift
            for first in range(0, len(flat_N), head_rows(model)):
                part = slice(first, first + head_rows(model))
                hidden_NH = hidden_PSH.flatten(0, 1)[torch.from_numpy(flat_N[part]).to(device)]
                cells_N = torch.from_numpy(row_N[part] * step_RL.shape[1] + place_N[part]).to(device)
                allowed = allowed_rows(law, cells_N, step_RL.shape[1])
                logprob_NV = law_logprobs(model.head(hidden_NH), law, model.mask_token_id, allowed)
                drawn_N1 = torch.from_numpy(token_ids_RL[row_N[part], place_N[part]]).to(device)[:, None]
                out_RL[row_N[part], place_N[part]] = logprob_NV.gather(-1, drawn_N1).squeeze(-1).cpu().numpy()
    return out_RL


def importance_weights(
    policy_RL: NDArray[np.float32], trajectories: Rollout, cap: float
) -> tuple[NDArray[np.float32], Metrics]:
    """Return the importance weight f32 [R] of each trajectory, at most `cap`, and TRL's metrics of sampling.

    The weight is the policy's probability of the drawn tokens over the recorded one, that of the law that drew them.

    Args:
        policy_RL: the policy's log-probs, from `replay_logprobs`.
        trajectories: R rows.
        cap: bounds the weights (truncated importance sampling).
    """
    drawn_RL = trajectories.unmask_step >= 0
    gap_RL = np.where(drawn_RL, policy_RL - trajectories.logprob, np.float32(0.0))
    weight_R = np.exp(np.minimum(gap_RL.sum(1, dtype=np.float64), np.log(max(cap, 1e-30)))).astype(np.float32)
    gap_N = np.abs(gap_RL[drawn_RL]) if drawn_RL.any() else np.zeros(1, dtype=np.float32)
    return weight_R, {
        "sampling/sampling_logp_difference/mean": float(gap_N.mean()),
        "sampling/sampling_logp_difference/max": float(gap_N.max()),
        "sampling/importance_sampling_ratio/min": float(weight_R.min()),
        "sampling/importance_sampling_ratio/mean": float(weight_R.mean()),
        "sampling/importance_sampling_ratio/max": float(weight_R.max()),
    }


def _canvases(
    trajectories: Rollout, row_P: NDArray[np.int64], step_P: NDArray[np.int64], model: DiffusionModel
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return canvases [P, S] and their lengths [P]."""
    step_PL, prompt_P = trajectories.unmask_step[row_P], trajectories.prompt_length[row_P]
    lengths_P = prompt_P + canvas_lengths(step_PL)
    hidden_PL = _hidden(step_PL, step_P[:, None], step_P[:, None])
    shown_PL = np.where(hidden_PL, model.mask_token_id, trajectories.token_ids[row_P])
    prompt_PS = np.pad(trajectories.prompt_ids[row_P], ((0, 0), (0, step_PL.shape[1])))
    columns = np.arange(prompt_PS.shape[1])
    np.put_along_axis(prompt_PS, prompt_P[:, None] + np.arange(step_PL.shape[1]), shown_PL, axis=1)
    canvas_PS = np.where(columns < lengths_P[:, None], prompt_PS, model.pad_token_id)
    return np.ascontiguousarray(canvas_PS[:, : int(lengths_P.max())]), lengths_P
