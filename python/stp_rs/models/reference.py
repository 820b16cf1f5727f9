"""The reference of a KL term: the policy as it was before RL, at no cost in memory where few parameters are trained."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from stp_rs.models.acceleration import adapter_layers, adapters_off, has_other_parts
from stp_rs.models.base import BlockCausalModel, DiffusionModel


class WithoutAdapters:
    """A `DiffusionModel` that is the policy with its adapters (LoRA of peft) switched off during each call."""

    def __init__(self, policy: DiffusionModel) -> None:
        self.policy = policy
        self.module: nn.Module = policy.module
        self._layers = [] if has_other_parts(self.module) else adapter_layers(self.module)

    def __getattr__(self, name: str) -> Any:
        """Return the policy's trait of this name."""
        return getattr(self.policy, name)

    def _as_before(self) -> contextlib.AbstractContextManager[None]:
        return adapters_off(self.module, self._layers)

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return the hidden states [B, S, H] before RL."""
        with self._as_before():
            return self.policy.hidden(ids_BS, lengths_B)

    def hidden_pair(self, noisy_BS: Tensor, clean_BS: Tensor, lengths_B: Tensor | None, start: int = 0) -> Tensor:
        """Return the hidden states [B, S, H] of a doubled canvas before RL, of a block-causal policy."""
        with self._as_before():
            return cast(BlockCausalModel, self.policy).hidden_pair(noisy_BS, clean_BS, lengths_B, start)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return the logits [N, V] before RL."""
        with self._as_before():
            return self.policy.head(hidden_NH)


class WithParametersOf(WithoutAdapters):
    """A `DiffusionModel` that is the policy with its trained parameters as they were when this was made.

    It keeps a copy of the parameters that require a gradient, and of no others: of adapters that were trained before,
    or of a few layers. They take the places of today's during each call, which must be without gradient.
    """

    def __init__(self, policy: DiffusionModel) -> None:
        super().__init__(policy)
        trained = [p for p in policy.module.parameters() if p.requires_grad]
        self.kept = {p: nn.Parameter(p.detach().clone(), requires_grad=False) for p in trained}
        self._places = [  # a tied parameter has several
            (owner, name, self.kept[p])
            for owner in policy.module.modules()
            for name, p in owner.named_parameters(recurse=False, remove_duplicate=False)
            if p.requires_grad
        ]

    @contextlib.contextmanager
    def _as_before(self) -> Iterator[None]:
        if torch.is_grad_enabled():
            raise RuntimeError("a KL reference is called with gradients on; call it under torch.no_grad")
        now = [getattr(owner, name) for owner, name, _ in self._places]  # adapters may be cast ones (`adapters_cast`)
        try:
            for owner, name, before in self._places:
                setattr(owner, name, before)
            yield
        finally:
            for (owner, name, _), parameter in zip(self._places, now, strict=True):
                setattr(owner, name, parameter)


def reference_policy(model: DiffusionModel, *, moves: bool = False, copies: bool = False) -> DiffusionModel:
    """Return the reference policy of a KL term: what the policy computes now, whatever it learns later.

    Adapters that still add nothing are switched off; where only a part of the parameters is trained that part is kept;
    a policy that trains all of its own is copied. One that `moves` (`move_reference`) always keeps what is trained; one
    that `copies` (its weights are to be shared out) keeps all or nothing.
    """
    module = model.module
    if not moves and callable(getattr(module, "disable_adapter", None)) and not _adapters_add(module):
        return WithoutAdapters(model)
    parameters = list(module.parameters())
    if not copies and not all(p.requires_grad for p in parameters):
        return WithParametersOf(model)
    copied = copy.deepcopy(model)
    copied.module.eval().requires_grad_(False)
    return copied


def reference_parameters(reference: DiffusionModel) -> dict[str, Tensor]:
    """Return the parameters that a reference keeps of its own, by name; writing into them moves the reference."""
    if isinstance(reference, WithParametersOf):
        names = [name for name, parameter in reference.module.named_parameters() if parameter.requires_grad]
        return dict(zip(names, (before.data for before in reference.kept.values()), strict=True))
    return {name: parameter.data for name, parameter in reference.module.named_parameters()}


def move_reference(reference: DiffusionModel, policy: DiffusionModel, share: float) -> None:
    """Make the reference (1 - share) of itself and `share` of the policy (TR-DPO, arXiv 2404.09656; TRL's alpha)."""
    now = dict(policy.module.named_parameters())
    for name, before in reference_parameters(reference).items():
        before.mul_(1.0 - share).add_(now[name].data, alpha=share)


def _adapters_add(module: nn.Module) -> bool:
    """Return whether adapters of peft change what the network computes; True where that is not plain to see."""
    if not hasattr(module, "peft_config"):
        return False
    layers = adapter_layers(module)
    plain = layers and not has_other_parts(module)
    return not plain or any(bool(weight.any()) for layer in layers for weight in layer.lora_B.parameters())
