"""Models that are no masked-diffusion models, each with the sentence that says so."""

from typing import Any

from stp_rs.errors import ModelError

_INSTEAD = "use LLaDA, Dream, SDAR or a masked LM"


def refuse(config: Any) -> None:
    """Refuse a configuration by name.

    Raises:
        ModelError: it is of a kind that has no masked log-likelihood.
    """
    kind = str(getattr(config, "model_type", "") or "")
    plain = kind.lower().replace("_", "").replace("-", "")
    if "diffusiongemma" in plain:
        raise ModelError(
            "DiffusionGemma is not a masked-diffusion model (accepted tokens are re-noised uniformly, so a canvas "
            f"has no masked log-likelihood); {_INSTEAD}"
        )
    if plain == "modernbertdecoder":
        raise ModelError(f"{kind}: its attention is causal; {_INSTEAD} (ModernBERT itself is one)")
    if plain == "reformer":
        raise ModelError(
            f"{kind}: its attention draws random buckets and has gradients in training mode only, so what is sampled "
            f"and what is scored are not of one law; {_INSTEAD}"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{kind}: it has an encoder and a causal decoder, and no canvas to fill; {_INSTEAD}")
    if getattr(config, "is_decoder", False):
        raise ModelError(f"{kind}: its configuration says is_decoder, so its attention is causal; {_INSTEAD}")
