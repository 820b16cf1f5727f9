"""The model protocol and its adapter for bidirectional masked LMs of transformers.

Shapes: B canvases, S canvas width, N candidate positions, H hidden size, V vocabulary.
The head never sees positions whose logits nobody reads: [B, S, V] is never made.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from stp_rs.errors import ModelError
from stp_rs.models.base import DiffusionModel, _eval_mode


class MaskedLMAdapter:
    """A transformers masked LM (BERT, RoBERTa, DistilBERT, ALBERT, ELECTRA, ModernBERT, ...) as a `DiffusionModel`.

    On construction it is probed on the model's device: the gathered head must give the model's own logits, attention
    must be bidirectional, and a row alone must equal the row in a padded batch (else `respects_padding` is False).

    Args:
        model: a model whose output has `.logits` [B, S, V].
        tokenizer: gives mask, pad and end-of-text ids (`eos_token_id`, or `sep_token_id` where there is none).
        logit_shift: 1 for models whose row p - 1 predicts token p.

    Raises:
        ModelError: a missing special token, a causal model, a head that cannot be split off, or DiffusionGemma.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, logit_shift: int = 0) -> None:
        kind = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
        if "diffusion_gemma" in kind or "diffusiongemma" in kind.lower():
            raise ModelError(
                "DiffusionGemma is not a masked-diffusion model (accepted tokens are re-noised uniformly, so a canvas "
                "has no masked log-likelihood); use LLaDA, Dream or a masked LM"
            )
        self.module = model
        self.logit_shift = logit_shift
        self.mask_token_id = _special(tokenizer, "mask_token_id")
        self.pad_token_id = _special(tokenizer, "pad_token_id")
        self.eos_token_id = _special(tokenizer, "eos_token_id", "sep_token_id")
        self._base, self._head = _split(model)
        self.respects_padding = True
        with torch.no_grad(), _eval_mode(model):
            self.respects_padding = self._probe()

    def hidden(self, ids_BS: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Return final hidden states [B, S, H]; see `DiffusionModel.hidden`."""
        room = getattr(getattr(self.module, "config", None), "max_position_embeddings", None)
        if room is not None and ids_BS.shape[1] > room:
            raise ModelError(
                f"a canvas of {ids_BS.shape[1]} tokens does not fit the model's {room} positions; shorten the prompts "
                "or the completion length"
            )
        if lengths_B is None:
            return self._base(input_ids=ids_BS, attention_mask=None)
        positions_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
        mask_BS = (positions_S < lengths_B[:, None]).long()
        return self._base(input_ids=ids_BS, attention_mask=mask_BS)

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return logits [N, V]."""
        return self._head(hidden_NH)

    def _probe(self) -> bool:
        device = next(self.module.parameters()).device
        vocab = int(self.module.config.vocab_size)  # type: ignore[union-attr, arg-type]
        plain = [i for i in range(vocab) if i not in (self.mask_token_id, self.pad_token_id)][:7]
        ids = torch.tensor([[plain[i % len(plain)] for i in range(4)]], device=device)
        ids[0, 2] = self.mask_token_id
        logits = self.head(self.hidden(ids, None)[0])
        whole = self.module(input_ids=ids).logits[0]
        scale = 1e-4 * max(1.0, float(whole.abs().max()))
        if not torch.allclose(logits, whole, atol=scale, rtol=0):
            gap = float((logits - whole).abs().max())
            raise ModelError(
                f"{type(self.module).__name__}: the head applied to gathered rows differs from the model's logits by "
                f"{gap:.2g}; pass an object with the members of stp_rs.DiffusionModel instead"
            )
        changed = ids.clone()
        changed[0, -1] = plain[0] if int(ids[0, -1]) != plain[0] else plain[-1]
        if torch.allclose(self.head(self.hidden(changed, None)[0, :1]), logits[:1], atol=1e-6, rtol=1e-6):
            raise ModelError(
                f"{type(self.module).__name__}: its first position does not see its last token, so it is causal; a "
                "masked-diffusion policy needs bidirectional attention"
            )
        padded = torch.cat([ids, torch.full_like(ids[:, :2], self.pad_token_id)], dim=1)
        batch = torch.cat([padded, torch.cat([ids, ids[:, :2]], dim=1)])
        lengths = torch.tensor([ids.shape[1], padded.shape[1]], device=device)
        return torch.allclose(self.head(self.hidden(batch, lengths)[0, : ids.shape[1]]), logits, atol=scale, rtol=0)


def as_diffusion_model(model: Any, tokenizer: Any = None) -> DiffusionModel:
    """Return `model` as a `DiffusionModel`: itself if it is one, else a `MaskedLMAdapter` of it and its tokenizer."""
    if isinstance(model, DiffusionModel):
        return model
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: got {type(model).__name__}, needs a transformers masked LM or a DiffusionModel")
    if tokenizer is None:
        raise ModelError("tokenizer: got None, needs the model's tokenizer (processing_class)")
    shift = 1 if "dream" in str(getattr(model.config, "model_type", "")).lower() else 0
    return MaskedLMAdapter(model, tokenizer, logit_shift=shift)


def _special(tokenizer: Any, *names: str) -> int:
    for name in names:
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    raise ModelError(f"tokenizer: {names[0]} is None; set it (tokenizer.add_special_tokens) before training")


_Call = Callable[..., Tensor]


def _split(model: nn.Module) -> tuple[_Call, _Call]:
    """Return (canvas -> hidden states, gathered hidden states -> logits) of a masked LM."""
    m = cast(Any, model)
    if callable(getattr(m, "get_base_model", None)):  # peft: the adapters live inside the model that it wraps
        m = m.get_base_model()
    base = getattr(m, "base_model", m)
    if base is not m:

        def encode(**inputs: Any) -> Tensor:
            return cast(Tensor, base(**inputs)[0])

        for head in (_attribute_head, _distilbert_head, _electra_head, _modernbert_head):
            found = head(m)
            if found is not None:
                return encode, found
    return _swap_decoder(m)


def _attribute_head(m: Any) -> _Call | None:
    for name in ("cls", "lm_head", "predictions"):
        if isinstance(getattr(m, name, None), nn.Module):
            return cast(_Call, getattr(m, name))
    return None


def _distilbert_head(m: Any) -> _Call | None:
    if not hasattr(m, "vocab_projector"):
        return None
    return lambda h: m.vocab_projector(m.vocab_layer_norm(m.activation(m.vocab_transform(h))))


def _electra_head(m: Any) -> _Call | None:
    if not hasattr(m, "generator_predictions"):
        return None
    return lambda h: m.generator_lm_head(m.generator_predictions(h))


def _modernbert_head(m: Any) -> _Call | None:
    if not (hasattr(m, "head") and hasattr(m, "decoder")):
        return None
    return lambda h: m.decoder(m.head(h))


def _swap_decoder(m: Any) -> tuple[_Call, _Call]:
    """Split any other model at its output embedding: the forward runs with the identity in its place."""
    decoder = m.get_output_embeddings() if hasattr(m, "get_output_embeddings") else None
    paths = [name for name, module in m.named_modules() if module is decoder] if decoder is not None else []
    if not paths:
        raise ModelError(
            f"{type(m).__name__}: no output head was found; pass an object with the members of stp_rs.DiffusionModel"
        )
    parent_path, _, leaf = paths[0].rpartition(".")
    parent = m.get_submodule(parent_path)
    head = cast(_Call, decoder)

    def encode(**inputs: Any) -> Tensor:
        setattr(parent, leaf, nn.Identity())
        try:
            return cast(Tensor, m(**inputs).logits)
        finally:
            setattr(parent, leaf, decoder)

    return encode, head
