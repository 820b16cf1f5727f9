"""Supervised warm-up: maximises the masked-diffusion ELBO of demonstrations, with the masks and likelihood of RL."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs._core import Design, row_uid
from stp_rs.data.prompts import batch_indices, encode_prompts, end_of_text_id
from stp_rs.data.trajectories import Rollout
from stp_rs.distributed import broadcast, gather, own_rows, sum_gradients
from stp_rs.errors import DivergenceError, InvalidValueError
from stp_rs.models.base import DiffusionModel, autocast, check_ids, device_of, passes_without_dropout
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import draw_masks
from stp_rs.train.memory import Trimmer

_STREAM = 0x5F7
"""Separates the warm-up's masks from those of RL."""


def warm_up(  # noqa: PLR0913 - options of a run, all by keyword
    model: DiffusionModel,
    tokenizer: Any,
    demonstrations: Sequence[Mapping[str, Any]],
    *,
    completion_length: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    bf16: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> float:
    """Train on `prompt` and `completion` columns; return the last loss (nats per token).

    Loss: minus the full ELBO per token (uniform_count, one mask per row; LLaDA, arXiv 2502.09992, eq. 3). The learning
    rate stays for half the steps, then falls linearly to 0. `bf16` autocasts the passes, as in RL; the weights stay as
    they are.
    """
    if not demonstrations:
        raise InvalidValueError("demonstrations: got none, needs at least one")
    prompts = encode_prompts(demonstrations, tokenizer, uids=range(len(demonstrations)))
    targets_DL = encode_completions([str(d["completion"]) for d in demonstrations], tokenizer, completion_length)
    for ids in (prompts.prompt_ids, targets_DL):
        check_ids(model, ids)
    # one position per step: the plan of the full ELBO
    order_RL = np.tile(np.arange(completion_length, dtype=np.int32), (batch_size, 1))
    design = Design("uniform_count", 1)
    broadcast([*model.module.parameters(), *model.module.buffers()])
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=learning_rate, weight_decay=0.0)
    value, trim, device = 0.0, Trimmer(), device_of(model)
    with passes_without_dropout(model.module):
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * min(1.0, 2.0 * (1 - step / steps))
            picked = batch_indices(step, batch_size, len(demonstrations), seed)
            uids = np.array([row_uid(_STREAM, step, i) for i in range(batch_size)], dtype=np.uint64)
            batch = Rollout.of(prompts.select(picked, uids), targets_DL[picked], order_RL)
            optimizer.zero_grad(set_to_none=True)

            def own(batch: Rollout = batch) -> float:
                mine = batch.select(own_rows(np.arange(batch_size)))
                if not len(mine):
                    return 0.0
                with autocast(device, bf16):
                    elbo_RL = token_elbo(model, mine, draw_masks(design, mine, seed=seed))
                loss = -elbo_RL.sum(-1).sum() / (batch_size * completion_length)
                loss.backward()
                return float(loss.detach())

            value = sum(gather(own))
            sum_gradients(model.module.parameters())
            torch.nn.utils.clip_grad_norm_(model.module.parameters(), 1.0)
            if not np.isfinite(value):
                raise DivergenceError(
                    f"SFT step {step}: the loss is {value}; lower sft_learning_rate ({learning_rate})"
                )
            optimizer.step()
            trim()
            if on_step is not None:
                on_step(step, value)
    return value


def encode_completions(texts: Sequence[str], tokenizer: Any, length: int) -> NDArray[np.int64]:
    """Return completions as ids i64 [R, L], end-of-text up to the canvas length.

    Raises:
        InvalidValueError: a completion longer than the canvas.
    """
    out = np.full((len(texts), length), end_of_text_id(tokenizer), dtype=np.int64)
    for row, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > length:
            raise InvalidValueError(
                f"completion {row} has {len(ids)} tokens, the canvas {length}; raise max_completion_length"
            )
        out[row, : len(ids)] = ids
    return out
