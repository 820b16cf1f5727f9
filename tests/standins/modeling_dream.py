"""A stand-in for Dream: `AutoModel`, a mask of four dimensions or the word "full", logits one row early."""

import torch
from torch import nn
from transformers.modeling_outputs import MaskedLMOutput

from .common import Backbone, Small, SmallConfig
from .parts import positions_of


class StandInDreamConfig(SmallConfig):
    """Dream's model type."""

    model_type = "Dream"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class StandInDream(Small):
    """Dream's signature."""

    config_class = StandInDreamConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        cache_position=None,
        num_logits_to_keep=0,
        **loss_kwargs,
    ):
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) else None
        if mask is not None and mask.dim() != 4:
            raise ValueError(f"attention_mask: got {mask.dim()} dimensions, needs 4")
        x = self.model.embed(input_ids)
        at = positions_of(input_ids) if position_ids is None else position_ids
        for layer in self.model.layers:
            x = layer(x, at, mask)
        return MaskedLMOutput(logits=self.lm_head(self.model.norm(x)[:, -num_logits_to_keep:, :]))
