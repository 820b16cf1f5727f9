"""A golden run: twenty steps of a fixed configuration. A refactor leaves these losses as they are.

To remake the numbers after a change that is meant to move them, print `losses(folder)` and say in the commit why
they moved. They were made with torch 2.15 on x86-64, one thread, from weights that no random generator enters.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs import Template
from stp_rs.models.masked_lm import MaskedLMAdapter
from tests.fixtures import tiny, tokenizer, trainer

DEFAULT = [
    *[-0.010071, -0.002673, -0.006251, 0.000491, -0.001903, 0.000760, 0.002784, 0.004143, 0.000580, 0.006192],
    *[0.002065, 0.005833, 0.007899, 0.013502, 0.015758, 0.009595, 0.009911, 0.008572, 0.010226, 0.005781],
]
SPREAD = [
    *[-0.281641, -0.150426, -0.318244, -0.316963, -0.305346, -0.302726, -0.313214, -0.264571, -0.287579, -0.295497],
    *[-0.321365, -0.284127, -0.307568, -0.304544, -0.269821, -0.321497, -0.287735, -0.265320, -0.287355, -0.300594],
]


def policy() -> MaskedLMAdapter:
    """Return the tiny policy with weights from a formula."""
    made = tiny()
    with torch.no_grad():
        for number, parameter in enumerate(made.module.parameters()):
            wave = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * (1.7 + number / 7) + number)
            parameter.copy_(0.25 * wave.view_as(parameter) + (parameter.dim() == 1) * 0.5)
    return made


def losses(run: Path, **options: Any) -> list[float]:
    """Return the loss of every step of a preset, with a prior and a reference."""
    made = trainer(
        run,
        policy(),
        priors=[Template({-1: ""}, tokenizer())],
        pruning="stp",
        beta=0.1,
        stp_rollouts=20,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        **options,
    )
    return [made.train_step().metrics["loss"] for _ in range(20)]


@pytest.mark.parametrize(
    ("options", "golden"),
    [
        ({}, DEFAULT),
        ({"preset": "stp_spread", "stp_score_prior": True, "stp_blame_prior": True}, SPREAD),
    ],
)
def test_the_golden_run(options: dict[str, Any], golden: list[float], tmp_path: Path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        first, second = (losses(tmp_path / run, **options) for run in "ab")
    finally:
        torch.set_num_threads(threads)
    assert first == second, "bit by bit in one process"
    assert first == pytest.approx(golden, abs=1e-4)
