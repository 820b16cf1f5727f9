"""Dream (arXiv 2508.15487) and DiffuCoder (arXiv 2506.20639): bidirectional, started from a causal model.

The logits of row p - 1 predict token p, as in the causal model they come from. A mask must have four dimensions: one of
two reaches torch's attention as it is.
"""

from stp_rs.models.families.family import Family, bool_4d

MODEL_TYPES = ("dream", "diffucoder")
FAMILY = Family(
    name="Dream",
    auto_class="AutoModel",
    logit_shift=1,
    mask_token="<|mask|>",
    end_tokens=("<|endoftext|>", "<|im_end|>"),
    mask=bool_4d,
)
