"""What every optimiser update keeps: one law, each mask set once, no pass that nobody reads."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs import STPTrainer, Template
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import DivergenceError
from stp_rs.train import estimates
from stp_rs.train import update as module
from tests.fixtures import LENGTH, ones, tiny, tokenizer, trainer


@contextmanager
def minibatches_seen() -> Iterator[list[Rollout]]:
    """Record the minibatches that are taken."""
    taken: list[Rollout] = []
    original = Rollout.minibatch

    def call(self: Rollout, *args: Any) -> Rollout:
        taken.append(original(self, *args))
        return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollout, "minibatch", call)
        yield taken


@contextmanager
def spied(name: str) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any], Any]]]:
    """Record (arguments, keywords, result) of the calls that the updates make of one of its functions."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
    place = module if hasattr(module, name) else estimates
    original = getattr(place, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        calls.append((args, kwargs, result))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, call)
        yield calls


def gradients_of_step(made: STPTrainer) -> list[list[torch.Tensor]]:
    """Make one step; return the gradients of each optimiser update."""
    seen: list[list[torch.Tensor]] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])

    handle = made.optimizer.register_step_pre_hook(keep)
    made.train_step()
    handle.remove()
    return seen


def close(left: list[torch.Tensor], right: list[torch.Tensor], tolerance: float = 1e-6) -> bool:
    return all(torch.allclose(a, b, atol=tolerance, rtol=1e-4) for a, b in zip(left, right, strict=True))


def gap(inputs: Any) -> float:
    """Return the largest difference between a new and an old token estimate."""
    return float((inputs.new_RL.detach() - inputs.old_RL).abs().max())


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_ratio_is_one_until_the_policy_moves(level: str, tmp_path: Path):
    """With dropout in the model, and old estimates that were made in another pass."""
    dropping = tiny(dropout=0.4)
    still = trainer(tmp_path / "a", dropping, learning_rate=0.0, num_iterations=3, importance_sampling_level=level)
    with spied("policy_loss") as losses:
        metrics = still.train_step().metrics
    assert len(losses) == 3
    assert all(gap(args[0]) < 1e-6 for args, _, _ in losses)
    assert abs(metrics["diffusion/ratio_max"] - 1) < 1e-6
    assert metrics["clip_ratio/region_mean"] == 0
    assert dropping.module.training, "the mode of the caller comes back"
    moving = trainer(tmp_path / "b", tiny(dropout=0.4), num_iterations=2)
    with spied("policy_loss") as losses:
        moving.train_step()
    first, second = (gap(args[0]) for args, _, _ in losses)
    assert first < 1e-6
    assert second > 1e-4


def test_every_micro_batch_sees_each_of_its_mask_sets_once(tmp_path: Path):
    made = trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_iterations=3)
    with spied("draw_masks") as draws, spied("token_estimates") as made_of:
        updates = gradients_of_step(made)
    assert len(updates) == 3, "the inner index counts optimiser updates"
    rows = [tuple(args[1].uid.tolist()) for args, _, _ in draws]
    iteration = [kwargs["iteration"] for _, kwargs, _ in draws]
    batches = sorted(set(rows))
    assert Counter(zip(rows, iteration, strict=True)) == Counter({(b, j): 1 for b in batches for j in range(3)})
    masks = {id(result): (rows[i], iteration[i]) for i, (_, _, result) in enumerate(draws)}
    graded = [masks[id(args[2])] for args, _, (result, _) in made_of if result.requires_grad]
    assert sorted(graded) == sorted(masks.values()), "each set is trained on exactly once"
    assert [j for _, j in graded] == sorted(j for _, j in graded), "update j uses the sets j"
    without = [args for args, _, (result, _) in made_of if not result.requires_grad]
    assert len(without) == len(batches), "one pass for the old estimates of all inner iterations"
    for args in without:
        first = tuple(args[1].uid[: len(args[1].uid) // 2].tolist())
        sets = [result.mask_PL for _, _, result in draws if masks[id(result)][0] == first][1:]
        assert np.array_equal(args[2].mask_PL, np.concatenate(sets)), "old estimates of the same sets"
    pairs = {(tuple(result.mask_PL.ravel()), r) for (_, _, result), r in zip(draws, rows, strict=True)}
    assert len(pairs) > len(batches), "the sets differ between iterations"


def test_gradient_accumulation_is_one_big_batch(tmp_path: Path):
    whole = trainer(tmp_path / "a", per_device_train_batch_size=8, num_iterations=1)
    parts = trainer(tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=4, num_iterations=1)
    (one,), (other,) = gradients_of_step(whole), gradients_of_step(parts)
    assert max(float(g.abs().max()) for g in one) > 1e-3
    assert close(one, other)


def test_the_law_that_drew_the_tokens_is_the_law_that_is_scored(tmp_path: Path):
    """One forward reveals all, and `uniform_count` scores exactly that state: the estimate is the recorded number."""
    options = {"temperature": 0.6, "diffusion_steps": 1, "stp_design": "uniform_count", "num_mc": 1}
    made = trainer(tmp_path, num_iterations=1, **options)
    with spied("token_estimates") as made_of, minibatches_seen() as gathered:
        made.train_step()
    (_, _, (estimate, _)), batch = made_of[0], gathered[0]
    assert np.allclose(estimate.detach().numpy(), batch.logprob, atol=1e-4)
    assert not np.allclose(batch.logprob, 0)


def test_estimates_of_a_ragged_micro_batch_ignore_its_padding(tmp_path: Path):
    made = trainer(tmp_path, per_device_train_batch_size=8, num_iterations=1)
    widths = []
    with minibatches_seen() as gathered:
        made.train_step()
    for batch in gathered:
        widths.append(batch.prompt_ids.shape[1])
        assert widths[-1] == batch.prompt_length.max()


def half_zero(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
    """Give one prompt's completions equal rewards."""
    return [0.5 if prompt == prompts[0] else share for prompt, share in zip(prompts, ones(completions), strict=True)]


def test_rows_of_advantage_zero_are_not_computed_and_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_iterations": 2}
    lean = trainer(tmp_path / "a", reward=half_zero, **options)
    with spied("draw_masks") as draws:
        (first, second) = gradients_of_step(lean)
    assert sum(len(args[1]) for args, _, _ in draws) == 2 * 4, "half of the eight rows, in two iterations"

    def all_rows(full: Any, *_: Any) -> list[Any]:
        return list(np.arange(len(full)).reshape(-1, 4))

    monkeypatch.setattr(module, "micro_batches", all_rows)
    complete = trainer(tmp_path / "b", reward=half_zero, **options)
    (same_first, same_second) = gradients_of_step(complete)
    assert close(first, same_first)
    assert close(second, same_second, tolerance=1e-5)
    every, few = complete.ledger.forwards, lean.ledger.forwards
    assert every["backward"] == 2 * few["backward"]
    old = [found["likelihood"] - found["backward"] for found in (every, few)]
    assert old[0] == old[1] > 0, "a row without advantage has no old pass, even where it is computed"


def flat(completions: list[str], **_: Any) -> list[float]:
    """Reward nothing."""
    return [1.0] * len(completions)


def test_a_batch_without_signal_makes_no_pass_and_moves_nothing(tmp_path: Path):
    made = trainer(tmp_path, reward=flat)
    before = [p.clone() for p in made.model.parameters()]
    metrics = made.train_step().metrics
    assert metrics["frac_reward_zero_std"] == 1.0
    assert made.ledger.forwards["likelihood"] == made.ledger.forwards["backward"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_negative_advantages_of_weight_zero_are_not_computed(tmp_path: Path):
    made = trainer(tmp_path, stp_negative_advantage_weight=0.0, num_iterations=1)
    with spied("draw_masks") as draws:
        made.train_step()
    assert all((args[1].advantage > 0).all() for args, _, _ in draws)
    assert sum(len(args[1]) for args, _, _ in draws) > 0


@pytest.mark.parametrize(
    ("options", "per_set"),
    [
        ({"num_iterations": 1}, 1),  # the gradient pass alone: old is new, and there is no reference
        ({"num_iterations": 3}, 1 + 2 / 3),  # an old pass for all sets but the first
        ({"num_iterations": 1, "beta": 0.1}, 2),
        ({"num_iterations": 3, "beta": 0.1}, 2 + 2 / 3),
    ],
)
def test_no_pass_is_made_that_nobody_reads(options: dict[str, Any], per_set: float, tmp_path: Path):
    made = trainer(tmp_path, preset="stp_spread", num_mc=3, **options)
    assert (made.reference is None) == ("beta" not in options)
    canvases = Counter({"graph": 0, "none": 0})

    def count(model: Any) -> None:
        hidden = model.hidden

        def counting(ids: torch.Tensor, lengths: Any) -> torch.Tensor:
            canvases["graph" if torch.is_grad_enabled() else "none"] += len(ids)
            return hidden(ids, lengths)

        model.hidden = counting

    count(made.policy)
    if made.reference is not None:
        count(made.reference)
    with spied("draw_masks") as draws:
        made.train_step()
    passes = sum(len(result.row_P) for _, _, result in draws)
    forwards = made.ledger.forwards
    assert passes % 3 == 0
    assert forwards["backward"] == canvases["graph"] == passes
    assert forwards["likelihood"] == pytest.approx(per_set * passes)
    assert canvases["none"] == forwards["rollout"] + forwards["likelihood"] - passes


def test_forwards_counted_are_forwards_planned(tmp_path: Path):
    template = Template({0: "[", LENGTH - 1: "]"}, tokenizer())
    made = trainer(tmp_path, priors=[template], stp_temporal="steps:0.6")
    plan = made.unmasking.plan(np.array([0, *[1] * (LENGTH - 2), 0], np.uint8))
    metrics = made.train_step().metrics
    assert metrics["diffusion/nfe"] == len(plan) == 3  # four free tokens, 0.6 of four steps
    groups = 2  # their samples share the first forward
    assert made.ledger.forwards["rollout"] == 8 * len(plan) - (8 - groups)
    assert metrics["diffusion/anchor_share"] == pytest.approx(2 / LENGTH)
    assert metrics["diffusion/temporal_stop_share"] == 1.0


def fixed(completions: list[str], **_: Any) -> list[float]:
    """Tell equal completions apart."""
    return [float(i % 2) for i in range(len(completions))]


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_completions_without_free_tokens_can_be_trained_on(beta: float, tmp_path: Path):
    everything = Template(dict.fromkeys(range(LENGTH), "1"), tokenizer())
    made = trainer(tmp_path, reward=fixed, priors=[everything], stp_score_prior=False, beta=beta)
    before = [p.clone() for p in made.model.parameters()]
    metrics = made.train_step().metrics
    assert metrics["loss"] == 0
    assert made.ledger.forwards == {"prior": 0, "rollout": 0, "likelihood": 0, "backward": 0}
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_nan_is_an_error_and_the_parameters_stay(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original = module.policy_loss

    def poisoned(inputs: Any, config: Any, **totals: Any) -> Any:
        loss, metrics = original(inputs, config, **totals)
        if where == "loss":
            return loss * float("nan"), metrics
        return loss + (inputs.new_RL * 0).sum().sqrt(), metrics  # value 0, gradient 0 * infinity

    monkeypatch.setattr(module, "policy_loss", poisoned)
    made = trainer(tmp_path)
    before = [p.clone() for p in made.model.parameters()]
    with pytest.raises(DivergenceError, match=r"rollout batch 0, update 1: loss .* the update was not applied"):
        made.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))
    assert made.optimizer.state_dict()["state"] == {}


def test_a_policy_that_has_diverged_stops_in_its_rollout(tmp_path: Path):
    made = trainer(tmp_path)
    with torch.no_grad():
        next(made.model.parameters())[4] = float("nan")
    with pytest.raises(DivergenceError, match="NaN or infinite logits"):
        made.train_step()
