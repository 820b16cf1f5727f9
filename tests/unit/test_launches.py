"""What a step of a rollout asks of a device besides the model: few operations, and one wait for the host."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import stp_rs
from stp_rs.rollout.loop import Cohort
from tests.fixtures import LENGTH, ROWS, Tabular, tokenizer

VIEWS = {"view", "slice", "select", "unbind", "expand", "unsqueeze", "squeeze", "detach", "alias", "t", "_unsafe_view"}
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal"}
"""Operations whose result the host reads before it goes on."""


class Operations(TorchDispatchMode):
    """Counts the operations that a device would be asked for: each is at least one launch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Given(Tabular):
    """A policy whose logits are made before: what is counted is the loop's."""

    def __init__(self) -> None:
        super().__init__(vocab=10, width=32, seed=0)
        self.states = torch.randn(64, 1 + LENGTH, 10, generator=torch.Generator().manual_seed(0))

    def hidden(self, ids_BS: torch.Tensor, _lengths_B: torch.Tensor | None) -> torch.Tensor:
        return self.states[: len(ids_BS)]


def step_of(unmasking: stp_rs.Unmasking, law: stp_rs.SamplingParams, rows: int) -> Counter[str]:
    """Return the operations of the second step of a rollout."""
    model = Given()
    prompts = stp_rs.encode_prompts(ROWS[:1], tokenizer(), uids=[0]).repeat(rows, step=0)
    scheduler = stp_rs._core.RolloutScheduler(mask_token_id=1, pad_token_id=0, slots=64, seed=0)
    lengths = np.full(rows, LENGTH, dtype=np.int32)
    scheduler.submit(prompts.uid, prompts.prompt_ids, prompts.prompt_length, lengths, unmasking)
    cohort = Cohort(model, scheduler, law, rows, LENGTH)
    with torch.no_grad():
        assert cohort.launch()
        cohort.finish()
        with Operations() as seen:
            assert cohort.launch()
            cohort.finish()
    return seen.found


@pytest.mark.parametrize(
    ("unmasking", "law", "most"),
    [
        ({}, stp_rs.GREEDY, 12),
        ({}, stp_rs.SamplingParams(), 19),
        ({}, stp_rs.SamplingParams(0.7), 26),
        ({"confidence": "margin"}, stp_rs.SamplingParams(), 27),
        ({"confidence": "entropy"}, stp_rs.SamplingParams(), 25),
    ],
    ids=["greedy", "sampled", "tempered", "margin", "entropy"],
)
def test_a_step_asks_for_few_operations_and_waits_for_none(
    unmasking: dict[str, Any], law: stp_rs.SamplingParams, most: int
):
    counts = [step_of(stp_rs.Unmasking(LENGTH, **unmasking), law, rows) for rows in (1, 48)]
    assert counts[0] == counts[1], "none is per row"
    assert not WAITS & counts[0].keys(), "the host reads the packed numbers, once"
    assert sum(counts[0].values()) <= most, (sum(counts[0].values()), counts[0])
