"""A stand-in for LLaDA: OLMo's names, a mask that is not used, no cache, an inner model called by `forward`."""

from types import SimpleNamespace

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .parts import Norm, attend, heads, joined, positions_of, rotate


class StandInLLaDAConfig(PretrainedConfig):
    """OLMo's option names."""

    model_type = "llada"

    def __init__(self, d_model=16, n_heads=2, n_layers=2, mlp_hidden_size=24, max_sequence_length=96, **kwargs):
        self.d_model, self.n_heads, self.n_layers = d_model, n_heads, n_layers
        self.mlp_hidden_size, self.max_sequence_length = mlp_hidden_size, max_sequence_length
        self.weight_tying = kwargs.pop("weight_tying", False)
        self.vocab_size = kwargs.pop("vocab_size", 32)
        self.rope_theta = kwargs.pop("rope_theta", 100.0)
        self.mask_token_id = kwargs.pop("mask_token_id", None)
        super().__init__(**kwargs)

    @property
    def hidden_size(self):
        return self.d_model


class LLaDALlamaBlock(nn.Module):
    """A block with OLMo's names: its last projection is called as the head is."""

    def __init__(self, config):
        super().__init__()
        width, inner = config.d_model, config.mlp_hidden_size
        self.count = config.n_heads
        self.attn_norm, self.ff_norm = Norm(width), Norm(width)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.ff_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.ff_out = nn.Linear(inner, width, bias=False)

    def forward(self, x, attention_bias=None, layer_past=None, use_cache=False):
        at = positions_of(x)
        q, k, v = (heads(p(self.attn_norm(x)), self.count) for p in (self.q_proj, self.k_proj, self.v_proj))
        x = x + self.attn_out(joined(attend(rotate(q, at), rotate(k, at), v, None)))  # as on the hub: no mask
        y = self.ff_norm(x)
        return x + self.ff_out(nn.functional.silu(self.ff_proj(y)) * self.up_proj(y)), None


class Inner(nn.Module):
    """What OLMo calls the model."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        parts = {
            "wte": nn.Embedding(config.vocab_size, config.d_model),
            "blocks": nn.ModuleList([LLaDALlamaBlock(config) for _ in range(config.n_layers)]),
            "ln_f": Norm(config.d_model),
        }
        if not config.weight_tying:
            parts["ff_out"] = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.transformer = nn.ModuleDict(parts)

    def forward(self, input_ids, attention_mask=None, attention_bias=None, past_key_values=None, use_cache=False):
        assert past_key_values is None and not use_cache, "no cache"
        x = self.transformer.wte(input_ids)
        for block in self.transformer.blocks:
            x, _ = block(x, attention_bias=attention_bias)
        x = self.transformer.ln_f(x)
        if self.config.weight_tying:
            return SimpleNamespace(logits=nn.functional.linear(x, self.transformer.wte.weight))
        return SimpleNamespace(logits=self.transformer.ff_out(x))


class StandInLLaDA(PreTrainedModel):
    """The wrapper for transformers."""

    config_class = StandInLLaDAConfig
    base_model_prefix = "model"
    _no_split_modules = ["LLaDALlamaBlock"]

    def __init__(self, config):
        super().__init__(config)
        self.model = Inner(config)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        inputs_embeds=None,
        attention_mask=None,
        attention_bias=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        cache_position=None,
    ):
        outputs = self.model.forward(input_ids, attention_mask, attention_bias, past_key_values, bool(use_cache))
        return CausalLMOutputWithPast(logits=outputs.logits)

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.3)

    def tie_weights(self, *args, **kwargs):
        """The configuration's own option ties; transformers' does not, and knows nothing of it when it saves."""
        if self.config.weight_tying:
            self.model.transformer["ff_out"] = self.model.transformer.wte

    def get_input_embeddings(self):
        return self.model.transformer.wte

    def get_output_embeddings(self):
        return self.model.transformer.wte if self.config.weight_tying else self.model.transformer.ff_out

    def set_output_embeddings(self, value):
        self.model.transformer["wte" if self.config.weight_tying else "ff_out"] = value


assert torch
