"""A2D: Qwen and Llama with a bidirectional mask in place of the causal one (dllm)."""

from stp_rs.models.families.family import Family

MODEL_TYPES = ("a2d-qwen2", "a2d-qwen3", "a2d-llama")
FAMILY = Family(
    name="A2D",
    mask_token="<|mask|>",
    end_tokens=("<|endoftext|>", "<|im_end|>", "<|eot_id|>"),
)
