"""What the stand-ins for decoder-like models share: options, embeddings, layers, a head."""

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .parts import Attention, Layer, Norm


class SmallConfig(PretrainedConfig):
    """Option names after Llama."""

    def __init__(self, hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=24, **kwargs):
        self.hidden_size, self.num_attention_heads = hidden_size, num_attention_heads
        self.num_hidden_layers, self.intermediate_size = num_hidden_layers, intermediate_size
        self.max_position_embeddings = kwargs.pop("max_position_embeddings", 96)
        self.vocab_size = kwargs.pop("vocab_size", 32)
        self.mask_token_id = kwargs.pop("mask_token_id", None)
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class Backbone(nn.Module):
    """Embeddings, layers and a norm."""

    def __init__(self, config, embedding="embed_tokens", mlp=None, attention=Attention):
        super().__init__()
        self.config, self.name = config, embedding
        setattr(self, embedding, nn.Embedding(config.vocab_size, config.hidden_size))
        width, count, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
        make = mlp or (lambda: None)
        layers = [Layer(width, count, inner, i, make(), attention) for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = Norm(width)

    def embed(self, ids):
        return getattr(self, self.name)(ids)


class Small(PreTrainedModel):
    """A root with `model` and `lm_head`."""

    base_model_prefix = "model"
    _no_split_modules = ["Layer"]

    def _init_weights(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.3)

    def get_input_embeddings(self):
        return getattr(self.model, self.model.name)

    def set_input_embeddings(self, value):
        setattr(self.model, self.model.name, value)

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value
