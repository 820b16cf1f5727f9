"""A stand-in for SDAR: sees everything without a mask, keeps keys where told, no logits where it fuses its loss."""

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .common import Backbone, Small, SmallConfig
from .parts import positions_of


class StandInSDARConfig(SmallConfig):
    """SDAR's model type and the option of its fused loss."""

    model_type = "sdar"

    def __init__(self, fuse_cross_entropy=True, **kwargs):
        self.fuse_cross_entropy = fuse_cross_entropy
        super().__init__(**kwargs)


class StandInSDAR(Small):
    """SDAR's signature."""

    config_class = StandInSDARConfig

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
        cache_position=None,
        logits_to_keep=0,
        store_kv=None,
        **kwargs,
    ):
        assert past_key_values is None or isinstance(past_key_values, Cache), "a Cache of transformers"
        assert past_key_values is None or store_kv, "tells the code to use the cache's own update"
        mask = None if attention_mask is None else attention_mask.bool()
        if mask is not None and bool(torch.all(mask)):
            mask = None
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        x = self.model.embed(input_ids)
        at = positions_of(input_ids, past) if position_ids is None else position_ids
        for layer in self.model.layers:
            x = layer(x, at, mask, past_key_values)
        x = self.model.norm(x)[:, -logits_to_keep:].contiguous()
        fused = self.config.fuse_cross_entropy and self.training
        return CausalLMOutputWithPast(logits=None if fused else self.lm_head(x))
