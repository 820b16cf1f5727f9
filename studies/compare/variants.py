"""Variants of a comparison: a preset, a pruning, and options of their own, behind one name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stp_rs.cli.flags import option_value
from stp_rs.config import arguments
from stp_rs.config.presets import PRESETS, PRUNINGS
from stp_rs.errors import ConfigError
from stp_rs.text import one_of

ALL = "all"
"""In place of variants: every preset."""
OWN = frozenset(
    {
        *("task", "seed", "output_dir", "resume_from_checkpoint", "logging_steps", "logging_strategy", "save_steps"),
        *("save_strategy", "eval_steps", "eval_strategy", "eval_size"),
    }
)
"""Options that a variant cannot have for itself: they belong to the comparison."""


@dataclass(frozen=True)
class Variant:
    """What one curve of a comparison is trained with.

    Example:
        Variant("k4", {"preset": "stp", "num_mc": "4"})
    """

    name: str
    options: Mapping[str, Any]
    """`preset`, and where given `pruning` and flat options; they win over those of the comparison."""

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^\w.=+-]+", "_", self.name)


def parse_variants(text: str) -> list[Variant]:
    """Return the variants of `NAME=preset/pruning;option=value;...` entries, joined by commas.

    The name, the pruning and the options may be left out; a variant without a name is called by its own text. Values
    may hold `:` and `/`. `all` stands for every preset.

    Raises:
        ConfigError: an unknown preset, pruning or option, or a name given twice.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    names = [name for entry in entries for name in (PRESETS if entry == ALL else [entry])]
    return distinct([parse_variant(name) for name in names])


def parse_variant(text: str) -> Variant:
    """Return one variant; see `parse_variants`."""
    head, *settings = [part.strip() for part in text.split(";")]
    name, given, kind = (part.strip() for part in head.partition("="))
    preset, _, pruning = (kind if given else head).partition("/")
    options: dict[str, Any] = {"preset": preset, **({"pruning": pruning} if "/" in head else {})}
    for setting in settings:
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not value:
            raise ConfigError(f"variant {text!r}: got {setting!r}, needs option=value; options are separated by ';'")
        if key in options:
            raise ConfigError(f"variant {text!r}: {key} is given twice")
        options[key] = value
    return make_variant(name if given else text, options)


def make_variant(name: str, options: Mapping[str, Any]) -> Variant:
    """Return a variant whose names are known; its values are checked when its configuration is made.

    Raises:
        ConfigError: an empty name, an unknown preset, pruning or option, or an option of the comparison's.
    """
    if not name or not re.search(r"\w", name):
        raise ConfigError(f"variant {name!r}: needs a name before '='")
    for key, known in (("preset", PRESETS), ("pruning", PRUNINGS)):
        if key in options and options[key] not in known:
            raise ConfigError(f"variant {name!r}: {key} {options[key]!r} is unknown, {one_of(options[key], known)}")
    for key in options:
        if key in OWN:
            raise ConfigError(f"variant {name!r}: {key} belongs to the whole comparison; give it as --{key}")
        if key not in known_names():
            raise ConfigError(f"variant {name!r}: unknown option {key!r}; `stp-rs train --help` lists all")
    return Variant(name, {"preset": "stp", **{k: option_value(k, v) for k, v in options.items()}})


def distinct(variants: Iterable[Variant]) -> list[Variant]:
    """Return the variants, of which no two share a folder.

    Raises:
        ConfigError: there are none, or two share a name.
    """
    by_folder: dict[str, Variant] = {}
    for variant in variants:
        if variant.folder in by_folder:
            other = by_folder[variant.folder].name
            raise ConfigError(f"variant {variant.name!r}: {other!r} has the same folder; give one a NAME= of its own")
        by_folder[variant.folder] = variant
    if not by_folder:
        raise ConfigError("variants: got none, needs at least one preset")
    return list(by_folder.values())


def known_names() -> set[str]:
    """Return the names of all options."""
    return set(arguments.options(arguments.TaskConfig))
