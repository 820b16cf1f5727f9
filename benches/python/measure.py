"""What the benches share: the clock, the lines of the table, prompts, and a model that costs nothing."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import stp_rs
from stp_rs import _core
from stp_rs.data.prompts import PromptBatch

MASK, PAD, BLOCK, PER_STEP = 1, 0, 32, 2
Row = dict[str, Any]
Timed = Callable[[], Callable[[], object]]
"""Sets a measurement up, untimed, and returns what is timed."""


class NearFree:
    """A model that costs nothing: its logits lie ready, so that what is timed is the sampler."""

    mask_token_id, pad_token_id, eos_token_id, logit_shift, respects_padding = MASK, PAD, 2, 0, True

    def __init__(self, rows: int, width: int, vocab: int) -> None:
        draw = torch.Generator().manual_seed(0)
        # one block of noise, repeated: large vocabularies are slow to draw
        block = math.gcd(width, 32)
        self.logits_BSV = (torch.randn((1, block, vocab), generator=draw) * 3).repeat(rows, width // block, 1)
        self.logits_BSV[..., MASK] = -100.0
        self.module = torch.nn.Linear(1, 1)
        self._hidden = torch.zeros(rows, width, 1)

    def hidden(self, ids_BS: torch.Tensor, _lengths: torch.Tensor | None) -> torch.Tensor:
        return self._hidden[: ids_BS.shape[0], : ids_BS.shape[1]]

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return self.logits_BSV.view(-1, self.logits_BSV.shape[-1])[: len(hidden_NH)]


clock = time.thread_time
"""CPU time of this thread: what runs beside it on the machine does not count but for the caches that it takes."""


def best(contestants: dict[str, Timed], rounds: int) -> dict[str, float]:
    """Return the best time of each in microseconds; every round times each once, so that noise hits all alike."""
    found = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds + 1):  # the first one warms up
        for name, set_up in contestants.items():
            work = set_up()
            start = clock()
            work()
            found[name] = min(found[name], (clock() - start) * 1e6)
    return found


def prompts(rows: int, length: int) -> PromptBatch:
    at = np.arange(rows)
    ids = np.full((rows, length), 5, dtype=np.int64)
    return PromptBatch([{}] * rows, ids, np.full(rows, length, np.int32), at.astype(np.uint64), at)


def submitted(unmasking: stp_rs.Unmasking, rows: int, prompt: int, length: int) -> _core.RolloutScheduler:
    scheduler = _core.RolloutScheduler(mask_token_id=MASK, pad_token_id=PAD, slots=rows, seed=1, share_first=False)
    batch = prompts(rows, prompt)
    lengths = np.full(rows, length, dtype=np.int32)
    scheduler.submit(batch.uid, batch.prompt_ids, batch.prompt_length, lengths, unmasking)
    return scheduler


def line(name: str, shape: str, ours: float, baseline: str | None = None, theirs: float | None = None,
         *, target: float | None = None, limit: float | None = None) -> Row:  # fmt: skip
    ratio = None if theirs is None else theirs / ours
    found = {"name": name, "shape": shape, "ours_us": ours, "baseline": baseline, "baseline_us": theirs}
    found |= {"ratio": ratio, "target_ratio": target, "limit_us": limit}
    print(f"{name:28} {shape:52} {ours:12.1f} us  {baseline or '':20} "
          f"{'' if ratio is None else f'{ratio:7.1f}x'} {'' if target is None else f'(target {target:g}x)'}"
          f"{'' if limit is None else f'(limit {limit:g} us)'}", flush=True)  # fmt: skip
    return found
