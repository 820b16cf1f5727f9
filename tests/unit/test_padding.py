"""Models whose code drops the attention mask: ragged batches share calls where pads can be hidden, and are exact."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

import stp_rs
from stp_rs.models import acceleration
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.models.padding import PadsMasked
from tests.fixtures import LENGTH, ROWS, tiny, tokenizer


def careless(*, eager: bool = False) -> MaskedLMAdapter:
    """Return the tests' policy with code that takes an attention mask and drops it."""
    module = tiny(layers=2).module.eval()
    if eager:
        module.set_attn_implementation("eager")
    forward = module.bert.forward

    def dropping(input_ids: torch.Tensor, attention_mask: Any = None, **others: Any) -> Any:
        return forward(input_ids=input_ids, attention_mask=None, **others)

    module.bert.forward = dropping
    return MaskedLMAdapter(module, tokenizer())


def roll(model: Any, slots: int = 64) -> tuple[stp_rs.Rollout, Counter[str]]:
    """Return a rollout of ragged prompts, and the calls and tokens of it."""
    found: Counter[str] = Counter()
    hidden = model.hidden

    def counted(ids_BS: torch.Tensor, lengths_B: torch.Tensor | None) -> torch.Tensor:
        found["calls"] += 1
        found["tokens"] += ids_BS.numel()
        return hidden(ids_BS, lengths_B)

    batch = stp_rs.encode_prompts(ROWS, tokenizer(), uids=range(len(ROWS))).repeat(2, step=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "hidden", counted)
        rollout = stp_rs.generate(
            model, batch, stp_rs.Unmasking(3), completion_length=LENGTH, seed=5, slots=slots,
            batching=stp_rs.Batching(share_first=False),
        )  # fmt: skip
    return rollout, found


def test_ragged_rows_share_a_call_and_are_the_rows_alone():
    model = careless()
    assert not model.respects_padding
    assert model.masks_pads
    together, shared = roll(model)
    alone, single = roll(model, slots=1)
    model.masks_pads = False
    by_length, many = roll(model)
    lengths = len(set(together.prompt_length.tolist()))
    assert (shared["calls"], many["calls"]) == (3, 3 * lengths)
    assert single["calls"] == 3 * len(together)
    assert shared["tokens"] == 3 * len(together) * int(together.prompt_length.max() + LENGTH)
    for other in (alone, by_length):
        assert np.array_equal(together.token_ids, other.token_ids)
        assert np.allclose(together.logprob, other.logprob, atol=1e-5)


def test_estimates_with_and_without_gradient_are_of_one_law():
    model = careless()
    rollout, _ = roll(model)
    masks = stp_rs.draw_masks(stp_rs.Design("spread", 2), rollout, seed=0)
    graded = stp_rs.token_elbo(model, rollout, masks)
    with torch.no_grad():
        plain = stp_rs.token_elbo(model, rollout, masks)
    assert graded.requires_grad
    assert torch.allclose(graded, plain, atol=1e-5)


def test_attention_that_is_not_torchs_is_called_per_length():
    model = careless(eager=True)
    assert not model.respects_padding
    assert not model.masks_pads
    together, calls = roll(model)
    assert calls["calls"] == 3 * len(set(together.prompt_length.tolist()))


def test_compiled_blocks_hide_pads_too():
    torch._dynamo.reset()
    model = careless()
    plain, _ = roll(model)
    assert acceleration.compile_blocks(model.module, backend="eager") == 2
    compiled, calls = roll(model)
    torch._dynamo.reset()
    assert calls["calls"] == 3
    assert np.array_equal(plain.token_ids, compiled.token_ids)


@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal", "positional"])
def test_pads_are_taken_out_of_whatever_mask_there_is(kind: str):
    draw = torch.Generator().manual_seed(0)
    query, key, value = torch.randn((3, 2, 2, 5, 4), generator=draw)
    lengths = torch.tensor([3, 5])
    seen = torch.rand((2, 1, 5, 5), generator=draw) < 0.7
    seen[..., 0] = True
    bias = torch.randn((2, 1, 5, 5), generator=draw)
    given: dict[str, Any] = {
        "none": {}, "bool": {"attn_mask": seen}, "float": {"attn_mask": bias}, "causal": {"is_causal": True},
        "positional": {},
    }[kind]  # fmt: skip
    with PadsMasked(lengths, 5):
        found = (
            attention(query, key, value, None, 0.0) if kind == "positional" else attention(query, key, value, **given)
        )
        other = attention(query[:, :, :, :], key[:, :, :4], value[:, :, :4])  # not of this width: left alone
    short = {k: v[:1, :, :3, :3] if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    alone = attention(query[:1, :, :3], key[:1, :, :3], value[:1, :, :3], **short)
    assert torch.allclose(found[:1, :, :3], alone, atol=1e-6)
    whole = {k: v[1:] if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    assert torch.allclose(found[1:], attention(query[1:], key[1:], value[1:], **whole), atol=1e-6)
    assert torch.equal(other, attention(query, key[:, :, :4], value[:, :, :4]))
