"""Every option as --help shows it, made without torch and transformers; and what is near a name that is no option."""

import dataclasses
import typing
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from stp_rs.config import sections
from stp_rs.config.elsewhere import ELSEWHERE
from stp_rs.config.explained import EXPLAINED
from stp_rs.config.known import INHERITED, REFUSED, RENAMED
from stp_rs.config.presets import PRESETS, PRUNINGS, TASK
from stp_rs.errors import ConfigError
from stp_rs.text import nearest

WORDS = {
    "logging_steps": "every rollout batch",
    "save_steps": "every 50 rollout batches",
    "max_completion_length": "the task's",
    "max_steps": "as stp_rollouts says",
    "fsdp": "as the launcher says",
    "output_dir": "runs/TASK-PRESET-seedN",
}
"""Defaults of the command line that follow from others."""
OLD = frozenset({"logging_dir", "no_cuda", "warmup_ratio"})
"""Options of transformers 4 alone: flags, but not shown."""


@dataclass(frozen=True)
class Listed:
    """An option as --help shows it."""

    name: str
    section: str
    text: str
    choices: tuple[Any, ...]
    default: Any
    """What it is where it is not given, or words that say what it follows from."""


def listed(preset: str = "stp") -> dict[str, Listed]:
    """Return the options of the command line by name, section by section, with the defaults that a preset leaves."""
    decided = _decided(preset)
    found = {}
    own = [cls for cls in vars(sections).values() if dataclasses.is_dataclass(cls)]
    for cls in own:
        section = (cls.__doc__ or "").split("\n", maxsplit=1)[0].rstrip(".")
        for field in dataclasses.fields(cls):
            hint = field.type  # a type, not its text: the module's annotations are evaluated
            kinds = (hint, *typing.get_args(hint))
            choices = next((typing.get_args(k) for k in kinds if typing.get_origin(k) is typing.Literal), ())
            if field.name in ("preset", "pruning"):
                choices = tuple({"preset": PRESETS, "pruning": PRUNINGS}[field.name])
            default = WORDS.get(field.name, decided.get(field.name, field.default))
            found[field.name] = Listed(field.name, section, str(field.metadata["help"]), choices, default)
    for name, place in INHERITED.items():
        if name not in found:
            default, text = EXPLAINED[name]
            default = WORDS.get(name, decided.get(name, default))
            found[name] = Listed(name, place[0], text, (), default)
    order = list(dict.fromkeys(option.section for option in found.values()))
    return {o.name: o for o in sorted(found.values(), key=lambda o: order.index(o.section))}


def _decided(preset: str) -> dict[str, Any]:
    """Return what the command line, a preset and its pruning decide."""
    chosen = PRESETS.get(preset, PRESETS["stp"])
    pruning = chosen.get("pruning", "none")
    return {**TASK, **chosen, **PRUNINGS[pruning], "preset": preset if preset in PRESETS else "stp", "pruning": pruning}


def unknown_option(name: str, known: Collection[str]) -> ConfigError:
    """Return the error for a name that is no option: why it is none, what it is called here, or what is near."""
    name = name.replace("-", "_")
    if name in REFUSED:
        return ConfigError(f"{name}: is not supported: {REFUSED[name]}")
    if name in RENAMED:
        return ConfigError(f"{name}: has another name since 0.2: {RENAMED[name]}")
    if name.lower() in ELSEWHERE:
        return ConfigError(f"unknown option {name!r}; here it is {ELSEWHERE[name.lower()]}")
    near = nearest(name, [other for other in known if other not in REFUSED], ELSEWHERE)
    hint = f"; did you mean {ELSEWHERE.get(near, near)}?" if near else "; `stp-rs train --help` lists all"
    return ConfigError(f"unknown option {name!r}{hint}")
