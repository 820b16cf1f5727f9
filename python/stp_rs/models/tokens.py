"""The special tokens of a policy: what is masked, what pads, and the set of ids that end a text."""

from collections.abc import Mapping
from typing import Any, cast

from torch import nn

from stp_rs.data.prompts import end_of_text_ids
from stp_rs.errors import ModelError
from stp_rs.models.families import Family


def end_ids(tokenizer: Any, family: Family) -> tuple[int, ...]:
    """Return the ids that end a text, the tokenizer's own first (it is the one that fills the rest of a canvas).

    Raises:
        ModelError: there is none.
    """
    ids = list(end_of_text_ids(tokenizer))
    ids += [i for token in family.end_tokens if (i := _id_of(tokenizer, token)) is not None]
    if not ids:
        raise ModelError(
            "tokenizer: it has no end-of-text token; name the one that the model was trained with "
            "(tokenizer.eos_token = ...) or pass eos_token_ids"
        )
    return tuple(dict.fromkeys(ids))


def special_ids(
    tokenizer: Any, family: Family, model: nn.Module, ends: tuple[int, ...], given: Mapping[str, int | None]
) -> tuple[int, int]:
    """Return (mask token id, pad token id), checked against the configuration and the embedding.

    Raises:
        ModelError: one is missing, tokenizer and configuration disagree, or an id is beyond the embedding.
    """
    config = getattr(model, "config", None)
    mask = _resolved("mask_token_id", tokenizer, config, family.mask_token, given)
    pad = given["pad_token_id"]
    if pad is None:
        pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        pad = ends[0]  # what pads is never seen where padding is respected, and equal lengths have none
    rows = embedding_rows(model)
    for name, token in (("mask_token_id", mask), ("pad_token_id", pad), *(("eos_token_id", end) for end in ends)):
        if rows and not 0 <= token < rows:
            raise ModelError(
                f"{name}: got {token}, but the model has embeddings for the ids 0 to {rows - 1} only; use the "
                "tokenizer that the model was trained with, or resize_token_embeddings and train the new rows first"
            )
    if mask in (pad, *ends):
        raise ModelError(f"mask_token_id: got {mask}, which also pads or ends a text; it needs an id of its own")
    return mask, pad


def _resolved(name: str, tokenizer: Any, config: Any, token: str, given: Mapping[str, int | None]) -> int:
    """Return an id: the one given, else the tokenizer's, else the family's token, else the configuration's."""
    chosen = given[name]
    if chosen is not None:
        return chosen
    own, written = getattr(tokenizer, name, None), getattr(config, name, None)
    if own is None and token:
        own = _id_of(tokenizer, token)
    if own is None and written is None:
        raise ModelError(
            f"tokenizer: {name} is None; set it to the token that the model was trained with "
            f"(tokenizer.mask_token = ...) or pass {name}"
        )
    if own is not None and written is not None and int(own) != int(written):
        raise ModelError(
            f"{name}: the tokenizer says {own} and the model's configuration {written}; use the model's own tokenizer, "
            f"or pass {name}"
        )
    return int(own if own is not None else cast(int, written))


def _id_of(tokenizer: Any, token: str) -> int | None:
    """Return the id of a token of the vocabulary, None where it has none."""
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        return None
    found = tokenizer.convert_tokens_to_ids(token)
    return None if found is None or found == getattr(tokenizer, "unk_token_id", None) else int(found)


def embedding_rows(model: nn.Module) -> int:
    """Return how many ids the input embedding has; the configuration's vocabulary where it cannot be found."""
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator] # a method of transformers' models
    weight = getattr(embedding, "weight", None)
    if weight is not None and weight.dim() == 2:
        return int(weight.shape[0])
    return int(getattr(getattr(model, "config", None), "vocab_size", 0) or 0)
