"""LLaDA and LLaDA 1.5 (arXiv 2502.09992): bidirectional, built on OLMo's code.

The code on the hub of before October 2025, and what was copied from it, takes an attention mask and does not use it, so
that pads would be attended; the probe at load finds out, and pads are then hidden at torch's attention
(`stp_rs.models.padding`). Code that does use the mask is given it.
"""

from stp_rs.models.families.family import Family

MODEL_TYPES = ("llada",)
FAMILY = Family(
    name="LLaDA",
    auto_class="AutoModel",
    mask_token="<|mdm_mask|>",
    end_tokens=("<|endoftext|>", "<|eot_id|>"),
    context=("max_sequence_length",),
    # a pattern: the output head has the name of a layer's last projection
    lora_target_modules=r".*blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)",
)
