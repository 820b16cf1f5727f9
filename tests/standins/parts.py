"""A small transformer layer, own code: rotary attention under any mask, with any cache, and a gated feed-forward."""

import torch
from torch import nn


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotate(x, positions):
    """Rotate pairs of the last dimension by an angle that grows with the position."""
    half = x.shape[-1] // 2
    angle = positions[..., None].float() * (100.0 ** (-torch.arange(half, device=x.device) / half))
    cos, sin = angle.cos()[:, None].to(x.dtype), angle.sin()[:, None].to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q, k, v, mask, causal=False):
    """Return torch's attention; the mask goes to it as it is."""
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def heads(x, count):
    """Return [B, heads, S, D]."""
    return x.view(*x.shape[:2], count, -1).transpose(1, 2)


def joined(x):
    """Return [B, S, heads * D]."""
    return x.transpose(1, 2).flatten(2)


def positions_of(ids, past=0):
    """Return positions [1, S] behind `past` tokens."""
    return torch.arange(past, past + ids.shape[1], device=ids.device)[None]


class Attention(nn.Module):
    """Attention with projections of its own."""

    def __init__(self, width, count, layer):
        super().__init__()
        self.count, self.layer_idx = count, layer
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(width, width, bias=False))

    def forward(self, x, positions, mask, cache=None, causal=False):
        q, k, v = (heads(proj(x), self.count) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        return self.o_proj(joined(attend(q, k, v, mask, causal)))


class FusedAttention(nn.Module):
    """Attention with one projection for queries, keys and values."""

    def __init__(self, width, count, layer):
        super().__init__()
        self.count, self.layer_idx = count, layer
        self.query_key_value, self.dense = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)

    def forward(self, x, positions, mask, cache=None, causal=False):
        q, k, v = (heads(part, self.count) for part in self.query_key_value(x).chunk(3, -1))
        q, k = rotate(q, positions), rotate(k, positions)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        return self.dense(joined(attend(q, k, v, mask, causal)))


class FeedForward(nn.Module):
    """A gated feed-forward."""

    def __init__(self, width, inner):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """A mixture of experts; the kind that runs them under no_grad outside of training mode, or not."""

    def __init__(self, width, inner, count, chosen):
        super().__init__()
        self.chosen = chosen
        self.gate = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList([FeedForward(width, inner) for _ in range(count)])

    def mixed(self, x):
        weight, index = self.gate(x).softmax(-1).topk(self.chosen, dim=-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            share = (weight * (index == number)).sum(-1, keepdim=True)
            out = out + share * expert(x)
        return out

    def forward(self, x):
        return self.mixed(x)


class Layer(nn.Module):
    """Attention and a feed-forward, each behind a norm."""

    def __init__(self, width, count, inner, layer, mlp=None, attention=Attention):
        super().__init__()
        self.self_attn = attention(width, count, layer)
        self.mlp = mlp or FeedForward(width, inner)
        self.input_layernorm, self.post_attention_layernorm = Norm(width), Norm(width)

    def forward(self, x, positions, mask, cache=None, causal=False):
        x = x + self.self_attn(self.input_layernorm(x), positions, mask, cache, causal)
        return x + self.mlp(self.post_attention_layernorm(x))
