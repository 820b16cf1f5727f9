"""SDAR (arXiv 2510.06303) and TraDo (arXiv 2509.06949): block-causal, blocks of 4 tokens unless a checkpoint says more.

Without a mask the code attends to everything, so it is always given one, of booleans. Its cache stores keys and values
only where it is told to.
"""

from stp_rs.models.families.family import Family, bool_4d

MODEL_TYPES = ("sdar", "sdar_moe", "trado")
FAMILY = Family(
    name="SDAR",
    auto_class="AutoModelForCausalLM",
    mask_token="<|MASK|>",
    end_tokens=("<|endoftext|>", "<|im_end|>"),
    mask=bool_4d,
    block_size=4,
    cache_inputs=(("store_kv", True),),
    settings=(("fuse_cross_entropy", False),),
)
