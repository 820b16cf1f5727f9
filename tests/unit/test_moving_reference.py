"""A KL reference that follows the policy: what is kept, and what a move makes of it."""

import contextlib
import copy
from typing import Any

import pytest
import torch

from stp_rs.models.acceleration import adapters_ready
from stp_rs.models.masked_lm import MaskedLMAdapter, as_diffusion_model
from stp_rs.models.reference import WithParametersOf, move_reference, reference_parameters, reference_policy
from tests.fixtures import tiny, tokenizer

IDS = torch.tensor([[4, 1, 5, 1]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.head(model.hidden(IDS, None)[0]).clone()


def stirred(model: Any, by: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("part", [False, True], ids=["all parameters", "some parameters"])
def test_a_reference_moves_by_its_share(part: bool):
    """The reference after a move is the policy whose trained parameters are the mixture, and the policy stays."""
    model = tiny()
    model.module.eval()
    if part:
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_("attention" in name)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    reference = reference_policy(model, moves=True)
    assert isinstance(reference, WithParametersOf) == part
    start = logits(reference)
    stirred(model, 0.3)
    policy = logits(model)
    assert torch.equal(logits(reference), start)
    move_reference(reference, model, 0.25)
    assert torch.equal(logits(model), policy), "the policy stays"
    mixed = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in mixed.module.named_parameters():
            parameter.copy_(0.75 * before[name] + 0.25 * parameter)
    assert torch.allclose(logits(reference), logits(mixed), atol=1e-6)
    assert not torch.allclose(logits(reference), start, atol=1e-3)
    move_reference(reference, model, 1.0)
    assert torch.allclose(logits(reference), policy, atol=1e-6)
    trained = [name for name, p in model.module.named_parameters() if p.requires_grad]
    assert list(reference_parameters(reference)) == trained


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_are_kept_where_the_reference_moves():
    peft = pytest.importorskip("peft", reason="the peft extra is not installed")
    adapters = peft.LoraConfig(r=2, target_modules=["query", "value"])
    model = as_diffusion_model(peft.get_peft_model(tiny().module, adapters), tokenizer())
    assert not isinstance(reference_policy(model), WithParametersOf), "switched off, they cost nothing"
    reference = reference_policy(model, moves=True)
    assert isinstance(reference, WithParametersOf)
    assert all("lora" in name for name in reference_parameters(reference))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("cast", [False, True])
def test_a_reference_of_trained_adapters_is_the_start_whether_they_are_cast_or_not(cast: bool):
    """What is cast for passes without gradient is another parameter, in whose place the one from before is put."""
    peft = pytest.importorskip("peft", reason="the peft extra is not installed")
    module = peft.get_peft_model(tiny().module, peft.LoraConfig(r=4, target_modules=["query", "value"])).eval()
    adapters = [p for name, p in module.named_parameters() if "lora_" in name]
    policy = MaskedLMAdapter(module, tokenizer())
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        start = policy.hidden(IDS, None)
        reference = reference_policy(policy, moves=True)
        for parameter in adapters:
            parameter.mul_(-3.0)
        kept = list(module.parameters())
        with adapters_ready(module) if cast else contextlib.nullcontext():
            assert torch.equal(reference.hidden(IDS, None), start)
            assert not torch.equal(policy.hidden(IDS, None), start)
    assert all(a is b for a, b in zip(module.parameters(), kept, strict=True))


def test_a_tied_parameter_of_the_reference_is_put_everywhere():
    policy = tiny(layers=2)
    a, b = [part for part in policy.module.modules() if isinstance(part, torch.nn.Linear)][:2]
    b.weight = a.weight
    a.register_parameter("again", a.weight)
    for parameter in policy.module.parameters():
        parameter.requires_grad_(parameter is a.weight)
    before = logits(policy)
    reference = reference_policy(policy)
    stirred(policy, 1.0)
    with torch.no_grad(), reference._as_before():
        assert a.weight is b.weight is a.again
    assert torch.equal(logits(reference), before)
    assert not torch.equal(logits(policy), before)
