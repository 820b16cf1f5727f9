"""What objectives, estimators and batches of the trainer keep, beyond the formulas of their presets."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs import Template
from stp_rs.data.prompts import batch_indices
from stp_rs.errors import ConfigError
from stp_rs.models.reference import WithoutAdapters, reference_policy
from stp_rs.objective.masks import make_design
from stp_rs.train import update as module
from stp_rs.types import Mark
from tests.fixtures import LENGTH, ROWS, tiny, tokenizer, trainer
from tests.invariant.test_updates import close, gradients_of_step, minibatches_seen, ones, spied


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Record the bytes that autograd holds for the backward pass, at their highest, as the only entry."""
    held, peak, sizes = 0, [0], {}

    def pack(tensor: torch.Tensor) -> Any:
        nonlocal held
        box = [tensor]
        sizes[id(box)] = tensor.numel() * tensor.element_size()
        held += sizes[id(box)]
        peak[0] = max(peak[0], held)
        return box

    def unpack(box: Any) -> torch.Tensor:
        nonlocal held
        held -= sizes.pop(id(box), 0)
        return box[0]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield peak


@pytest.mark.parametrize("preset", ["stp", "grpo", "unigrpo", "spg", "stable_drl", "bgpo"])
@pytest.mark.parametrize("canvases", [0, 1, 3])
def test_constant_memory_gives_the_gradient_of_the_whole_graph(preset: str, canvases: int, tmp_path: Path):
    options = {"preset": preset, "num_iterations": 2, "max_grad_norm": 0.0, "beta": 0.0, "temperature": 0.8}
    options["num_mc"] = 1 if preset == "unigrpo" else 4
    whole = trainer(tmp_path / "a", **options)
    parts = trainer(tmp_path / "b", stp_constant_memory=True, stp_forward_batch_size=canvases or None, **options)
    for one, other in zip(gradients_of_step(whole), gradients_of_step(parts), strict=True):
        assert max(float(g.abs().max()) for g in one) > 1e-4
        assert close(one, other, tolerance=1e-6)


def test_memory_of_a_constant_memory_update_does_not_grow_with_the_passes(tmp_path: Path):
    peaks: dict[tuple[bool, int], int] = {}
    for constant in (False, True):
        for passes in (2, 8):
            folder = tmp_path / f"{constant}{passes}"
            made = trainer(folder, preset="stp_spread", num_mc=passes, num_iterations=1, stp_constant_memory=constant)
            with saved_bytes() as peak:
                made.train_step()
            peaks[constant, passes] = peak[0]
    assert peaks[False, 8] > 3.5 * peaks[False, 2]
    assert peaks[True, 8] == pytest.approx(peaks[True, 2], rel=0.05)
    assert peaks[True, 8] < 0.6 * peaks[False, 2]


def test_a_trajectory_is_not_scored_again_under_the_policy_that_drew_it(tmp_path: Path):
    made = trainer(tmp_path / "a", preset="grpo", num_iterations=3)
    with spied("policy_loss") as losses:
        made.train_step()
    forwards = made.ledger.forwards
    assert forwards["likelihood"] == forwards["backward"] > 0
    first, second = losses[0][0][0], losses[1][0][0]
    assert torch.allclose(second.old_RL, first.new_RL.detach(), atol=1e-5), "what was recorded is what is scored"
    for law, anew in (({}, False), ({"top_k": 2}, True)):
        some = trainer(tmp_path / f"b{anew}", preset="trace", beta=0.0, num_iterations=3, **law)
        some.train_step()
        forwards = some.ledger.forwards
        assert (forwards["likelihood"] > forwards["backward"]) is anew, "another law, other states: scored anew"


def test_the_first_gradient_pass_is_the_old_estimate_of_equal_masks(tmp_path: Path):
    """Every state of a trajectory, in every inner iteration; under a law whose numbers the rollout did not record."""
    made = trainer(tmp_path, preset="grpo", num_iterations=3, top_k=2)
    with spied("policy_loss") as losses:
        made.train_step()
    assert made.ledger.forwards["likelihood"] == made.ledger.forwards["backward"] > 0
    first = losses[0][0][0].new_RL.detach()
    assert all(torch.equal(args[0].old_RL, first) for args, _, _ in losses)


def test_stable_weights_are_normalised_over_the_whole_update(tmp_path: Path):
    options = {"preset": "stable_drl", "num_iterations": 2, "learning_rate": 3e-2, "max_grad_norm": 0.0}
    whole = trainer(tmp_path / "a", **options)
    parts = trainer(tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    for one, other in zip(gradients_of_step(whole), gradients_of_step(parts), strict=True):
        assert close(one, other)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
def test_length_normalisations_do_not_depend_on_micro_batches(kind: str, tmp_path: Path):
    options = {"loss_type": kind, "num_iterations": 1, "importance_sampling_level": "token"}
    whole = trainer(tmp_path / "a", **options)
    parts = trainer(tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    assert close(*(gradients_of_step(made)[0] for made in (whole, parts)))


def one_right(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
    """Tell completions apart for one prompt only."""
    return [
        share if prompt == ROWS[2]["prompt"] else 0.5 for prompt, share in zip(prompts, ones(completions), strict=True)
    ]


def test_groups_of_equal_rewards_are_replaced_by_groups_that_teach(tmp_path: Path):
    options = {"per_device_train_batch_size": 8, "num_iterations": 1}
    plain = trainer(tmp_path / "a", reward=one_right, **options)
    sampled = trainer(tmp_path / "b", reward=one_right, stp_dynamic_sampling=6, **options)
    for _ in range(3):
        before = plain.train_step()
        after = sampled.train_step()
        assert len(after.rollout) == len(before.rollout) == 8
        assert after.metrics["frac_reward_zero_std"] <= before.metrics["frac_reward_zero_std"]
        assert after.metrics["diffusion/replaced_groups"] > 0
        assert len(np.unique(after.rollout.uid)) == 8
        groups = after.rollout.group.reshape(2, 4)
        assert (groups == groups[:, :1]).all()
        assert groups[0, 0] != groups[1, 0]
    assert sampled.ledger.forwards["rollout"] > plain.ledger.forwards["rollout"], "extra batches are on the ledger"
    assert plain.ledger.completions == 24
    batches, rest = divmod(sampled.ledger.completions, 8)
    assert rest == 0
    assert 3 < batches <= 3 * 7, "all that were sampled, whether they were kept or not"


def test_anchors_are_made_for_every_prompt_that_extra_batches_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"prompt": f"{i // 4}{i % 4}"} for i in range(16)]
    made = trainer(
        tmp_path, reward=lambda completions, **_: [0.0] * len(completions), stp_dynamic_sampling=2, stp_rollouts=2
    )
    made.rows.dataset, made.rows.size = rows, len(rows)
    seen: set[int] = set()

    def spy(*arguments: Any) -> list[int]:
        picked = batch_indices(*arguments)
        seen.update(picked)
        return picked

    monkeypatch.setattr("stp_rs.data.rows.batch_indices", spy)
    for _ in range(2):
        made.train_step()
    assert len(seen) == 12, "two steps and two extra batches of each, two prompts in a batch"
    assert [rows.index(row) for row in made.rows_read()] == sorted(seen)


def test_a_batch_that_needs_no_replacement_is_left_alone(tmp_path: Path):
    def apart(completions: list[str], **_: Any) -> list[float]:
        return [float(i % 4) for i in range(len(completions))]

    plain = trainer(tmp_path / "a", reward=apart)
    sampled = trainer(tmp_path / "b", reward=apart, stp_dynamic_sampling=3)
    assert close(gradients_of_step(plain)[0], gradients_of_step(sampled)[0], tolerance=0.0)
    assert sampled.ledger.forwards == plain.ledger.forwards


def half(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
    return [0.5 if prompt == prompts[0] else share for prompt, share in zip(prompts, ones(completions), strict=True)]


def test_dropped_groups_leave_the_mean_and_the_kl(tmp_path: Path):
    options = {"num_iterations": 1, "max_grad_norm": 0.0}
    kept = trainer(tmp_path / "a", reward=half, **options)
    dropped = trainer(tmp_path / "b", reward=half, stp_zero_std="drop", **options)
    (one,), (other,) = gradients_of_step(kept), gradients_of_step(dropped)
    assert close([2 * g for g in one], other), "half of the rows: twice the weight"
    with spied("draw_masks") as draws:
        trainer(tmp_path / "c", reward=half, stp_zero_std="drop", beta=0.1, **options).train_step()
    assert sum(len(args[1]) for args, _, _ in draws) == 4


def test_kl_to_the_old_policy_makes_no_reference(tmp_path: Path):
    made = trainer(tmp_path, beta=0.5, stp_kl_target="old", num_iterations=2, learning_rate=3e-2)
    assert made.reference is None
    with spied("policy_loss") as losses:
        made.train_step()
    kls = [metrics["kl"] for _, _, (_, metrics) in losses]
    assert kls[0] == 0.0
    assert kls[1] > 0.0


def test_adapters_switched_off_are_the_reference():
    model = tiny()
    state = {"on": True}

    class Off:
        def __enter__(self) -> None:
            state["on"] = False

        def __exit__(self, *_: object) -> None:
            state["on"] = True

    seen: list[bool] = []
    hidden, head = model.hidden, model.head
    model.hidden = lambda *args: (seen.append(state["on"]), hidden(*args))[1]  # type: ignore[method-assign]
    model.head = lambda *args: (seen.append(state["on"]), head(*args))[1]  # type: ignore[method-assign]
    model.module.disable_adapter = Off
    reference = reference_policy(model)
    assert isinstance(reference, WithoutAdapters)
    ids = torch.tensor([[4, 1, 5]])
    logits = reference.head(reference.hidden(ids, None)[0])
    assert seen == [False, False]
    assert state["on"], "the policy has its adapters back"
    assert torch.equal(logits, model.head(model.hidden(ids, None)[0]))
    assert reference.module is model.module


def test_prompt_masks_hide_prompt_tokens_in_training_only(tmp_path: Path):
    made = trainer(tmp_path, preset="diffu_grpo", num_iterations=1, stp_prompt_mask=0.5)
    ids_seen: list[torch.Tensor] = []
    hidden = made.policy.hidden

    def counting(ids: torch.Tensor, lengths: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            ids_seen.append(ids.clone())
        return hidden(ids, lengths)

    made.policy.hidden = counting  # type: ignore[method-assign]
    with spied("mask_prompts") as masked:
        made.train_step()
    masks = masked[0][2]
    (ids,) = ids_seen
    batch = masked[0][0][1]
    for row, (length, canvas) in enumerate(zip(batch.prompt_length[masks.row_P], ids, strict=True)):
        expected = np.where(masks.prompt_PW[row] == 1, made.policy.mask_token_id, batch.prompt_ids[masks.row_P[row]])
        assert canvas[:length].tolist() == expected[:length].tolist()
        assert (canvas[length : length + LENGTH] == made.policy.mask_token_id).all()
    assert 0.2 < masks.prompt_PW.sum() / batch.prompt_length[masks.row_P].sum() < 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stp_truncate": "a"}, "stp_truncate: got 'a', needs LOW:HIGH"),
        ({"preset": "bgpo", "importance_sampling_level": "token"}, "needs importance_sampling_level sequence"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, **options)


def test_every_design_option_reaches_the_design(tmp_path: Path):
    made = trainer(tmp_path, preset="coupled_grpo")
    assert made.update.design.name == "coupled"
    assert make_design(made.args).num_mc == 3
    with spied("draw_masks") as draws:
        made.train_step()
    hidden = np.concatenate([m.mask_PL.reshape(-1, 3, LENGTH).sum(2) for _, _, m in draws])
    assert (hidden.max(1) == LENGTH).all(), "the odd pass hides everything"
    assert (hidden.sum(1) == 2 * LENGTH).all(), "and the pair hides each token once"


def test_prior_tokens_are_not_blamed_and_free_tokens_as_before(tmp_path: Path):
    """One forward of all free tokens, and a model whose priors are shown in every mask: the designs' masks agree."""
    template = Template({0: "[", LENGTH - 1: "]"}, tokenizer())
    options = {"stp_score_prior": True, "num_iterations": 1, "stp_negative_advantage_weight": 1.0}
    for preset in ("stp_spread", "diffu_grpo", "unigrpo", "spg"):
        seen = {}
        for blame in (True, False):
            folder = tmp_path / f"{preset}{blame}"
            made = trainer(folder, preset=preset, priors=[template], stp_blame_prior=blame, beta=0.0, **options)
            with spied("policy_loss") as losses:
                made.train_step()
            ((inputs, config), totals, (loss, _)) = losses[0]
            bad = inputs.advantages_R < 0
            assert 0 < int(bad.sum()) < len(bad)
            new = inputs.new_RL.detach().requires_grad_()
            again, _ = module.policy_loss(replace(inputs, new_RL=new), config, **totals)
            (push,) = torch.autograd.grad(again, new)
            seen[blame] = (bad, push, inputs.new_RL.detach())
            assert float(again.detach()) == pytest.approx(float(loss.detach()), abs=1e-6)
        bad, blamed, _ = seen[True]
        _, spared, estimate = seen[False]
        assert torch.allclose(blamed[~bad], spared[~bad])
        assert torch.allclose(blamed[:, 1 : LENGTH - 1], spared[:, 1 : LENGTH - 1], atol=1e-6), preset
        assert (estimate[bad][:, [0, LENGTH - 1]] == 0).all(), "constant: no gradient reaches the policy from here"


@pytest.mark.parametrize("preset", ["grpo", "trace", "stp"])
def test_tokens_that_truncation_filled_in_are_not_scored(preset: str, tmp_path: Path):
    options = {"stp_eos": "truncate", "num_iterations": 3, "learning_rate": 0.0, "pruning": "none"}
    made = trainer(tmp_path, preset=preset, **options)
    with spied("policy_loss") as losses, spied("draw_masks") as drawn:
        rollout = made.train_step().rollout
    assert (rollout.unmask_step == Mark.UNDRAWN).any()
    rows = drawn[0][0][1].unmask_step == Mark.UNDRAWN
    assert rows.any()
    for _, _, masks in drawn:
        if masks.mask_PL.shape[1] == rows.shape[1] and len(masks.scored_RL) == len(rows):
            assert (masks.mask_PL[rows[masks.row_P]] == 1).all(), "no token that was drawn ever saw them"
            assert (masks.weight_PL[rows[masks.row_P]] == 0).all()
    for (inputs, *_), _, (_, metrics) in losses:
        assert (inputs.scored_RL.numpy()[rows] == 0).all()
        assert float((inputs.new_RL.detach() - inputs.old_RL).abs().max()) < 1e-5
        assert abs(metrics["diffusion/ratio_max"] - 1) < 1e-5


def test_masked_prompts_are_another_state_than_the_recorded_one(tmp_path: Path):
    made = trainer(tmp_path, preset="grpo", stp_prompt_mask=0.5, num_iterations=2, learning_rate=0.0)
    with spied("policy_loss") as losses:
        made.train_step()
    assert all(abs(metrics["diffusion/ratio_max"] - 1) < 1e-6 for _, _, (_, metrics) in losses)


def test_bfloat16_sees_the_weights_of_every_update(tmp_path: Path):
    """Autocast keeps casts of the weights for as long as its context lasts; an optimiser step must outdate them."""
    model = tiny()
    linear = {id(p) for m in model.module.modules() if isinstance(m, torch.nn.Linear) for p in m.parameters()}
    embedded = {id(p) for m in model.module.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
    for parameter in model.module.parameters():
        parameter.requires_grad_(id(parameter) in linear - embedded)
    made = trainer(tmp_path, model, preset="grpo", num_iterations=2, learning_rate=5e-2, bf16=True)
    with spied("policy_loss") as losses:
        made.train_step()
    first, second = (args[0].new_RL.detach() for args, _, _ in losses)
    assert float((second - first).abs().max()) > 1e-2


def test_constant_memory_bounds_passes_without_gradient_too(tmp_path: Path):
    made = trainer(tmp_path, preset="bgpo", num_iterations=2, stp_constant_memory=True, beta=0.1)
    sizes: list[int] = []
    for model in (made.policy, made.reference):
        hidden = model.hidden

        def counting(ids: torch.Tensor, lengths: Any, hidden: Any = hidden) -> torch.Tensor:
            sizes.append(len(ids))
            return hidden(ids, lengths)

        model.hidden = counting
    with minibatches_seen() as taken:
        made.train_step()
    assert max(sizes) <= max(8, *(len(batch) for batch in taken))
