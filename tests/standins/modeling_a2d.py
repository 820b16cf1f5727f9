"""A stand-in for A2D: Qwen with a bidirectional mask of two dimensions, head and embedding tied."""

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from .common import Backbone, Small, SmallConfig
from .parts import positions_of


class StandInA2DConfig(SmallConfig):
    """A2D's model type."""

    model_type = "a2d-qwen3"

    def __init__(self, tie_word_embeddings=True, **kwargs):
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


class StandInA2D(Small):
    """A2D's signature."""

    config_class = StandInA2DConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        mask = attention_mask if attention_mask.dim() == 4 else attention_mask.bool()[:, None, None]
        x = self.model.embed(input_ids)
        at = positions_of(input_ids) if position_ids is None else position_ids
        for layer in self.model.layers:
            x = layer(x, at, mask)
        return CausalLMOutputWithPast(logits=self.lm_head(self.model.norm(x)))
