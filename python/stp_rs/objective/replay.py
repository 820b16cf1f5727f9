"""Replay: any intermediate state of a stored trajectory, and its log-likelihood recomputed from these states.

Shapes: R rows, L completion length, P passes (row, step), S canvas width, N revealed positions, V vocabulary.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs.models.base import DiffusionModel, device_of, encode, head_rows, passes_without_dropout
from stp_rs.objective.masks import Completions
from stp_rs.rollout.logits import law_logprobs
from stp_rs.rollout.params import Sampling, allowed_rows, check_allowed

_EOS = 5
"""`stop_reason` of a row that ended at its end-of-text token."""


class Trajectories(Completions, Protocol):
    """Rows with all that a rollout records: a `Rollout`, or a `Minibatch` of the buffer."""

    @property
    def logprob(self) -> NDArray[np.float32]:
        """[R, L] recorded log-probs."""
        ...

    @property
    def stop_reason(self) -> NDArray[np.uint8]:
        """[R]."""
        ...


def state_at(trajectories: Completions, step: int, mask_token_id: int) -> NDArray[np.int64]:
    """Return the completions i64 [R, L] as they stood before denoising step `step`: the input of that forward.

    A row that ended earlier is shown as it ended. `TrajectoryBuffer.replay` is the same for rows of a buffer, each at a
    step of its own, into an array of yours.
    """
    return np.where(trajectories.unmask_step >= step, mask_token_id, trajectories.token_ids)


@torch.no_grad()
def replay_logprobs(
    model: DiffusionModel,
    trajectories: Trajectories,
    sampling: Sampling | None = None,
    *,
    forward_batch_size: int = 64,
) -> NDArray[np.float32]:
    """Return the log-prob f32 [R, L] of every drawn token at the state that it was drawn from; 0 where none was drawn.

    With the policy and the law of the rollout this is its `logprob` again, and the row sum is the trajectory's
    log-likelihood where the rollout is `exact`. One forward per row and step.

    Args:
        model: the policy.
        trajectories: R rows.
        sampling: the law that is scored: temperature (0 counts as 1), top-k, top-p, allowed tokens.
        forward_batch_size: canvases per forward.
    """
    device = device_of(model)
    law = check_allowed(sampling or Sampling(), model.mask_token_id, device)
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
            flat_N = pass_N * ids_PS.shape[1] + trajectories.prompt_length[row_N] + place_N - model.logit_shift
            for first in range(0, len(flat_N), head_rows(model)):
                part = slice(first, first + head_rows(model))
                hidden_NH = hidden_PSH.flatten(0, 1)[torch.from_numpy(flat_N[part]).to(device)]
                cells_N = torch.from_numpy(row_N[part] * step_RL.shape[1] + place_N[part]).to(device)
                allowed = allowed_rows(law, cells_N, step_RL.shape[1])
                logprob_NV = law_logprobs(model.head(hidden_NH), law, model.mask_token_id, allowed)
                drawn_N1 = torch.from_numpy(token_ids_RL[row_N[part], place_N[part]]).to(device)[:, None]
                out_RL[row_N[part], place_N[part]] = logprob_NV.gather(-1, drawn_N1).squeeze(-1).cpu().numpy()
    # the tail behind an end-of-text token was filled, not drawn
    filled_RL = (trajectories.stop_reason == _EOS)[:, None] & (trajectories.logprob == 0)
    return np.where(filled_RL, np.float32(0), out_RL)


def _canvases(
    trajectories: Completions, row_P: NDArray[np.int64], step_P: NDArray[np.int64], model: DiffusionModel
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return canvases [P, S] and their lengths [P]."""
    step_PL, prompt_P = trajectories.unmask_step[row_P], trajectories.prompt_length[row_P]
    lengths_P = (prompt_P + (step_PL > -2).sum(1)).astype(np.int32)
    shown_PL = np.where(step_PL >= step_P[:, None], model.mask_token_id, trajectories.token_ids[row_P])
    prompt_PS = np.pad(trajectories.prompt_ids[row_P], ((0, 0), (0, step_PL.shape[1])))
    columns = np.arange(prompt_PS.shape[1])
    np.put_along_axis(prompt_PS, prompt_P[:, None] + np.arange(step_PL.shape[1]), shown_PL, axis=1)
    canvas_PS = np.where(columns < lengths_P[:, None], prompt_PS, model.pad_token_id)
    return np.ascontiguousarray(canvas_PS[:, : int(lengths_P.max())]), lengths_P
