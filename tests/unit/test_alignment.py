"""Alignment: the split on numbers worked out by hand, and on a policy whose trajectory is the estimate itself."""

from collections.abc import Callable
from dataclasses import astuple

import numpy as np
import pytest
import torch

from stp_rs._core import Design
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.eval.alignment import align, align_trajectories, bias_parts, summarise, trajectory_gradients
from stp_rs.objective import noise
from stp_rs.objective.masks import draw_masks
from stp_rs.objective.noise import Estimator, value_and_gradient
from stp_rs.testing.states import PARTS, state_masks
from stp_rs.types import Cost
from tests.fixtures import tiny


def test_the_split_recovers_the_moments_it_was_made_of():
    generator = np.random.default_rng(0)
    batches, draws, size = 400, 4, 50
    truth, mean = np.zeros(size), np.zeros(size)
    truth[0], mean[0], mean[1] = 3.0, 2.0, 1.5  # cosine 0.8
    target_BD = truth + generator.normal(size=(batches, size))
    own_BD = mean + generator.normal(size=(batches, size)) * 0.7
    drawn_BMD = own_BD[:, None] + generator.normal(size=(batches, draws, size)) * 0.5
    mean_BD = drawn_BMD.mean(1)
    square_B = (drawn_BMD**2).sum(2).mean(1)
    noise_B = drawn_BMD.var(1, ddof=1).sum(1)
    grams = mean_BD @ mean_BD.T, mean_BD @ target_BD.T, target_BD @ target_BD.T
    found = summarise(*grams, square_B, noise_B, forwards=1.0)
    total = 6.25 + 50 * 0.49 + 50 * 0.25
    assert found.signal == pytest.approx(6.25 / total, abs=0.02)
    assert found.mask_noise == pytest.approx(12.5 / total, abs=0.02)
    assert found.rollout_noise == pytest.approx(24.5 / total, abs=0.02)
    assert found.bias_cosine == pytest.approx(0.8, abs=0.03)
    assert found.cosine == pytest.approx(0.8 * np.sqrt(6.25 / total), abs=0.02)
    assert found.cosine == pytest.approx(found.bias_cosine * np.sqrt(found.signal))
    low, high = found.interval
    assert low < found.cosine < high
    assert high - low < 0.1


def test_what_the_batches_do_not_resolve_is_none():
    nothing = np.eye(3) - 0.1
    found = summarise(nothing, nothing, nothing, np.ones(3), np.zeros(3), forwards=1.0)
    assert (found.cosine, found.bias_cosine, found.interval) == (None, None, None)


def batch(seed: int) -> Rollout:
    """Return two groups of four completions, revealed one at a time, with advantages."""
    generator = np.random.default_rng(seed)
    prompts = PromptBatch(
        rows=[{}] * 8,
        prompt_ids=np.repeat(generator.integers(3, 7, (2, 4)), 4, axis=0),
        prompt_length=np.full(8, 4, np.int32),
        uid=np.arange(8, dtype=np.uint64) + 8 * seed,
        group=np.repeat(np.arange(2), 4),
    )
    steps = np.stack([generator.permutation(6) for _ in range(8)]).astype(np.int32)
    rollout = Rollout.of(prompts, generator.integers(3, 7, (8, 6)), steps)
    return rollout.replaced(advantage=generator.normal(size=8).astype(np.float32))


def test_the_trajectory_has_no_bias_and_no_mask_noise_and_a_group_shares_its_canvas():
    model, batches = tiny(seed=3), [batch(seed) for seed in range(4)]
    target = trajectory_gradients(model, batches)
    before = [p.grad for p in model.module.parameters()]
    exact = align(model, batches, target, Estimator(Design("trajectory", 0)))
    assert exact.mask_noise == pytest.approx(0.0, abs=1e-9)
    assert exact.cosine is None or exact.bias_cosine == pytest.approx(1.0, abs=1e-5)
    canvas = align(model, batches, target, Estimator(Design("canvas", 1)))
    assert canvas.forwards == pytest.approx(1 / 4)
    assert canvas.mask_noise == pytest.approx(0.0, abs=1e-9)
    assert align(model, batches, target, Estimator(Design("uniform_count", 2))).mask_noise > 0.05
    assert all(p.grad is old for p, old in zip(model.module.parameters(), before, strict=True))
    assert torch.isfinite(target).all()


def test_the_bias_of_visited_states_is_weights_and_earliness():
    model, batches = tiny(seed=3), [batch(seed) for seed in range(3)] * 2  # twice each: means are resolved
    target = trajectory_gradients(model, batches)
    found = bias_parts(model, batches, target)
    assert found["trajectory"].size == pytest.approx(1.0)
    assert found["trajectory"].cosine == pytest.approx(1.0)
    # the parts add up, so their projections on the trajectories' gradient do
    along = {name: part.size * part.cosine for name, part in found.items() if part.size is not None}
    if {"weights", "earliness", "surrogate"} <= along.keys():
        assert along["surrogate"] == pytest.approx(1.0 + along["weights"] + along["earliness"], abs=1e-4)
    assert found["surrogate"].size is not None


def test_passes_taken_a_few_at_a_time_add_up_and_equal_canvases_stay_together(monkeypatch: pytest.MonkeyPatch):
    model, one = tiny(seed=3), batch(5)
    coefficient_R, costs = torch.from_numpy(one.weights()), []
    for design in (Design("trajectory", 0), Design("spread", 3), Design("canvas", 1)):
        masks, found = draw_masks(design, one, seed=1), []
        for tokens in (noise.PASS_TOKENS, 20):  # canvases of 10 tokens
            monkeypatch.setattr(noise, "PASS_TOKENS", tokens)
            seen: list[int] = []
            with monkeypatch.context() as patch:
                patch.setattr(model, "hidden", counted(model.hidden, seen))
                cost = Cost()
                found.append(value_and_gradient(model, one, masks, coefficient_R, cost=cost))
            costs.append((design.name, sum(seen), cost.forwards))
            assert tokens > 20 or max(seen) < 4, "fewer than twice the two canvases that 20 tokens hold"
        assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
        assert torch.allclose(found[0][1], found[1][1], atol=1e-5)
        monkeypatch.setattr(noise, "PASS_TOKENS", 8192)
    assert all(made == counted_as for _, made, counted_as in costs)
    assert costs[-2:] == [("canvas", 2, 2)] * 2, "two groups have two canvases, in parts too"


def test_prompt_masks_are_noise_and_tell_canvases_apart(monkeypatch: pytest.MonkeyPatch):
    model, batches = tiny(seed=3), [batch(seed) for seed in range(3)]
    target = trajectory_gradients(model, batches)
    for probability in (0.0, 0.5):  # every completion token is masked in every draw: only the prompt differs
        found = align(model, batches, target, Estimator(Design("mean_field", 1), prompt_mask=probability))
        assert (found.mask_noise > 1e-6) == (probability > 0)
    monkeypatch.setattr(noise, "PASS_TOKENS", 20)  # two canvases of 10 tokens
    masks = Estimator(Design("mean_field", 1), prompt_mask=0.5).masks(batches[0], 0)
    different = len({(row.tobytes(), int(group)) for row, group in zip(masks.prompt_PW, masks.row_P // 4, strict=True)})
    assert different > 2
    assert len(noise._in_parts(batches[0], masks)) == -(-different // 2)


def counted(hidden: Callable[..., torch.Tensor], seen: list[int]) -> Callable[..., torch.Tensor]:
    """Return the method, which notes the canvases of every call."""

    def call(ids_BS: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        seen.append(len(ids_BS))
        return hidden(ids_BS, lengths_B)

    return call


def test_what_is_not_drawn_is_computed_once(monkeypatch: pytest.MonkeyPatch):
    model, batches = tiny(seed=3), [batch(seed) for seed in range(3)]
    target, seen = trajectory_gradients(model, batches), []
    monkeypatch.setattr(model, "hidden", counted(model.hidden, seen))
    exact = align(model, batches, target, Estimator(Design("trajectory", 0)), draws=4)
    assert sum(seen) == 3 * 8 * 6
    assert exact.forwards == 6.0
    known = align_trajectories(batches, target)
    assert astuple(known)[3:] == pytest.approx(astuple(exact)[3:], abs=1e-6)
    assert known.bias_cosine == exact.bias_cosine is None or known.bias_cosine == pytest.approx(1.0)
    seen.clear()
    align(model, batches, target, Estimator(Design("uniform_count", 1)), draws=4)
    assert sum(seen) == 4 * 3 * 8
    seen.clear()
    bias_parts(model, batches, target)
    assert sum(seen) <= 3 * (3 * 8 * 6), "weights, earliness and divided; the others are sums of known ones"


def test_the_parts_of_one_batch_add_up_to_the_surrogate():
    model, one = tiny(seed=3), batch(5)
    masks = state_masks(one)
    coefficient_R = torch.from_numpy(one.weights())
    gradient = {
        part: value_and_gradient(model, one, masks[part], coefficient_R)[1] for part in PARTS if part != "divided"
    }
    total = gradient["trajectory"] + gradient["weights"] + gradient["earliness"]
    assert torch.allclose(gradient["surrogate"], total, atol=1e-5)
    assert float(gradient["earliness"].norm()) > 1e-3
