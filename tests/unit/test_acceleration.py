"""Cheaper passes of the same policy: what they leave as it was, and by how much their numbers differ."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stp_rs
from stp_rs.models import acceleration
from stp_rs.models.masked_lm import MaskedLMAdapter
from tests.fixtures import LENGTH, ROWS, tiny, tokenizer, trainer

# peft reads a name that transformers has since given another one; dynamo looks at the gradients of what is no leaf
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
peft = pytest.importorskip("peft", reason="the peft extra is not installed")
IDS = torch.tensor([[5, 1, 6, 4, 7, 1], [8, 1, 1, 4, 5, 9], [4, 4, 1, 6, 1, 1]])

BF16_GAP = 0.05
"""Largest difference in nats between a log-prob that a bf16 policy recorded and its replay, which batches the same
states in another way, compiled or not: some units in the last place of bf16 logits of this size."""


def adapted(dtype: torch.dtype = torch.float32, *, layers: int = 2, scale: float = 0.05) -> MaskedLMAdapter:
    """Return the tests' policy in a type with fp32 LoRA whose B is not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = tiny(layers=layers).module.to(dtype)
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value", "dense"])
        module = peft.get_peft_model(base, config)
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0.0, scale)
            if "lora_" in name:
                parameter.data = parameter.data.float()
    return MaskedLMAdapter(module.eval(), tokenizer())


def bits(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def same_bits(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(p.dtype == before[n].dtype and torch.equal(p, before[n]) for n, p in module.named_parameters())


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


def test_casting_adapters_once_changes_no_bit_of_an_autocast_pass():
    model = adapted(torch.bfloat16)
    before = bits(model.module)
    with torch.no_grad(), bf16():
        plain = model.hidden(IDS, None)
        with acceleration.adapters_ready(model.module):
            kinds = {p.dtype for n, p in model.module.named_parameters() if "lora_" in n}
            ready = model.hidden(IDS, None)
    assert kinds == {torch.bfloat16}
    assert torch.equal(plain, ready)
    assert same_bits(model.module, before)


def test_without_autocast_nothing_is_cast():
    model = adapted()
    with acceleration.adapters_ready(model.module):
        assert {p.dtype for p in model.module.parameters()} == {torch.float32}
        assert not model.hidden(IDS, None).requires_grad


def test_a_pass_with_gradient_is_refused_and_a_failing_one_puts_the_weights_back():
    model = adapted()
    before = bits(model.module)
    with pytest.raises(RuntimeError, match="no_grad"), acceleration.adapters_cast(model.module, torch.bfloat16):
        pass
    for context in (
        acceleration.adapters_cast(model.module, torch.bfloat16),
        acceleration.adapters_merged(model.module),
    ):
        with torch.no_grad(), contextlib.suppress(ZeroDivisionError), context:
            _ = 1 // 0
    assert same_bits(model.module, before)
    assert not any(layer._disable_adapters for layer in acceleration.adapter_layers(model.module))


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_many_times_leaves_every_bit(host: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    if host:
        monkeypatch.setattr(acceleration, "free_bytes", lambda _device: 0.0)
    model = adapted(dtype)
    before, places = bits(model.module), [p.data_ptr() for p in model.module.parameters()]
    with torch.no_grad(), bf16():
        first = model.hidden(IDS, None)
        for _ in range(50):
            with acceleration.adapters_merged(model.module):
                merged = model.hidden(IDS, None)
        assert torch.equal(model.hidden(IDS, None), first)
    assert same_bits(model.module, before)
    assert [p.data_ptr() for p in model.module.parameters()] == places
    assert torch.allclose(merged.float(), first.float(), atol=0.1)


def test_merged_weights_are_the_adapters_up_to_rounding():
    model = adapted()
    with torch.no_grad():
        plain = model.hidden(IDS, None)
        with acceleration.adapters_merged(model.module):
            merged = model.hidden(IDS, None)
        with model.module.disable_adapter():
            base = model.hidden(IDS, None)
    assert torch.allclose(plain, merged, atol=1e-5)
    assert not torch.allclose(plain, base, atol=1e-2)


def test_a_small_change_is_lost_in_merged_bf16_weights():
    model = adapted(torch.bfloat16, scale=1e-6)
    with torch.no_grad(), bf16(), acceleration.adapters_merged(model.module):
        changed = [layer.get_base_layer().weight for layer in acceleration.adapter_layers(model.module)]
        same = [float((w == b).float().mean()) for w, b in zip(changed, base_weights(model), strict=True)]
    assert min(same) > 0.99, "this is what stp_rollout_weights: merged gives away"


def base_weights(model: MaskedLMAdapter) -> Iterator[torch.Tensor]:
    fresh = adapted(torch.bfloat16, scale=1e-6)
    yield from (layer.get_base_layer().weight for layer in acceleration.adapter_layers(fresh.module))


def test_adapters_off_is_the_base_and_leaves_gradients_alone():
    model = adapted()
    wanted = [p.requires_grad for p in model.module.parameters()]
    with torch.no_grad():
        with model.module.disable_adapter():
            base = model.hidden(IDS, None)
        with acceleration.adapters_off(model.module):
            ours = model.hidden(IDS, None)
            inside = [p.requires_grad for p in model.module.parameters()]
    assert torch.equal(ours, base)
    assert inside == wanted == [p.requires_grad for p in model.module.parameters()]


class Compiler:
    """Counts what torch.compile hands to a backend."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_share_a_graph_and_a_shrinking_batch_is_not_compiled_anew():
    model, compiler = adapted(layers=3), Compiler()
    names = list(model.module.state_dict())
    with torch.no_grad():
        plain = model.hidden(IDS, None)
        assert acceleration.compile_blocks(model.module, backend=compiler) == 3
        assert torch.allclose(model.hidden(IDS, None), plain, atol=1e-5)
        once = compiler.graphs
        for rows, width in ((2, 6), (3, 5), (2, 4), (3, 6)):
            model.hidden(IDS[:rows, :width], None)
        assert compiler.graphs == once
        with acceleration.adapters_off(model.module):
            model.hidden(IDS, None)
        model.hidden(IDS, None)
    assert once < 3, "three blocks, one graph (or its parts)"
    assert list(model.module.state_dict()) == names
    acceleration.uncompile_blocks(model.module)
    assert not acceleration.is_compiled(model.module)


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiler_that_fails_leaves_the_blocks_and_one_line_of_log(caplog: pytest.LogCaptureFixture):
    def broken(_graph: Any, _inputs: Any) -> Any:
        raise NotImplementedError("no such card")

    model = adapted()
    with caplog.at_level(logging.WARNING, logger="stp_rs"):
        assert (
            acceleration.compile_blocks(model.module, backend=broken, probe=lambda: acceleration.first_pass(model)) == 0
        )
    assert len([r for r in caplog.records if r.name.startswith("stp_rs")]) == 1
    assert not acceleration.is_compiled(model.module)
    with torch.no_grad():
        model.hidden(IDS, None)


def test_auto_compiles_large_policies_on_a_gpu_only():
    module = tiny().module
    assert not acceleration.wants_compiled(module, "auto")
    assert acceleration.wants_compiled(module, "blocks")
    assert not acceleration.wants_compiled(module, "none")


def recorded_and_replayed(model: MaskedLMAdapter) -> np.ndarray:
    """Return |recorded - replayed| in nats of every drawn token, the replay in batches of another size."""
    batch = stp_rs.encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS))).repeat(4, step=0)
    law = stp_rs.SamplingParams(0.9)
    device = next(model.module.parameters()).device.type
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, cache_enabled=False):
        rollout = stp_rs.generate(model, batch, stp_rs.Unmasking(3), completion_length=LENGTH, sampling=law, seed=1)
        again = stp_rs.replay_logprobs(model, rollout, law, forward_batch_size=7)
    return np.abs(rollout.logprob - again)[rollout.unmask_step >= 0]


def test_a_bf16_record_and_its_replay_agree():
    gap = recorded_and_replayed(adapted(torch.bfloat16))
    assert gap.max() < BF16_GAP


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_what_compiled_blocks_record_they_replay_and_plain_ones_nearly():
    model = adapted(torch.bfloat16)
    with torch.no_grad(), bf16():
        plain = model.head(model.hidden(IDS, None)[0]).float().log_softmax(-1)
        acceleration.compile_blocks(model.module, probe=lambda: acceleration.first_pass(model))
        compiled = model.head(model.hidden(IDS, None)[0]).float().log_softmax(-1)
    assert float((plain - compiled).abs().max()) < BF16_GAP
    assert recorded_and_replayed(model).max() < BF16_GAP


@pytest.mark.parametrize("weights", ["adapters", "merged"])
def test_the_ratio_is_one_at_the_first_inner_step_in_bf16(weights: str, tmp_path: Path):
    made = trainer(
        tmp_path, adapted(torch.bfloat16).module, bf16=True, num_iterations=1, beta=0.1, stp_rollout_weights=weights
    )
    before = bits(made.model)
    metrics = made.train_step().metrics
    assert abs(metrics["diffusion/ratio_max"] - 1) < 1e-6
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert all("lora_" in name for name in moved)


def test_adapters_are_stored_in_the_type_that_is_asked_for(tmp_path: Path):
    made = trainer(tmp_path, adapted().module, stp_adapter_dtype="bfloat16", bf16=True)
    made.train_step()
    assert {p.dtype for n, p in made.model.named_parameters() if "lora_" in n} == {torch.bfloat16}


@pytest.mark.usefixtures("fresh_compiler")
def test_a_trainer_compiles_where_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr("stp_rs.train.trainer.compile_blocks", lambda module, probe: seen.append(module))
    made = trainer(tmp_path, stp_compile="blocks", beta=0.1)
    assert made.reference is not None
    assert seen == [made.model, made.reference.module]
