"""A policy of LLaDA's kind with random weights, made on the device: RMSNorm, rotary positions, SwiGLU, no causality.

Shapes: B canvases, S their width, H hidden size, N gathered positions, V vocabulary, A heads, D head size.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from stp_rs.eval.prices import Network as Sizes
from stp_rs.eval.prices import Setting


@dataclass(frozen=True)
class Shape:
    """A policy and the batch that it decodes; `stp_rs.eval.prices` has those that are timed."""

    name: str
    network: Sizes
    batch: Setting

    @property
    def forward_flops(self) -> float:
        """Floating-point operations of a forward of all rows without head and adapters, attention included."""
        return self.batch.rows * self.batch.width * self.network.flops(self.batch.width)


class Block(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm, with LLaDA's names of the linear layers."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, f = shape.network.hidden, shape.network.ffn
        self.heads = shape.network.heads
        self.attn_norm, self.ff_norm = nn.RMSNorm(h), nn.RMSNorm(h)
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (nn.Linear(h, h, bias=False) for _ in range(4))
        self.ff_proj, self.up_proj = nn.Linear(h, f, bias=False), nn.Linear(h, f, bias=False)
        self.ff_out = nn.Linear(f, h, bias=False)

    def forward(self, x_BSH: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Return the block's output [B, S, H]; mask is bool [B, 1, 1, S], True where a token is seen.

        The turns are [S, D], or [B, 1, S, D] where every row has positions of its own.
        """
        rows, width, _ = x_BSH.shape
        normed = self.attn_norm(x_BSH)
        q, k, v = (
            layer(normed).view(rows, width, self.heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x_BSH = x_BSH + self.attn_out(seen.transpose(1, 2).reshape(rows, width, -1))
        normed = self.ff_norm(x_BSH)
        return x_BSH + self.ff_out(nn.functional.silu(self.ff_proj(normed)) * self.up_proj(normed))


def rotated(x_BASD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return queries or keys turned by their positions."""
    left, right = x_BASD.chunk(2, dim=-1)
    return x_BASD * cos + torch.cat((-right, left), dim=-1) * sin


class Network(nn.Module):
    """The masked LM: `logits` over the whole canvas, and the two halves of it that `Policy` calls."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.config = PretrainedConfig(vocab_size=shape.network.vocab)
        self.embed = nn.Embedding(shape.network.vocab, shape.network.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.network.layers))
        self.norm = nn.RMSNorm(shape.network.hidden)
        self.lm_head = nn.Linear(shape.network.hidden, shape.network.vocab, bias=False)
        self.head_size = shape.network.hidden // shape.network.heads
        self.checkpointing = False
        """Compute each block again in the backward pass instead of keeping what it computed."""

    def get_output_embeddings(self) -> nn.Module:
        """Return the head."""
        return self.lm_head

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Return final hidden states [B, S, H]; attention_mask is [B, S], 0 at padding; positions are [B, S]."""
        x_BSH = self.embed(input_ids)
        at = (
            torch.arange(input_ids.shape[1], device=input_ids.device) if position_ids is None else position_ids[:, None]
        )
        rates = 10_000.0 ** (-torch.arange(0, self.head_size, 2, device=input_ids.device) / self.head_size)
        half = at[..., None].float() * rates
        angles = torch.cat((half, half), dim=-1)
        cos, sin = angles.cos().to(x_BSH.dtype), angles.sin().to(x_BSH.dtype)
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x_BSH = checkpoint(block, x_BSH, cos, sin, mask, use_reentrant=False, preserve_rng_state=False)
            else:
                x_BSH = block(x_BSH, cos, sin, mask)
        return self.norm(x_BSH)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None, **_: Any
    ) -> SimpleNamespace:
        """Return logits [B, S, V] as `.logits`."""
        return SimpleNamespace(logits=self.lm_head(self.encode(input_ids, attention_mask, position_ids)))


class Policy:
    """A `Network`, or one with adapters around it, as a `DiffusionModel`."""

    mask_token_id, pad_token_id, eos_token_id, logit_shift, respects_padding = 1, 0, 2, 0, True

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        inner: Any = module
        self.network: Network = inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return final hidden states [B, S, H]."""
        if lengths_B is None:
            return self.network.encode(ids_BS)
        return self.network.encode(ids_BS, torch.arange(ids_BS.shape[1], device=ids_BS.device) < lengths_B[:, None])

    def hidden_window(self, ids_BQ: Tensor, position_BQ: Tensor | None) -> Tensor:
        """Return hidden states [B, Q, H] of a part of canvases, for the approximate caches."""
        return self.network.encode(ids_BQ, position_ids=position_BQ)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return logits [N, V]."""
        return self.network.lm_head(hidden_NH)


def make_network(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Network:
    """Return a network with weights N(0, 0.02), made on the device without touching its generator."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            network = Network(shape)
    finally:
        torch.set_default_dtype(before)
    network = network.to_empty(device=device)
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=draw)
    return network.eval().requires_grad_(False)


def with_adapters(network: Network, shape: Shape, device: torch.device) -> Policy:
    """Return the policy with LoRA (alpha = rank / 2) in fp32 on every linear layer; B is small and not zero."""
    import peft

    names = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"]
    config = peft.LoraConfig(
        r=shape.batch.rank, lora_alpha=shape.batch.rank // 2, target_modules=names, lora_dropout=0.0
    )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.device(device):
        torch.manual_seed(0)
        module = peft.get_peft_model(network, config)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
                if "lora_B" in name:
                    parameter.normal_(0.0, 1e-3)
    return Policy(module.eval())
