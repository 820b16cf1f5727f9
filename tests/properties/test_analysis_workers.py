"""Masks are keyed: the same on one and four workers, in any batch order, after a resume; global generators stay put."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_callback import PrinterCallback

from stp_rs import Design, STPConfig, STPTrainer, draw_masks
from stp_rs.data.trajectories import Rollout
from stp_rs.objective.masks import Masks
from stp_rs.objective.noise import Estimator, gradient_noise
from stp_rs.train import estimates
from tests.fixtures import record, tiny, tokenizer

NAMES = [
    "bernoulli",
    "uniform_count",
    "coupled",
    "cover",
    "spread",
    "sink",
    "ordered",
    "trajectory",
    "block_random",
    "unigrpo",
]
ROWS, LENGTH = 12, 8


def batch() -> Rollout:
    generator = np.random.default_rng(0)
    steps = np.stack([generator.permutation(LENGTH) for _ in range(ROWS)]).astype(np.int32)
    steps[::3, :2] = -1
    for row in steps:
        row[row >= 0] = np.argsort(np.argsort(row[row >= 0]))
    return record(
        prompt_ids=generator.integers(4, 10, (ROWS, 2)),
        prompt_length=np.full(ROWS, 2, np.int32),
        token_ids=generator.integers(4, 10, (ROWS, LENGTH)),
        unmask_step=np.minimum(steps, 5),
        uid=np.arange(100, 100 + ROWS, dtype=np.uint64),
    )


def drawn(name: str, rows: Rollout) -> dict[int, tuple[bytes, bytes]]:
    """Return every row's masks and weights as bytes, by uid."""
    masks = draw_masks(Design(name, 2, block_length=3), rows, seed=7, iteration=0)
    at = {int(uid): masks.row_P == row for row, uid in enumerate(rows.uid)}
    return {uid: (masks.mask_PL[of].tobytes(), masks.weight_PL[of].tobytes()) for uid, of in at.items()}


@settings(max_examples=30)
@given(name=st.sampled_from(NAMES), order=st.permutations(range(ROWS)), cuts=st.sets(st.integers(1, ROWS - 1)))
def test_a_row_has_its_masks_in_any_batch_and_order(name, order, cuts):
    whole, found = drawn(name, batch()), {}
    for part in np.split(np.array(order), sorted(cuts)):
        found |= drawn(name, batch().select(part))
    assert found == whole


@pytest.mark.parametrize("name", NAMES)
def test_four_threads_draw_what_one_draws(name):
    parts = [batch().select(part) for part in np.array_split(np.arange(ROWS), 4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = {
                uid: masks for part in pool.map(lambda rows: drawn(name, rows), parts) for uid, masks in part.items()
            }
            assert found == drawn(name, batch())


def test_four_processes_draw_what_one_draws():
    program = (
        "import sys, numpy as np\n"
        "from tests.properties.test_analysis_workers import NAMES, batch, drawn, ROWS\n"
        "part = np.array_split(np.arange(ROWS), 4)[int(sys.argv[1])]\n"
        "print(sorted((name, uid, m.hex(), w.hex()) for name in NAMES\n"
        "             for uid, (m, w) in drawn(name, batch().select(part)).items()))\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(worker)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for worker in range(4)
    ]
    lines = [worker.communicate(timeout=800)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers)
    found = sorted(entry for line in lines for entry in eval(line))
    want = sorted((name, uid, m.hex(), w.hex()) for name in NAMES for uid, (m, w) in drawn(name, batch()).items())
    assert found == want


def reward(completions: list[str], **columns: object) -> list[float]:
    return [float(text.count("1")) for text in completions]


def train(
    folder: Path, steps: int, seen: list[Masks], monkeypatch: pytest.MonkeyPatch, **options: object
) -> STPTrainer:
    """Train for some steps of a run of four, and note every mask that the likelihood was given."""
    config = STPConfig(
        output_dir=str(folder),
        max_completion_length=6,
        stp_rollouts=4,
        num_generations=4,
        per_device_train_batch_size=8,
        lr_scheduler_type="constant",
        **options,
    )

    def noted(*args: object, **kwargs: object) -> Masks:
        seen.append(draw_masks(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(estimates, "draw_masks", noted)
    policy = tiny().module
    run = STPTrainer(policy, reward, config, [{"prompt": d} for d in "0123"], processing_class=tokenizer())
    run.remove_callback(PrinterCallback)
    run.prepare(run.find_checkpoint("auto"))
    for _ in range(steps):
        run.train_step()
    return run


def as_bytes(masks: list[Masks]) -> list[list[bytes]]:
    columns = [field.name for field in fields(Masks) if field.name != "prompt_PW"]
    return [[getattr(drawn, name).tobytes() for name in columns] for drawn in masks]


def test_a_resumed_run_draws_the_masks_of_an_unbroken_one(tmp_path, monkeypatch):
    unbroken, first, second = [], [], []
    train(tmp_path / "whole", 4, unbroken, monkeypatch)
    train(tmp_path / "cut", 2, first, monkeypatch).save()
    resumed = train(tmp_path / "cut", 2, second, monkeypatch)
    assert resumed.rollouts == 4
    assert len(unbroken) >= 4
    assert as_bytes(first) + as_bytes(second) == as_bytes(unbroken)


def global_states() -> tuple[object, ...]:
    numpy_state = np.random.get_state()
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_no_global_generator_is_touched(name):
    before, policy = global_states(), tiny(dropout=0.3)
    gradient_noise(policy, batch(), Estimator(Design(name, 2, block_length=3), seed=1), draws=2)
    assert global_states() == before
    assert all(parameter.grad is None for parameter in policy.module.parameters())
    assert policy.module.training, "the mode it came in"


def test_watching_the_noise_changes_no_bit_of_training(tmp_path, monkeypatch):
    before, parameters, metrics = global_states(), [], []
    for every in (None, 2):
        run = train(tmp_path / str(every), 0, [], monkeypatch, stp_variance_every=every)
        steps = [run.train_step() for _ in range(4)]
        parameters.append([p.detach().clone() for p in run.model.parameters()])
        metrics.append([step.metrics for step in steps])
    assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))
    assert global_states() == before
    for step, (plain, watched) in enumerate(zip(*metrics, strict=True)):
        own = {"diffusion/logp_var", "diffusion/grad_snr"}
        assert {k: v for k, v in watched.items() if k not in own and not k.endswith("_variance")} == plain
        assert own.issubset(watched) == (step % 2 == 0)
    assert metrics[1][0]["diffusion/logp_var"] > 0
