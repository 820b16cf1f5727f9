"""A stand-in for LLaDA2: causal without a mask, which is added; experts without gradient in eval mode; float logits."""

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from .common import Backbone, Small, SmallConfig
from .parts import Experts, FusedAttention, positions_of


class StandInLLaDA2Config(SmallConfig):
    """LLaDA2's model type; blocks of 4 tokens, so that tests have several."""

    model_type = "llada2_moe"

    def __init__(self, block_size=4, **kwargs):
        self.block_size = block_size
        super().__init__(**kwargs)


class SparseExperts(Experts):
    """Experts that infer under no_grad."""

    def forward(self, x):
        return self.mixed(x) if self.training else self.moe_infer(x)

    @torch.no_grad()
    def moe_infer(self, x):
        return self.mixed(x)


class StandInLLaDA2(Small):
    """LLaDA2's signature."""

    config_class = StandInLLaDA2Config

    def __init__(self, config):
        super().__init__(config)
        make = lambda: SparseExperts(config.hidden_size, config.intermediate_size, 2, 2)  # noqa: E731
        self.model = Backbone(config, "word_embeddings", make, FusedAttention)
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
        output_router_logits=None,
        return_dict=None,
        **kwargs,
    ):
        if past_key_values is None and use_cache is not False:
            past_key_values = DynamicCache()  # as on the hub: a cache that nobody asked for
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is not None:
            assert attention_mask.dim() == 4 and attention_mask.is_floating_point(), "a mask that is added"
        x = self.model.embed(input_ids)
        at = positions_of(input_ids, past) if position_ids is None else position_ids
        for layer in self.model.layers:
            x = layer(x, at, attention_mask, past_key_values, causal=attention_mask is None)
        return MoeCausalLMOutputWithPast(logits=self.lm_head(self.model.norm(x)).float())
