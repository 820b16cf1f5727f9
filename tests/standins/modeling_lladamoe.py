"""A stand-in for LLaDA-MoE: a mask of two dimensions, a mixture of experts, no loss in the forward pass."""

from torch import nn
from transformers.modeling_outputs import MoeCausalLMOutputWithPast

from .common import Backbone, Small, SmallConfig
from .parts import Experts, positions_of


class StandInLLaDAMoEConfig(SmallConfig):
    """LLaDA-MoE's model type."""

    model_type = "lladamoe"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


class StandInLLaDAMoE(Small):
    """LLaDA-MoE's signature."""

    config_class = StandInLLaDAMoEConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = Backbone(config, mlp=lambda: Experts(config.hidden_size, config.intermediate_size, 2, 2))
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
        cache_position=None,
        num_logits_to_keep=0,
    ):
        assert labels is None and num_logits_to_keep == 0, "no loss in the forward pass"
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        assert mask is None or attention_mask.dim() == 2, "a mask of two dimensions"
        x, at = self.model.embed(input_ids), positions_of(input_ids)
        for layer in self.model.layers:
            x = layer(x, at, mask)
        return MoeCausalLMOutputWithPast(logits=self.lm_head(self.model.norm(x)[:, -num_logits_to_keep:, :]))
