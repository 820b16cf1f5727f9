"""Policies: the protocol, adapters for models of transformers, the KL reference, and a tiny policy."""

import importlib
from typing import TYPE_CHECKING, Any

from stp_rs.models.base import DiffusionModel as DiffusionModel
from stp_rs.models.masked_lm import MaskedLMAdapter as MaskedLMAdapter
from stp_rs.models.masked_lm import as_diffusion_model as as_diffusion_model

if TYPE_CHECKING:
    from stp_rs.models.loading import load as load
    from stp_rs.models.loading import load_configured as load_configured
    from stp_rs.models.loading import load_policy as load_policy
    from stp_rs.models.loading import load_tokenizer as load_tokenizer
    from stp_rs.models.tiny import character_tokenizer as character_tokenizer
    from stp_rs.models.tiny import tiny_policy as tiny_policy

_LAZY = {
    "load": "loading",
    "load_configured": "loading",
    "load_policy": "loading",
    "load_tokenizer": "loading",
    "character_tokenizer": "tiny",
    "tiny_policy": "tiny",
}
"""Names whose modules import modelling code of transformers, which takes seconds: loaded when they are asked for."""


def __getattr__(name: str) -> Any:
    """Return a name of `_LAZY` from its module."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
