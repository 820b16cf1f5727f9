"""The ledger counts what the model saw, and knows which of its numbers are the same for every run of a seed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs.data.prompts import encode_prompts
from stp_rs.priors import Hint
from stp_rs.train.anchors import OfflineGeneration
from stp_rs.train.metrics import Ledger, read_metrics
from stp_rs.types import Cost
from tests.fixtures import LENGTH, ROWS, tiny, tokenizer, trainer


def watched(*models: Any) -> "Counter[tuple[str, str]]":
    """Return what the models see from now on: by name, with a graph or with none."""
    seen: Counter[tuple[str, str]] = Counter()

    def watch(model: Any) -> None:
        hidden, head = model.hidden, model.head

        def phase() -> str:
            return "graph" if torch.is_grad_enabled() else "none"

        def counting(ids: torch.Tensor, lengths: Any) -> torch.Tensor:
            seen["forwards", phase()] += len(ids)
            seen["tokens", phase()] += ids.numel()
            return hidden(ids, lengths)

        def heading(hidden_NH: torch.Tensor) -> torch.Tensor:
            seen["head_rows", phase()] += len(hidden_NH)
            return head(hidden_NH)

        model.hidden, model.head = counting, heading

    for model in models:
        if model is not None:
            watch(model)
    return seen


@pytest.mark.parametrize("options", [{}, {"beta": 0.1, "gradient_accumulation_steps": 2, "stp_temporal": "steps:0.6"}])
def test_tokens_and_head_rows_are_those_the_model_saw(options: dict[str, Any], tmp_path: Path):
    made = trainer(tmp_path, num_mc=3, num_iterations=2, **options)
    seen = watched(made.policy, made.reference)
    metrics = made.train_step().metrics
    ledger = made.ledger
    for name in ("forwards", "tokens", "head_rows"):
        counts = getattr(ledger, name)
        assert counts["backward"] == seen[name, "graph"] > 0
        assert counts["rollout"] + counts["likelihood"] - counts["backward"] == seen[name, "none"]
        assert metrics[f"diffusion/{name}_rollout"] == counts["rollout"]
    scoring = ledger.forwards["likelihood"] - ledger.forwards["backward"]
    expected = ledger.forwards["rollout"] + scoring + 3 * ledger.forwards["backward"]
    assert metrics["diffusion/forward_equivalents"] == expected


def test_everything_that_the_model_saw_is_on_the_ledger(tmp_path: Path):
    """Anchors made and refreshed, mask noise, rescues and extra batches, not only rollout and update."""
    model = tiny()
    offline = OfflineGeneration(0.4, "random", refresh=1)
    hints = Hint(lambda _: "12", tokenizer(), when="all_wrong")
    options = {"stp_rescue": "hint", "stp_dynamic_sampling": 2, "stp_variance_every": 1, "stp_rollouts": 3}
    made = trainer(tmp_path, model, priors=[offline, hints], **options)
    seen = watched(made.policy)
    prompts = encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS)))
    made.ledger.add(offline.build(model, prompts, tokenizer(), made.unmasking, completion_length=LENGTH), "prior")
    for _ in range(3):
        made.train_step()
    for name in ("forwards", "tokens", "head_rows"):
        counts = getattr(made.ledger, name)
        assert counts["prior"] > 0
        assert counts["variance"] > 0
        assert sum(counts.values()) - counts["backward"] == seen[name, "graph"] + seen[name, "none"]


def test_seconds_are_logged_apart_from_what_a_seed_decides(tmp_path: Path):
    for name in ("a", "b"):
        trainer(tmp_path / name, tiny(), stp_rollouts=2).train()
    path = tmp_path / "a" / "metrics.jsonl"
    whole, plain = read_metrics(path, measured=True), read_metrics(path)
    assert plain == read_metrics(tmp_path / "b" / "metrics.jsonl")
    measured = whole[1].keys() - plain[1].keys()
    assert {"diffusion/cpu_seconds", "diffusion/cpu_seconds_scoring", "diffusion/seconds_rollout"} <= measured
    assert "diffusion/forward_equivalents" in plain[1]
    line = whole[1]
    total = sum(line[f"diffusion/cpu_seconds_{phase}"] for phase in ("prior", "rollout", "reward", "update"))
    assert line["diffusion/cpu_seconds"] == pytest.approx(total)
    assert line["diffusion/cpu_seconds_scoring"] <= line["diffusion/cpu_seconds_update"]
    assert line["diffusion/cpu_seconds"] > whole[0]["diffusion/cpu_seconds"] > 0, "cumulative"
    assert line["diffusion/peak_bytes"] > 1 << 20


def test_evaluation_is_no_training_compute():
    ledger = Ledger()
    ledger.add(Cost(5, 40, 10), "likelihood", "backward")
    before = ledger.forward_equivalents
    with ledger.time("eval"):
        sum(range(10_000))
    ledger.add(Cost(7), "eval")
    assert before == ledger.forward_equivalents == 15
    assert ledger.measured()["diffusion/cpu_seconds"] == 0.0
    assert ledger.forwards["eval"] == 7


def test_a_checkpoint_carries_every_number():
    ledger = Ledger()
    ledger.add(Cost(5, 40, 10), "rollout")
    with ledger.time("rollout"):
        sum(range(10_000))
    other = Ledger()
    other.restore(json.loads(json.dumps(ledger.to_dict())))
    assert other.to_dict() == ledger.to_dict()
    other.restore({"forwards": {"rollout": 1, "likelihood": 0, "backward": 0}, "seconds": {}})
    assert other.forwards["rollout"] == 1


@pytest.mark.cuda
def test_gpu_seconds_are_measured_by_events():
    ledger = Ledger(torch.device("cuda"))
    matrix = torch.ones(1024, 1024, device="cuda")
    with ledger.time("rollout"):
        for _ in range(10):
            matrix = matrix @ matrix / 1024
    measured = ledger.measured()
    assert 0 < measured["diffusion/gpu_seconds"] == measured["diffusion/gpu_seconds_rollout"]
    assert measured["diffusion/peak_bytes"] >= matrix.numel() * 4
