"""LLaDA-MoE (arXiv 2509.24389): bidirectional mixtures of experts."""

from stp_rs.models.families.family import Family

MODEL_TYPES = ("lladamoe", "llada_moe")
FAMILY = Family(
    name="LLaDA-MoE",
    auto_class="AutoModelForCausalLM",
    mask_token="<|mask|>",
    end_tokens=("<|endoftext|>", "<|role_end|>"),
    lora_target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
)
