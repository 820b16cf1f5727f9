"""On a device: the same numbers as on the CPU; on CUDA through pinned buffers. The CPU plays the device in CI."""

import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import stp_rs
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.rollout.logits import reduce_logits
from stp_rs.rollout.loop import Cohort
from stp_rs.rollout.params import check_allowed
from tests.devices import DEVICES, MARKS
from tests.fixtures import LENGTH, ROWS, tiny, tokenizer, trainer
from tests.unit.test_padding import careless
from tests.unit.test_padding import roll as roll_ragged

pytestmark = MARKS
SAMPLER = stp_rs.Unmasking(LENGTH, selection="threshold:0.2:2", temporal="entropy:4", block_length=3)
LAWS = [stp_rs.GREEDY, stp_rs.SamplingParams(), stp_rs.SamplingParams(0.7, top_k=5, top_p=0.9)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def both(device: torch.device) -> tuple[MaskedLMAdapter, MaskedLMAdapter]:
    """Return one policy on the CPU and on the device."""
    here = tiny(layers=2)
    return here, MaskedLMAdapter(copy.deepcopy(here.module).to(device), tokenizer())


def roll(model: MaskedLMAdapter, law: stp_rs.SamplingParams, **options) -> stp_rs.Rollout:
    batch = stp_rs.encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS))).repeat(4, step=0)
    return stp_rs.generate(model, batch, SAMPLER, completion_length=LENGTH, sampling=law, seed=3, **options)


def same(left: stp_rs.Rollout, right: stp_rs.Rollout) -> None:
    for name in ("token_ids", "unmask_step", "nfe", "stop_reason"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name
    assert np.allclose(left.logprob, right.logprob, atol=1e-4)


@pytest.mark.parametrize("vocab", [30, 5000])
@pytest.mark.parametrize("law", LAWS)
def test_the_reduction_is_the_cpus(law: stp_rs.SamplingParams, vocab: int, device: torch.device):
    draw = torch.Generator().manual_seed(0)
    logits, uniforms = torch.randn(300, vocab, generator=draw) * 3, torch.rand(300, generator=draw)
    here = reduce_logits(logits, uniforms, law, mask_token_id=3)
    there = reduce_logits(logits.to(device), uniforms.to(device), law, mask_token_id=3)
    assert there.device.type == device.type
    drawn_alike = here[:, 0] == there.cpu()[:, 0]
    assert drawn_alike.float().mean() > 0.99, "but where a uniform meets the edge of a token"
    assert torch.allclose(here[drawn_alike], there.cpu()[drawn_alike], atol=1e-4)


@pytest.mark.parametrize("law", LAWS)
def test_a_rollout_is_the_cpus_and_is_replayed(law: stp_rs.SamplingParams, device: torch.device):
    here, there = both(device)
    rollout = roll(there, law)
    same(rollout, roll(here, law))
    assert np.allclose(stp_rs.replay_logprobs(there, rollout, law), rollout.logprob, atol=1e-4)


@pytest.mark.parametrize("slots", [5, 64])
def test_slots_change_nothing(slots: int, device: torch.device):
    _, there = both(device)
    same(roll(there, stp_rs.SamplingParams(), slots=slots), roll(there, stp_rs.SamplingParams()))


def test_the_buffers_of_a_call_are_pinned_on_cuda(device: torch.device):
    _, there = both(device)
    batch = stp_rs.encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS)))
    scheduler = stp_rs._core.RolloutScheduler(mask_token_id=there.mask_token_id, pad_token_id=0, slots=4, seed=0)
    lengths = np.full(len(ROWS), LENGTH, dtype=np.int32)
    scheduler.submit(batch.uid, batch.prompt_ids, batch.prompt_length, lengths, SAMPLER)
    allowed = torch.ones((LENGTH, len(tokenizer())), dtype=torch.bool)
    law = check_allowed(stp_rs.SamplingParams(allowed=allowed), there.mask_token_id, device)
    cohort = Cohort(there, scheduler, law, 4, LENGTH)
    for buffer in (cohort._ids, cohort._lengths, cohort._at, cohort._uniforms, cohort._places, cohort._packed):
        assert buffer.is_pinned() is (device.type == "cuda")
    assert cohort._reduced.device.type == device.type
    assert (cohort._reduced is cohort._packed) is (device.type == "cpu")


@pytest.mark.parametrize("design", ["cover", "systematic", "trajectory", "state", "canvas", "decision", "step_merge"])
def test_estimates_and_their_gradients_are_the_cpus(design: str, device: torch.device):
    here, there = both(device)
    rollout = roll(here, stp_rs.SamplingParams())
    masks = stp_rs.draw_masks(stp_rs.Design(design, 2), rollout, seed=0)
    estimates, norms = [], []
    for model in (here, there):
        model.module.eval()
        estimate = stp_rs.token_elbo(model, rollout, masks)
        estimate.sum().backward()
        estimates.append(estimate.detach().cpu())
        norms.append(torch.cat([p.grad.flatten().cpu() for p in model.module.parameters() if p.grad is not None]))
    assert torch.allclose(*estimates, atol=1e-3)
    assert torch.allclose(*norms, atol=1e-2, rtol=1e-2)


PATHS: dict[str, dict[str, Any]] = {
    "stp": {},
    "random masks": {"preset": "stp_spread"},
    "a group's shared canvas": {"preset": "stp_canvas"},
    "the rollout's own numbers": {"preset": "grpo"},
    "many masked prompts": {"preset": "diffu_grpo", "num_iterations": 3},
    "constant memory": {"preset": "elbo", "num_mc": 4, "stp_constant_memory": True},
    "activation checkpointing": {"gradient_checkpointing": True},
    "prefix cache": {"block_length": 3, "stp_rollout_cache": "prefix"},
    "dual cache": {"block_length": 3, "stp_rollout_cache": "dual"},
    "no cap": {"block_length": 3, "stp_rollout_cache": "dual", "stp_rollout_cap": None},
    "first forward": {"stp_spatial": "first_forward", "stp_keep": 0.3},
}


@pytest.mark.parametrize("path", PATHS)
def test_a_training_step_is_the_cpus(path: str, tmp_path: Path, device: torch.device):
    here, there = both(device)
    generators = states_of_generators(device)
    options = {"pruning": "stp", "beta": 0.1, "num_iterations": 2, "bf16": False}  # a card's default is another
    chosen = {**options, **PATHS[path]}
    steps = [
        trainer(tmp_path / name, model, stp_device=where, **chosen).train_step().metrics
        for name, model, where in (("here", here, "cpu"), ("there", there, device.type))
    ]
    for name in ("loss", "reward", "diffusion/nfe"):
        assert steps[0][name] == pytest.approx(steps[1][name], abs=1e-3), name
    pairs = zip(here.module.parameters(), there.module.parameters(), strict=True)
    assert all(q.device.type == device.type and torch.allclose(p.cpu(), q.cpu(), atol=1e-3) for p, q in pairs)
    assert all(map(torch.equal, states_of_generators(device), generators))


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_rollout_with_old_keys_and_values_is_the_cpus(cache: Literal["prefix", "dual"], device: torch.device):
    here, there = both(device)
    batch = stp_rs.encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS))).repeat(4, step=0)
    unmasking, batching = stp_rs.Unmasking(LENGTH, block_length=3), stp_rs.Batching(cache=cache)
    found = [
        stp_rs.generate(model, batch, unmasking, completion_length=LENGTH, seed=3, batching=batching)
        for model in (here, there)
    ]
    same(*found)
    assert found[0].stats["tokens"] == found[1].stats["tokens"]


def test_pads_are_hidden_from_a_model_that_ignores_its_mask(device: torch.device):
    model = careless()
    there = MaskedLMAdapter(model.module.to(device), tokenizer())
    assert there.masks_pads
    together, calls = roll_ragged(there)
    alone, _ = roll_ragged(there, slots=1)
    assert calls["calls"] == 3
    assert np.array_equal(together.token_ids, alone.token_ids)
    assert np.allclose(together.logprob, alone.logprob, atol=1e-4)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_rounded_rollouts_are_corrected(precision: str, tmp_path: Path, device: torch.device):
    pytest.importorskip("torchao", reason="torchao is not installed")
    if precision == "fp8" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)):
        pytest.skip("fp8 needs a card that computes in it")
    _, there = both(device)
    bf16 = device.type == "cuda"
    made = trainer(tmp_path, there, stp_device=device.type, stp_rollout_precision=precision, bf16=bf16)
    before = [p.detach().clone() for p in there.module.parameters()]
    rollout = made.train_step().metrics
    assert 0 < rollout["sampling/sampling_logp_difference/mean"] < 0.5
    assert all(p.dtype == q.dtype for p, q in zip(there.module.parameters(), before, strict=True))


def states_of_generators(device: torch.device) -> list[torch.Tensor]:
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state().clone(), *cuda]
