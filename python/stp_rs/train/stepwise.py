"""Stepwise advantages (EGSPO, arXiv 2603.12554): what states of a rollout were worth, by their one-step completions.

Shapes: R rows, L completion length, P passes (a row's state each), S canvas width, N masked positions.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stp_rs.data.trajectories import Rollout
from stp_rs.errors import ConfigError
from stp_rs.models.base import DiffusionModel, block_size_of, device_of, encode, passes_without_dropout
from stp_rs.objective.advantages import group_advantages
from stp_rs.objective.masks import Masks
from stp_rs.rollout.logits import candidate_logits
from stp_rs.rollout.params import SamplingParams, allowed_rows, placed
from stp_rs.types import Cost, Mark

CANVASES = 256
"""Canvases of one forward."""


@torch.no_grad()
def one_step_completions(
    model: DiffusionModel, rollout: Rollout, masks: Masks, allowed: Tensor | None, cost: Cost
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the completions i64 [P, L] in which every masked token of a state is the most likely one.

    Beside them the log-probs f32 [P, L] of these tokens, 0 where nothing was masked.

    Args:
        model: the policy that made the rollout.
        rollout: R rows.
        masks: a pass per state.
        allowed: tokens that the rollout's law could draw, bool [V], [L, V] or [R, L, V].
        cost: what is computed is added to it.

    Raises:
        ConfigError: the model is block-causal: its states have no completion from one forward.
    """
    if block_size_of(model):
        raise ConfigError("one-step completions: got a block-causal model, whose later blocks one forward cannot fill")
    device, row_P = device_of(model), masks.row_P.astype(np.int64)
    law = SamplingParams(allowed=placed(allowed, device))
    length, prompt_R = rollout.token_ids.shape[1], rollout.prompt_length
    width = int((prompt_R + masks.length_R).max(initial=0))
    made_PL, logprob_PL = rollout.token_ids[row_P], np.zeros((len(row_P), length), dtype=np.float32)
    for start in range(0, len(row_P), CANVASES):
        part = slice(start, start + CANVASES)
        rows = row_P[part]
        canvas_PS = np.full((len(rows), max(width, 1)), model.pad_token_id, dtype=np.int64)
        for canvas_S, row, mask_L in zip(canvas_PS, rows.tolist(), masks.mask_PL[part], strict=True):
            prompt, end = int(prompt_R[row]), int(masks.length_R[row])
            canvas_S[:prompt] = rollout.prompt_ids[row, :prompt]
            shown_L = np.where(mask_L == 1, model.mask_token_id, rollout.token_ids[row])
            canvas_S[prompt : prompt + end] = shown_L[:end]
        inside_PL = np.arange(length) < masks.length_R[rows][:, None]
        pass_N, place_N = np.nonzero((masks.mask_PL[part] == 1) & inside_PL)
        at_N = pass_N * canvas_PS.shape[1] + prompt_R[rows][pass_N] + place_N - model.logit_shift
        hidden_PSH = encode(model, torch.from_numpy(canvas_PS).to(device), prompt_R[rows] + masks.length_R[rows])
        hidden_NH = hidden_PSH.flatten(0, 1).index_select(0, torch.from_numpy(at_N).to(device))
        legal = law.allowed
        if legal is not None and legal.dim() > 1:
            legal = allowed_rows(law, torch.from_numpy(rows[pass_N] * length + place_N).to(device), length)
        logits_NV = candidate_logits(model.head(hidden_NH), model.mask_token_id, legal)
        best_N, token_N = torch.log_softmax(logits_NV, -1).max(-1)
        made_PL[start + pass_N, place_N] = token_N.cpu().numpy()
        logprob_PL[start + pass_N, place_N] = best_N.cpu().numpy()
        cost.forwards += len(rows)
        cost.tokens += canvas_PS.size
        cost.head_rows += len(at_N)
    return made_PL, logprob_PL


def token_advantages(
    rollout: Rollout,
    masks: Masks,
    mass_RL: NDArray[np.float32] | None,
    reward_P: NDArray[np.float32],
    weight: float,
) -> NDArray[np.float32]:
    """Return advantages f32 [R, L] of the tokens that each state revealed, 0 elsewhere.

    With R a completion's reward and r the one-step completion's at a state, the state's return is
    `(R + weight (R - r)) / (1 + weight)`; its advantage is that minus the mean over the group of the returns at states
    of the same rank by mass, as published.

    Args:
        rollout: R rows, with their rewards.
        masks: a pass per state, its weights on the tokens that the state revealed.
        mass_RL: what the states were taken by.
        reward_P: rewards of the states' one-step completions.
        weight: lambda.
    """
    own_RL = np.ones(rollout.token_ids.shape, np.float32) if mass_RL is None else mass_RL
    mass_P = np.where(masks.weight_PL > 0, own_RL[masks.row_P], 0.0).sum(1)
    rank_P = np.zeros(len(mass_P), dtype=np.int64)
    for row in np.unique(masks.row_P):
        passes = np.flatnonzero(masks.row_P == row)
        rank_P[passes[np.argsort(-mass_P[passes], kind="stable")]] = np.arange(len(passes))
    earned_P = rollout.earned()[masks.row_P]
    return_P = (earned_P + weight * (earned_P - reward_P)) / (1.0 + weight)
    _, place_R = np.unique(rollout.group, return_inverse=True)
    group_P = place_R[masks.row_P].astype(np.int64) * (int(rank_P.max(initial=0)) + 1) + rank_P
    advantage_P, _ = group_advantages(return_P.astype(np.float32), group_P, "none")
    advantage_RL = np.zeros(rollout.token_ids.shape, dtype=np.float32)
    for k, row in enumerate(masks.row_P.tolist()):
        advantage_RL[row][masks.weight_PL[k] > 0] = advantage_P[k]
    return advantage_RL


def stepwise(
    model: DiffusionModel,
    rollout: Rollout,
    masks: Masks,
    mass_RL: NDArray[np.float32] | None,
    score: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]],
    weight: float,
    allowed: Tensor | None,
) -> tuple[Rollout, Cost]:
    """Return the rollout with stepwise advantages of its tokens, and the cost: a forward for each state.

    Args:
        model: the policy that made the rollout.
        rollout: R rows, with their rewards.
        masks: a pass per state that is scored.
        mass_RL: what the states were taken by.
        score: (completions [P, L], their rows [P]) -> rewards [P].
        weight: lambda.
        allowed: tokens that the rollout's law could draw.
    """
    cost = Cost()
    with passes_without_dropout(model.module):
        made_PL, _ = one_step_completions(model, rollout, masks, allowed, cost)
    made_PL[rollout.unmask_step[masks.row_P] == Mark.OUTSIDE] = model.pad_token_id
    reward_P = score(made_PL, masks.row_P.astype(np.int64))
    return rollout.replaced(token_advantage=token_advantages(rollout, masks, mass_RL, reward_P, weight)), cost
