"""LLaDA2.0 and 2.1 (arXiv 2512.15745): block-causal mixtures of experts, blocks of 32 tokens.

Without a mask the code is causal, so it is always given one, added to the scores. Its experts run under no_grad outside
of training mode; `stp_rs.models.base.passes_without_dropout` gives them their gradients.
"""

from stp_rs.models.families.family import Family, additive_4d

MODEL_TYPES = ("llada2_moe", "llada21_moe", "llada2")
FAMILY = Family(
    name="LLaDA2",
    auto_class="AutoModelForCausalLM",
    mask_token="<|mask|>",
    end_tokens=("<|endoftext|>", "<|role_end|>"),
    mask=additive_4d,
    block_size=32,
    lora_target_modules=("query_key_value", "dense"),
)
