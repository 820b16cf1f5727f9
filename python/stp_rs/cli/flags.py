"""Every option of a configuration as a flag of a command, in the groups of its sections."""

import argparse
from collections.abc import Collection
from typing import Any

from stp_rs.config.arguments import STPConfig, TaskConfig, options, unknown_option
from stp_rs.config.options import Option
from stp_rs.config.presets import PRESETS, PRUNINGS
from stp_rs.config.yaml import read_text
from stp_rs.errors import ConfigError


def add_option_flags(
    parser: argparse.ArgumentParser, *, cls: type[STPConfig] = TaskConfig, skip: Collection[str] = (), preset: str = ""
) -> None:
    """Add one flag for each option, with the default that it has under a preset; a flag that was not given is None."""
    defaults = cls(preset=preset if preset in PRESETS else "stp").to_flat()
    groups: dict[str, Any] = {}
    for option in options(cls).values():
        if option.name in skip:
            continue
        group = groups.setdefault(option.section, parser.add_argument_group(option.section))
        group.add_argument(
            f"--{option.name}",
            dest=option.name,
            metavar=_shown(option),
            default=None,
            help=f"{option.text} (default: {_said(defaults.get(option.name))})".replace("%", "%%"),
        )


def given_options(
    args: argparse.Namespace, *, cls: type[STPConfig] = TaskConfig, skip: Collection[str] = ()
) -> dict[str, Any]:
    """Return the options that flags gave, as values of their types."""
    names = [name for name in options(cls) if name not in skip and getattr(args, name, None) is not None]
    return {name: option_value(name, getattr(args, name), cls) for name in names}


def option_value(name: str, value: Any, cls: type[STPConfig] = TaskConfig) -> Any:
    """Return text that was given for an option as YAML would read it there; other values as they are.

    Raises:
        ConfigError: no such option, or the text is none of its values.
    """
    known = options(cls)
    if name not in known:
        raise unknown_option(name, set(known))
    if not isinstance(value, str):
        return value
    option = known[name]
    if option.kind is str:
        return value
    if option.kind is bool and value.lower() in ("1", "yes", "on", "0", "no", "off"):
        return value.lower() in ("1", "yes", "on")
    return option.check(read_text(value)) if not option.choices else option.check(value)


def refuse_unknown(arguments: Collection[str], cls: type[STPConfig] = TaskConfig) -> None:
    """Raise a ConfigError for arguments that are no flag: why, or what is near."""
    for argument in arguments:
        if argument.startswith("--"):
            raise unknown_option(argument[2:].split("=")[0].replace("-", "_"), set(options(cls)))
    if arguments:
        raise ConfigError(f"got the argument {next(iter(arguments))!r}, needs flags")


def _shown(option: Option) -> str:
    if option.name in ("preset", "pruning"):
        return "{" + ",".join({"preset": PRESETS, "pruning": PRUNINGS}[option.name]) + "}"
    return "{" + ",".join(map(str, option.choices)) + "}" if option.choices else option.name.upper()


def _said(value: Any) -> str:
    return "none" if value is None or value == [] else str(value)
