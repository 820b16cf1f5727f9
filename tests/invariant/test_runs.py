"""A run is its seed: the same numbers again, after a resume, and after kill -9; nothing global moves."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs import Template
from stp_rs.errors import CheckpointError, ConfigError
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.models.reference import reference_policy
from stp_rs.train.checkpoint import newest_checkpoint
from stp_rs.train.lock import LOCK
from stp_rs.train.metrics import read_metrics
from stp_rs.train.trainer import STPTrainer
from tests.fixtures import LENGTH, ROWS, Tabular, Watch, ones, tiny, tokenizer, trainer

RICH: dict[str, Any] = {
    "stp_temporal": "steps:0.7",
    "beta": 0.05,
    **{"preset": "stp_spread", "stp_score_prior": True},
    "gradient_accumulation_steps": 2,
}


def rich(run: Path, **options: Any) -> STPTrainer:
    """Return a trainer with everything on: priors, temporal pruning, a reference, accumulation, dropout."""
    template = Template({0: "[", -1: "]"}, tokenizer())
    return trainer(run, tiny(dropout=0.2), priors=[template], **{**RICH, **options})


def states() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (name, keys.tolist(), *rest)


def test_no_global_generator_moves(tmp_path: Path):
    before = states()
    made = rich(tmp_path)
    for _ in range(2):
        made.train_step()
    made.save()
    assert states() == before


def test_a_step_does_not_read_global_generators(tmp_path: Path):
    first = rich(tmp_path / "a").train_step()
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second = rich(tmp_path / "b").train_step()
    assert first.metrics == second.metrics
    assert first.completions == second.completions


def test_a_run_is_its_seed(tmp_path: Path):
    runs = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        made = rich(tmp_path / name, seed=seed)
        made.train()
        runs[name] = read_metrics(tmp_path / name / "metrics.jsonl")
        assert len(runs[name]) == made.rollouts == 4
    assert runs["a"] == runs["b"], "bit by bit"
    assert [line["reward"] for line in runs["a"]] != [line["reward"] for line in runs["c"]]


def parameters(made: STPTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.model.parameters()]


def equal(left: STPTrainer, right: STPTrainer) -> bool:
    return all(torch.equal(a, b) for a, b in zip(parameters(left), parameters(right), strict=True))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path):
    whole = rich(tmp_path / "whole")
    whole.train()
    first = rich(tmp_path / "cut", save_strategy="steps", save_steps=4)

    class Crash(Exception):
        pass

    def crash(result: Any) -> None:
        if result.step == 6:  # a step after the last checkpoint
            raise Crash

    first.add_callback(Watch(crash))
    with pytest.raises(Crash):
        first.train()
    assert [line["step"] for line in read_metrics(tmp_path / "cut" / "metrics.jsonl")] == [2, 4, 6]
    second = rich(tmp_path / "cut", save_strategy="steps", save_steps=4)
    second.train(resume_from_checkpoint=True)
    assert read_metrics(tmp_path / "cut" / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert equal(second, whole)
    assert second.ledger.forwards == whole.ledger.forwards
    with pytest.raises(CheckpointError, match=r"made with other settings \(beta, seed\): beta is 0.1, was"):
        rich(tmp_path / "cut", seed=3, beta=0.1).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match=r"holds a run \(checkpoint-\d\)"):
        rich(tmp_path / "cut", seed=3, max_steps=1).train()
    fresh = rich(tmp_path / "new", seed=3, max_steps=1)
    assert fresh.train().global_step == 1, "a run starts anew unless it is asked to go on"


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from stp_rs.train import checkpoint
from tests.invariant.test_runs import rich
torch.set_num_threads(int(sys.argv[2]))
original, saves = checkpoint.write_state_dict, 0
def save(*args):
    global saves
    saves += 1
    if saves == 6:  # in the middle of the third checkpoint
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
checkpoint.write_state_dict = save
rich(Path(sys.argv[1]), save_strategy="steps", save_steps=2).train()
"""


@pytest.mark.slow
def test_a_run_killed_inside_a_save_goes_on_as_if_it_had_not_been(tmp_path: Path):
    threads = torch.get_num_threads()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), str(threads)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, check=False, cwd=root, capture_output=True, text=True, timeout=800)
    assert done.returncode == -signal.SIGKILL, done.stderr
    newest = newest_checkpoint(tmp_path / "cut")
    assert newest is not None
    assert newest.step == 4
    assert list((tmp_path / "cut").glob(".checkpoint-6*")), "the kill left half a checkpoint behind"
    resumed, whole = rich(tmp_path / "cut"), rich(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=True)
    assert [path.name for path in (tmp_path / "cut").glob(".*")] == [LOCK]
    whole.train()
    assert read_metrics(tmp_path / "cut" / "metrics.jsonl") == read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert equal(resumed, whole)


def test_a_trained_policy_earns_more(tmp_path: Path):
    made = trainer(tmp_path, stp_rollouts=30, learning_rate=5e-3, num_iterations=1)
    rewards = [made.train_step().metrics["reward"] for _ in range(30)]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2


def test_logging_evaluation_and_saving_come_when_asked(tmp_path: Path):
    options = {"logging_steps": 4, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 2}
    made = trainer(tmp_path, max_steps=6, num_iterations=1, **options)
    made.eval_dataset = ROWS[:2]
    values: list[float] = []
    made.add_callback(Watch(lambda result: values.append(result.metrics["reward"])))
    made.train()
    lines = {line["step"]: line for line in read_metrics(tmp_path / "metrics.jsonl")}
    assert sorted(lines) == [3, 4, 6], "whenever either is due, and at the end"
    assert [step for step in lines if "eval_reward" in lines[step]] == [3, 6]
    assert lines[4]["reward"] == pytest.approx(np.mean(values[:4])), "the mean since the line before"
    assert lines[6]["reward"] == pytest.approx(np.mean(values[4:]))
    assert lines[6]["diffusion/completions"] == 48, "counters are totals"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in (2, 4, 6)]


def test_completions_are_measured_up_to_their_end_of_text(tmp_path: Path):
    ended = Template({1: "1", 2: ""}, tokenizer())
    metrics = trainer(tmp_path, priors=[ended]).train_step()
    lengths = [ids.index(2) + 1 if 2 in ids else LENGTH for ids in metrics.rollout.token_ids.tolist()]
    assert metrics.metrics["completions/mean_length"] == pytest.approx(np.mean(lengths))
    assert max(lengths) == 3


def test_lengths_of_completions_with_and_without_an_end(tmp_path: Path):
    made = trainer(tmp_path, num_generations=8, per_device_train_batch_size=16).train_step()
    ids, metrics = made.rollout.token_ids.tolist(), made.metrics
    lengths = [row.index(2) + 1 if 2 in row else LENGTH for row in ids]
    terminated = [row.index(2) + 1 for row in ids if 2 in row]
    assert 0 < len(terminated) < len(ids)
    for prefix, values in (("", lengths), ("_terminated", terminated)):
        for name, of in (("mean", np.mean), ("min", min), ("max", max)):
            assert metrics[f"completions/{name}{prefix}_length"] == pytest.approx(of(values))
    assert metrics["completions/clipped_ratio"] == pytest.approx(1 - len(terminated) / len(ids))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("constant_with_warmup", [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("linear", [0.0, 0.5, 1.0, 0.875, 0.75]),
        ("cosine", [0.0, 0.5, 1.0, 0.96194, 0.85355]),
    ],
)
def test_learning_rates_are_those_of_transformers(kind: str, expected: list[float], tmp_path: Path):
    made = trainer(tmp_path, lr_scheduler_type=kind, warmup_steps=2, num_iterations=1, stp_rollouts=10)
    rates = [made.train_step().metrics["learning_rate"] / 2e-3 for _ in range(5)]
    assert rates == pytest.approx(expected, abs=1e-4)


def shifted(run: Path) -> Any:
    return MaskedLMAdapter(tiny().module, tokenizer(), logit_shift=1)


def table(run: Path) -> Any:
    return Tabular(vocab=10, width=12, seed=0)


@pytest.mark.parametrize("make", [shifted, table])
def test_the_reference_is_a_frozen_copy_of_the_same_kind(make: Callable[[Path], Any], tmp_path: Path):
    model = make(tmp_path)
    copied = reference_policy(model)
    assert type(copied) is type(model)
    assert copied.logit_shift == model.logit_shift
    canvas = torch.tensor([[4, 5, 1, 1]])

    def logits(policy: Any) -> torch.Tensor:
        policy.module.eval()
        return policy.head(policy.hidden(canvas, None)[0]).detach()

    before = logits(model).clone()
    assert torch.equal(logits(copied), before)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(1.0 + torch.rand_like(parameter))
    assert torch.equal(logits(copied), before), "the copy does not follow the policy"
    assert not torch.equal(logits(model), before)
    assert not any(p.requires_grad for p in copied.module.parameters())


def test_what_cannot_be_trained_says_why(tmp_path: Path):
    with pytest.raises(ConfigError, match="max_completion_length: got 0"):
        trainer(tmp_path, max_completion_length=0)
    with pytest.raises(ConfigError, match="train_dataset: got no rows"):
        STPTrainer(tiny(), ones, trainer(tmp_path).args, [], processing_class=tokenizer())
