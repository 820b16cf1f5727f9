"""What an update computes and when the host waits: passes without gradient are few, numbers are read once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs import SamplingParams
from stp_rs.models import base
from stp_rs.objective import head
from stp_rs.train import estimates
from tests.fixtures import Tabular, tiny, trainer

READS = ("item", "tolist", "numpy", "__float__", "__int__", "__bool__")


@contextmanager
def calls_of(model: Any) -> Iterator[Counter[str]]:
    """Count the model's passes, with and without gradient, and their canvases."""
    found: Counter[str] = Counter()
    hidden = model.hidden

    def counted(ids_BS: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        kind = "gradient" if torch.is_grad_enabled() else "scoring"
        found[kind] += 1
        found[f"{kind} canvases"] += len(ids_BS)
        return hidden(ids_BS, lengths_B)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "hidden", counted)
        yield found


def step_counts(made: Any) -> tuple[dict[str, float], Counter[str]]:
    """Return the metrics of a step and the passes of its update."""
    updates, found = made.update.updates, []

    def counted(*args: Any) -> Any:
        with calls_of(made.policy) as passes:
            metrics = list(updates(*args))
        found.append(passes)
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.update, "updates", counted)
        metrics = made.train_step().metrics
    return metrics, found[0]


@pytest.mark.parametrize("design", ["mean_field", "trajectory", "autoregressive"])
def test_equal_masks_of_inner_iterations_are_estimated_once(
    design: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"stp_design": design, "num_mc": 0 if design == "trajectory" else 1, "num_iterations": 4}
    shared, few = step_counts(trainer(tmp_path / "a", **options, temperature=0.9, top_p=0.9))
    monkeypatch.setattr(estimates, "same_passes", lambda *_: False)
    apart, many = step_counts(trainer(tmp_path / "b", **options, temperature=0.9, top_p=0.9))
    assert few["scoring"] == 0, "the first gradient pass is the old estimate"
    assert many["scoring"] > 0
    assert few["gradient"] == many["gradient"] == 4
    assert shared["loss"] == pytest.approx(apart["loss"], abs=1e-6)
    assert shared["grad_norm"] == pytest.approx(apart["grad_norm"], abs=1e-5)


def test_inner_iterations_share_a_scoring_pass_up_to_a_budget_of_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"num_iterations": 5, "stp_design": "uniform_count", "num_mc": 2}
    whole, one = step_counts(trainer(tmp_path / "a", **options))
    monkeypatch.setattr(estimates, "SHARED_TOKENS", 1)
    parts, four = step_counts(trainer(tmp_path / "b", **options))
    assert (one["scoring"], four["scoring"]) == (1, 4)
    assert one["scoring canvases"] == four["scoring canvases"]
    assert whole["loss"] == pytest.approx(parts["loss"], abs=1e-6)


def test_masks_are_compared_by_all_that_a_pass_reads(tmp_path: Path):
    made = trainer(tmp_path, stp_prompt_mask=0.5, stp_design="mean_field", num_mc=1, num_iterations=3)
    _, found = step_counts(made)
    assert found["scoring"] == 1, "the prompts of each iteration are masked in another way"
    assert found["scoring canvases"] > found["gradient canvases"] // 3


def scored_with(rewards: list[float], folder: Path, **options: Any) -> tuple[dict[str, float], Counter[str], Any]:
    """Return metrics, passes and weights of a step whose completions earn so much, group after group."""
    made = trainer(folder, reward=lambda completions, **_: rewards[: len(completions)], **options)
    metrics, passes = step_counts(made)
    return metrics, passes, [p.detach().clone() for p in made.model.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stp_prompt_mask": 0.5, "stp_design": "mean_field"},
        {"importance_sampling_level": "token"},
        {"stp_objective": "stable", "importance_sampling_level": "sequence"},
        {"loss_type": "sapo"},
        {"loss_type": "cispo"},
        {"steps_per_generation": 2, "per_device_train_batch_size": 4},
    ],
    ids=lambda o: "-".join(map(str, o.values())) or "defaults",
)
def test_a_completion_without_advantage_has_no_old_estimate(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It is computed for its KL term; what its ratio is multiplied by is 0, and every weight is the same."""
    common = {"num_iterations": 3, "beta": 0.1, "stp_design": "uniform_count", "num_mc": 1, **options}
    rewards = [1.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    few, spared, weights = scored_with(rewards, tmp_path / "a", **common)
    monkeypatch.setattr(estimates.Estimator, "idle", lambda *_: False)
    many, whole, again = scored_with(rewards, tmp_path / "b", **common)
    assert spared["scoring canvases"] < whole["scoring canvases"]
    assert spared["gradient canvases"] == whole["gradient canvases"]
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(weights, again, strict=True))
    assert few["loss"] == pytest.approx(many["loss"], abs=1e-6)
    assert few["kl"] == pytest.approx(many["kl"], abs=1e-6)


@pytest.mark.parametrize(
    "options", [{"stp_kl_target": "old"}, {"use_bias_correction_kl": True}, {"loss_type": "vespo"}], ids=str
)
def test_where_the_ratio_of_every_completion_is_read_it_is_made(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    common = {"num_iterations": 3, "beta": 0.1, "stp_design": "uniform_count", "num_mc": 1, **options}
    rewards = [1.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5]
    _, made, _ = scored_with(rewards, tmp_path / "a", **common)
    monkeypatch.setattr(estimates.Estimator, "idle", lambda *_: False)
    _, whole, _ = scored_with(rewards, tmp_path / "b", **common)
    assert made == whole


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("options", [{}, {"beta": 0.1}, {"stp_objective": "stable", "num_mc": 1}])
def test_the_host_reads_once_per_update(
    options: dict[str, Any], micro_batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    size = {"per_device_train_batch_size": 8 // micro_batches, "gradient_accumulation_steps": micro_batches}
    level = {"importance_sampling_level": "sequence"}
    made = trainer(tmp_path, num_iterations=3, stp_constant_memory=False, **size, **options, **level)
    updates, reads = made.update.updates, Counter[str]()

    def watched(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for name in READS:
                original = getattr(torch.Tensor, name)

                def read(self: torch.Tensor, *rest: Any, _name: str = name, _original: Any = original) -> Any:
                    # what only the CPU's optimiser and host buffers read is no wait for a device
                    if self.requires_grad or self.is_floating_point():
                        reads[_name] += 1
                    return _original(self, *rest)

                patch.setattr(torch.Tensor, name, read)
            patch.setattr(made.optimizer, "step", lambda: None)
            return list(updates(*args))

    monkeypatch.setattr(made.update, "updates", watched)
    monkeypatch.setattr(made.lr_scheduler, "step", lambda: None)
    made.train_step()
    assert reads == {"tolist": 3}, "loss, norm and metrics before each update is applied"


def test_a_pass_that_scores_nothing_is_not_computed(tmp_path: Path):
    """Of a coupled pair of masks one may be empty."""
    made = trainer(tmp_path, preset="espo", beta=0.0, num_iterations=1)
    empty = []
    original = estimates.draw_masks

    def drawn(*args: Any, **options: Any) -> Any:
        masks = original(*args, **options)
        empty.append((int((masks.weight_PL != 0).any(1).sum()), len(masks.row_P)))
        return masks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "draw_masks", drawn)
        _, found = step_counts(made)
    assert found["gradient canvases"] == sum(scored for scored, _ in empty)
    assert any(scored < total for scored, total in empty)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("temperature", "entropies"), [(1.0, "none"), (0.7, "numbers"), (0.7, "gradient")])
def test_a_head_in_chunks_gives_the_plain_values_and_gradients(
    trained: bool, shared: bool, temperature: float, entropies: head.Entropies, monkeypatch: pytest.MonkeyPatch
):
    model = tiny()
    model.module.eval().requires_grad_(trained)
    vocab = model.module.config.vocab_size
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(2, vocab, (11,), generator=draw)
    own = np.sort(np.arange(11) % 7) if shared else None
    rows = 7 if shared else 11
    law = SamplingParams(temperature, allowed=torch.rand((4, vocab), generator=draw) < 0.8)
    law.allowed[:, targets] = True
    places = torch.arange(rows), 4
    made, chunks = [], Counter[int]()
    original = model.head

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        chunks[len(hidden)] += 1
        return original(hidden)

    monkeypatch.setattr(model, "head", counted)
    for elements in (1 << 24, 3 * vocab):
        monkeypatch.setattr(base, "HEAD_ELEMENTS", elements)
        chunks.clear()
        hidden = torch.randn((rows, 16), generator=draw.manual_seed(1)).requires_grad_()
        model.module.zero_grad()
        found = head.head_logprobs(model, hidden, targets, law, places, own, entropies)
        (found[:, 0] * torch.linspace(-1, 2, 11)).sum().backward()
        weights = [p.grad.clone() for p in model.module.parameters() if p.grad is not None]
        made.append([found.detach(), hidden.grad, *weights])
    for left, right in zip(*made, strict=True):
        assert torch.allclose(left, right, atol=1e-6)
    assert (len(made[0]) > 2) is trained
    assert max(chunks) == 3
    again = trained or shared or entropies == "gradient"
    assert sum(n * rows_ for rows_, n in chunks.items()) == rows * (1 + again)


def test_what_is_uploaded_together_comes_apart_as_it_was():
    arrays = [
        *(np.arange(5, dtype=np.int64), np.ones((2, 3), np.float32), np.zeros((0, 4), np.float32)),
        *(np.array([1, 0, 1], np.uint8), np.arange(6, dtype=np.int32).reshape(2, 3).T, np.float32([[2.5]])),
    ]
    packed, places = base.pack(arrays, pin=False)
    for array, plain, found in zip(
        arrays, base.upload(torch.device("cpu"), *arrays), base.unpack(packed, arrays, places), strict=True
    ):
        for tensor in (plain, found):
            assert tensor.numpy().dtype == array.dtype
            assert np.array_equal(tensor.numpy(), array)


def test_the_head_takes_what_memory_is_there(monkeypatch: pytest.MonkeyPatch):
    policy = Tabular(vocab=30, width=8, seed=0)
    assert base.head_rows(policy) == base.HEAD_ELEMENTS // (1 << 15)
    monkeypatch.setattr(base, "device_of", lambda _model: torch.device("cuda"))
    sizes = []
    for gib in (1, 16, 60, 1000):
        monkeypatch.setattr(base, "free_bytes", lambda _device, gib=gib: gib * 2.0**30)
        sizes.append(base.head_rows(policy) << 15)
    assert sizes == sorted(sizes)
    assert sizes[0] == base.HEAD_ELEMENTS
    assert sizes[-1] == 1 << 28
    assert sizes[1] * 28 <= 4 << 30
