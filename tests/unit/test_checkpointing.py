"""Activation checkpointing keeps few bytes, with the same gradients, whether or not the model has dropout."""

from typing import Any

import pytest
import torch
from torch import nn

from stp_rs import SamplingParams
from stp_rs.models import base
from stp_rs.models.base import passes_without_dropout
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.objective import head
from tests.fixtures import tiny, tokenizer

IDS = torch.randint(4, 10, (8, 24), generator=torch.Generator().manual_seed(0))


def kept_and_gradients(policy: MaskedLMAdapter) -> tuple[int, list[torch.Tensor]]:
    """Return the bytes that a pass keeps for its backward pass, and the gradients."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in policy.module.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    policy.module.zero_grad()
    with passes_without_dropout(policy.module), torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        hidden = policy.hidden(IDS, None)
        kept = sum(storages.values())
        policy.head(hidden[:, :2].flatten(0, 1)).square().sum().backward()
    return kept, [p.grad.clone() for p in policy.module.parameters() if p.grad is not None]


def by_option(policy: MaskedLMAdapter) -> None:
    policy.gradient_checkpointing = True


def by_transformers(policy: MaskedLMAdapter) -> None:
    newer = getattr(policy.module, "activation_checkpointing_enable", None)
    (newer or policy.module.gradient_checkpointing_enable)()


@pytest.mark.parametrize("switch", [by_option, by_transformers])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_keep_a_fraction_of_the_bytes(switch: Any, dropout: float):
    plain, policy = tiny(layers=4, dropout=dropout), tiny(layers=4, dropout=dropout)
    switch(policy)
    before, gradients = kept_and_gradients(plain)
    after, same = kept_and_gradients(policy)
    assert after < before / 4, f"{before} bytes before, {after} after"
    assert len(same) == len(gradients)
    assert all(torch.equal(a, b) for a, b in zip(same, gradients, strict=True))
    assert policy.module.training is plain.module.training


def test_passes_without_gradient_recompute_nothing():
    policy = tiny(layers=2)
    policy.gradient_checkpointing = True
    calls = []
    policy.module.bert.encoder.layer[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        policy.hidden(IDS, None)
    assert calls == [1]


class Experts(nn.Module):
    """Two experts, as in code after DeepSeek's: without gradient outside of training mode."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.drop = nn.Dropout(0.9)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            return hidden + self.drop(sum(expert(hidden) for expert in self.experts))
        return self.moe_infer(hidden)

    @torch.no_grad()
    def moe_infer(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + sum(expert(hidden) for expert in self.experts)


def test_experts_that_infer_without_gradient_get_theirs_and_dropout_stays_off():
    module = tiny().module
    module.bert.encoder.layer[0].output.dense = nn.Sequential(module.bert.encoder.layer[0].output.dense, Experts(16))
    policy = MaskedLMAdapter(module, tokenizer())
    with passes_without_dropout(module):
        first, again = (policy.hidden(IDS, None) for _ in range(2))
        first.square().sum().backward()
    assert torch.equal(first, again)
    experts = [p for name, p in module.named_parameters() if ".experts." in name]
    assert len(experts) == 4
    assert all(p.grad is not None and bool(p.grad.any()) for p in experts)
    with torch.no_grad(), passes_without_dropout(module):
        assert torch.allclose(policy.hidden(IDS, None), first, atol=1e-6), "rollouts follow the same law"


@pytest.mark.parametrize("elements", [60, 1 << 24])
def test_slopes_of_a_frozen_head_flow_through_recomputed_blocks(elements: int, monkeypatch: pytest.MonkeyPatch):
    """The head's part of the gradient is made in the forward pass, that of the blocks by computing them again."""
    sloped, inner = [], head._slopes
    monkeypatch.setattr(base, "HEAD_ELEMENTS", elements)
    monkeypatch.setattr(head, "_slopes", lambda *given: sloped.append(1) or inner(*given))
    found = []
    for switched in (False, True):
        policy = tiny(layers=3)
        for name, parameter in policy.module.named_parameters():
            parameter.requires_grad_(".layer." in name or "layers." in name)
        policy.gradient_checkpointing = switched
        hidden = policy.hidden(IDS, None)[:, :5].flatten(0, 1)
        targets, places = torch.full((len(hidden),), 5), torch.arange(len(hidden))
        logprobs = head.head_logprobs(policy, hidden, targets, SamplingParams(), (places, 5))
        (logprobs.squeeze(-1) * torch.linspace(-1, 1, len(hidden))).sum().backward()
        found.append([p.grad.clone() for p in policy.module.parameters() if p.grad is not None])
    assert len(sloped) >= (2 if elements > 60 else 4)
    assert len(found[0]) == len(found[1]) > 10
    assert all(torch.equal(plain, again) for plain, again in zip(*found, strict=True))
    assert any(gradient.any() for gradient in found[0])
