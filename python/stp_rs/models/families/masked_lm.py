"""Every bidirectional masked LM that transformers opens as `AutoModelForMaskedLM` (BERT, RoBERTa, ModernBERT, ...)."""

from stp_rs.models.families.family import Family

FAMILY = Family(name="masked LM", lora_target_modules=("query", "key", "value"))
