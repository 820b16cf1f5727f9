"""Every bidirectional masked LM that transformers opens as `AutoModelForMaskedLM` (BERT, RoBERTa, ModernBERT, ...)."""

from dataclasses import replace
from typing import Any

from stp_rs.models.families.family import Family

FAMILY = Family(name="masked LM", lora_target_modules=("query", "key", "value"))

_COUNTED_FROM_PAD = ("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "data2vec-text")
"""Models whose first token has the position after the pad token's id."""


def family(config: Any) -> Family:
    """Return the family of one such model: some cannot use all the positions that they have."""
    if str(getattr(config, "model_type", "")) in _COUNTED_FROM_PAD:
        return replace(FAMILY, positions_taken=int(getattr(config, "pad_token_id", 1) or 0) + 1)
    return FAMILY
