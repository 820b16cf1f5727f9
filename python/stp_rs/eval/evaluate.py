"""Evaluation as the literature does it: greedy decode at given lengths and steps, free and with priors.

Each way of decoding is a cell of the report, which is written after every cell, so that a run can be continued.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stp_rs.data.prompts import encode_prompts
from stp_rs.distributed import is_main
from stp_rs.errors import CheckpointError, ConfigError
from stp_rs.models.base import DiffusionModel, autocast, device_of
from stp_rs.priors import Prior, allowed_tokens, compose_priors, policy_hash
from stp_rs.rollout.generate import generate
from stp_rs.rollout.loop import Batching
from stp_rs.rollout.params import make_unmasking, restricted, sampling_law
from stp_rs.rollout.rewards import decode_completions
from stp_rs.rollout.shared import Played, played_together
from stp_rs.tasks.base import Row, Task
from stp_rs.train.checkpoint import write_json
from stp_rs.train.report.facts import wilson

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig


BOOTSTRAP = 1000
"""Resamples of an interval."""


@dataclass(frozen=True)
class Decode:
    """One way of decoding. Temporal pruning is always off: the reported number is the plain sampler's."""

    length: int
    """Completion tokens."""
    steps: int
    """Denoising steps; d1 and its descendants use length / 2."""
    block_length: int = 0
    """Tokens per block; 0 means one block (the literature: 32)."""
    temperature: float = 0.0
    """0 is greedy."""
    samples: int = 1
    """Completions per problem; pass@k for k up to it."""
    few_shot: int = 0
    """Training demonstrations before each prompt."""
    prefill: str = ""
    """Text that every completion starts with; it is given, not decoded."""
    seed: int = 0


def default_decode(config: "STPConfig") -> Decode:
    """Return the greedy decode of a run's own length and steps."""
    steps = make_unmasking(config, prune=False).diffusion_steps
    return Decode(config.max_completion_length, steps, config.block_length or 0)


def evaluate(
    model: DiffusionModel,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Row],
    config: "STPConfig",
    *,
    priors: Sequence[Prior] = (),
    decode: Decode | None = None,
) -> dict[str, Any]:
    """Return mean scores, `solved_ci` (95 % over problems, see `interval`), `pass@k`, `nfe`, `completions`.

    The passes are made in bf16 where the run's are (`config.bf16`), by the policy's own weights and all of them: the
    rollouts' precision and cache are not used. Samples are drawn with the run's top_k, top_p and min_p.
    `forwards`, `tokens` and `head_rows` are the decode's cost. Without `priors` it is the free decode;
    without `decode` the run's own length and steps, greedy.
    """
    decode = decode or default_decode(config)
    if decode.samples > 1 and decode.temperature == 0.0:
        raise ConfigError(f"samples: got {decode.samples} at temperature 0, needs a temperature above 0 or one sample")
    shown = [_shown(row, task, decode) for row in rows]
    template = config.chat_template_kwargs
    prompts = encode_prompts(shown, tokenizer, uids=range(len(rows)), chat_template_kwargs=template)
    if decode.samples > 1:
        prompts = prompts.repeat(decode.samples)
    allowed, prior = allowed_tokens(priors, prompts, decode.length), compose_priors(priors, prompts, decode.length)

    law = replace(sampling_law(config), temperature=decode.temperature)

    def play(rows_of: NDArray[np.int64]) -> Played:
        return Played(
            generate(
                model,
                prompts.select(rows_of.tolist()),
                make_unmasking(with_decode(config, decode), prune=False),
                completion_length=decode.length,
                sampling=replace(law, allowed=restricted(allowed, rows_of)),
                prior=prior.select(rows_of.tolist()),
                seed=decode.seed,
                slots=config.stp_slots,
                batching=Batching(config.stp_max_tokens or 0),
            )
        )

    with autocast(device_of(model), config.bf16):
        rollout = played_together(model, prompts, prior, decode.length, play).rollout
    texts = decode_completions(rollout.token_ids, np.full(len(rollout), decode.length), tokenizer)
    texts = [decode.prefill + text for text in texts]
    repeated = [row for row in rows for _ in range(decode.samples)]
    scores = {name: np.array(values, dtype=np.float64) for name, values in task.score(texts, repeated).items()}
    solved = scores["solved"].reshape(len(rows), decode.samples)
    result: dict[str, Any] = {name: float(values.mean()) for name, values in scores.items()}
    result["solved_ci"] = interval(solved.mean(1))
    if decode.samples > 1:
        right = solved.sum(1).astype(int)
        powers = [2**i for i in range(decode.samples.bit_length()) if 2**i <= decode.samples]
        result.update({f"pass@{k}": float(np.mean([pass_at_k(decode.samples, c, k) for c in right])) for k in powers})
    return {
        **result,
        "nfe": float(rollout.nfe.mean()),
        **asdict(rollout.cost),
        "completions": texts[:: decode.samples],
    }


def with_decode(config: "STPConfig", decode: Decode) -> "STPConfig":
    """Return the configuration with a decode's length, steps and blocks."""
    return replace(
        config,
        max_completion_length=decode.length,
        diffusion_steps=decode.steps,
        block_length=decode.block_length or None,
    )


def pass_at_k(n: int, right: int, k: int) -> float:
    """Return the unbiased estimate of pass@k from n samples of which `right` are right (arXiv 2107.03374, eq. 1)."""
    if n - right < k:
        return 1.0
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def interval(solved: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """Return the 95 % interval of the share solved: bootstrap, or Wilson's where all problems have score 0, or 1.

    Resamples of scores that are all equal are equal too, and would say that the share is known exactly.
    """
    share = float(solved.mean())
    if share not in (0.0, 1.0):
        return bootstrap_interval(solved)
    low, high = wilson(share, len(solved))
    return [max(0.0, low), min(1.0, high)]


def bootstrap_interval(values: np.ndarray[Any, np.dtype[np.float64]], *, seed: int = 0) -> list[float]:
    """Return the 95 % percentile interval of the mean over problems; its generator is its own."""
    picks = np.random.default_rng(seed).integers(0, len(values), size=(BOOTSTRAP, len(values)))
    return [float(x) for x in np.quantile(values[picks].mean(1), [0.025, 0.975])]


def evaluate_cells(
    model: DiffusionModel,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Row],
    config: "STPConfig",
    cells: Sequence[tuple[str, Sequence[Prior], Decode]],
    path: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield one result per cell (its name, priors and decode), in order.

    With `path` the report is written there after every cell, and cells that the file already holds for the same policy,
    problems and law are read, not computed; the table of another evaluation is replaced.

    Raises:
        CheckpointError: the file is there, and no table of an evaluation.
    """
    problems = hashlib.sha256(json.dumps([row["prompt"] for row in rows]).encode()).hexdigest()[:16]
    identity = {"policy": policy_hash(model), "task": task.name, "problems": problems, "law": _law_of(config)}
    done: list[dict[str, Any]] = []
    if path is not None and path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            stored = None
        if not isinstance(stored, dict) or not {"identity", "cells"} <= stored.keys():
            raise CheckpointError(f"{path}: is no table of an evaluation and would be overwritten; give another file")
        same = stored["identity"] == identity
        done = [cell for cell in stored["cells"] if isinstance(cell, dict)] if same else []
    finished: list[dict[str, Any]] = []
    for name, priors, decode in cells:
        key = {"decode": name, "priors": [type(prior).__name__ for prior in priors], **asdict(decode)}
        cell = next((c for c in done if c.items() >= key.items()), None)
        if cell is None:
            scores = evaluate(model, tokenizer, task, rows, config, priors=priors, decode=decode)
            cell = {**key, "n": len(rows), **{k: v for k, v in scores.items() if k != "completions"}}
        finished.append(cell)
        if path is not None and is_main():
            write_json(path, {"identity": identity, "cells": finished})
        yield cell


def _law_of(config: "STPConfig") -> dict[str, Any]:
    """Return what of a configuration a decode depends on beside its own length, steps and blocks."""
    law = ("stp_confidence", "stp_selection", "stp_quota", "stp_eos", "top_k", "top_p", "min_p", "bf16")
    names = (*law, "chat_template_kwargs", "stp_spatial", "stp_length")
    return {name: getattr(config, name) for name in names}


def _shown(row: Row, task: Task, decode: Decode) -> Row:
    """Return the row with demonstrations before its prompt and the prefill after it."""
    if not (decode.few_shot or decode.prefill):
        return row
    examples = task.demonstrations(decode.few_shot, decode.seed) if decode.few_shot else []
    if isinstance(row["prompt"], list):
        turns = [[*example["prompt"], {"role": "assistant", "content": example["completion"]}] for example in examples]
        messages = [message for turn in turns for message in turn] + row["prompt"]
        if decode.prefill:
            raise ConfigError("prefill: chat prompts end with the assistant's turn; put the text into the template")
        return {**row, "prompt": messages}
    before = "".join(f"{example['prompt']}{example['completion']}\n" for example in examples)
    return {**row, "prompt": before + row["prompt"] + decode.prefill}
