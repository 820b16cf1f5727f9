"""Every option of a configuration as a flag of a command, in the groups of its sections."""

import argparse
from collections.abc import Collection
from typing import Any

from stp_rs.config.listing import OLD, Listed, listed, unknown_option
from stp_rs.config.yaml import read_text


def add_option_flags(parser: argparse.ArgumentParser, *, skip: Collection[str] = (), preset: str = "") -> None:
    """Add one flag for each option, with the default that it has under a preset; a flag that was not given is None."""
    groups: dict[str, Any] = {}
    for option in listed(preset).values():
        if option.name in skip:
            continue
        group = groups.setdefault(option.section, parser.add_argument_group(option.section))
        shown = f"{option.text} (default: {_said(option.default)})".replace("%", "%%")
        group.add_argument(
            f"--{option.name}",
            dest=option.name,
            metavar=_shown(option),
            default=None,
            help=argparse.SUPPRESS if option.name in OLD else shown,
        )


def given_options(args: argparse.Namespace, *, skip: Collection[str] = ()) -> dict[str, Any]:
    """Return the options that flags gave, as values of their types."""
    names = [name for name in listed() if name not in skip and getattr(args, name, None) is not None]
    return {name: option_value(name, getattr(args, name)) for name in names}


def option_value(name: str, value: Any) -> Any:
    """Return text that was given for an option as YAML would read it there; other values as they are.

    Raises:
        ConfigError: no such option, or the text is none of its values.
    """
    from stp_rs.config.arguments import TaskConfig, options

    known = options(TaskConfig)
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


def _shown(option: Listed) -> str:
    return "{" + ",".join(map(str, option.choices)) + "}" if option.choices else option.name.upper()


def _said(value: Any) -> str:
    return "none" if value is None or value == [] else str(value)
