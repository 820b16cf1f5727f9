"""Evaluation: greedy decode of held-out rows, free and with the priors that need no answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stp_rs.config import STPConfig
from stp_rs.model import DiffusionModel
from stp_rs.priors import Prior, compose_priors
from stp_rs.prompts import encode_prompts
from stp_rs.rewards import decode_completions
from stp_rs.rollout import generate
from stp_rs.sampling import GREEDY
from stp_rs.tasks.base import Row, Task
from stp_rs.trainer import make_sampler


def evaluate(
    model: DiffusionModel,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Row],
    config: STPConfig,
    *,
    priors: Sequence[Prior] = (),
) -> dict[str, Any]:
    """Return mean scores of a greedy decode, `nfe`, `forwards`, and the `completions`.

    Temporal pruning is off: the reported number is the plain sampler's. Without `priors` it is the free decode.
    """
    length = config.rollout.max_completion_length
    prompts = encode_prompts(rows, tokenizer, uids=range(len(rows)))
    rollout = generate(
        model,
        prompts,
        make_sampler(config, prune=False),
        completion_length=length,
        sampling=GREEDY,
        prior=compose_priors(priors, prompts, length),
        slots=max(config.rollout.generation_batch_size, 64),
    )
    completions = decode_completions(rollout.token_ids, np.full(len(rows), length), tokenizer)
    scores: Mapping[str, list[float]] = task.score(completions, rows)
    return {
        **{name: float(np.mean(values)) for name, values in scores.items()},
        "nfe": float(rollout.nfe.mean()),
        "forwards": rollout.stats["forwards"],
        "completions": completions,
    }
