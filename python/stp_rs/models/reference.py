"""The reference of a KL term: the policy before RL, at no cost in memory where it trains adapters."""

import copy

from torch import Tensor, nn

from stp_rs.models.acceleration import adapter_layers, adapters_off, has_other_parts
from stp_rs.models.base import DiffusionModel


class WithoutAdapters:
    """A `DiffusionModel` that is the policy with its adapters (LoRA of peft) switched off during each call."""

    def __init__(self, policy: DiffusionModel) -> None:
        self.policy = policy
        self.module: nn.Module = policy.module
        self.mask_token_id, self.pad_token_id = policy.mask_token_id, policy.pad_token_id
        self.eos_token_id, self.logit_shift = policy.eos_token_id, policy.logit_shift
        self.respects_padding = policy.respects_padding
        self._layers = [] if has_other_parts(self.module) else adapter_layers(self.module)

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return the base model's hidden states [B, S, H]."""
        with adapters_off(self.module, self._layers):
            return self.policy.hidden(ids_BS, lengths_B)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return the base model's logits [N, V]."""
        with adapters_off(self.module, self._layers):
            return self.policy.head(hidden_NH)


def reference_policy(model: DiffusionModel) -> DiffusionModel:
    """Return the policy as it is now, for good: with adapters switched off where it has some, else a frozen copy."""
    if callable(getattr(model.module, "disable_adapter", None)):
        return WithoutAdapters(model)
    copied = copy.deepcopy(model)
    copied.module.eval().requires_grad_(False)
    return copied
