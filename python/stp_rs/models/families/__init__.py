"""The families of masked-diffusion language models: one small file each says how its code is called and read."""

from typing import Any

from stp_rs.errors import ModelError
from stp_rs.models.families import a2d, dream, llada, llada2, llada_moe, masked_lm, sdar
from stp_rs.models.families.family import Family as Family
from stp_rs.models.families.refused import refuse as refuse
from stp_rs.text import one_of

FAMILIES: dict[str, Family] = {
    kind: module.FAMILY for module in (llada, dream, llada_moe, llada2, sdar, a2d) for kind in module.MODEL_TYPES
}
"""Families by the `model_type` of their configuration, in lower case."""


def family_of(config: Any) -> Family:
    """Return the family of a configuration: by its `model_type`, else the one of every bidirectional masked LM.

    Raises:
        ModelError: the model is no masked-diffusion model; the sentence says what it is.
    """
    kind = str(getattr(config, "model_type", "") or "").lower()
    if kind in FAMILIES:
        return FAMILIES[kind]
    refuse(config)
    return masked_lm.FAMILY


def family_named(name: str) -> Family:
    """Return a family by its name (`LLaDA`, `Dream`, ...), for a model whose configuration does not say it.

    Raises:
        ModelError: there is none of that name.
    """
    known = {family.name.lower(): family for family in (*FAMILIES.values(), masked_lm.FAMILY)}
    if name.lower() not in known:
        raise ModelError(f"family: got {name!r}, {one_of(name, sorted(f.name for f in known.values()))}")
    return known[name.lower()]
