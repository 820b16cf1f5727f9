"""Every option of a configuration as a flag of a command."""

import argparse
from collections.abc import Collection
from typing import Any, Literal, get_args, get_origin

from stp_rs.config.sections import flat_fields
from stp_rs.errors import ConfigError


def add_option_flags(parser: argparse.ArgumentParser, *, skip: Collection[str] = ()) -> None:
    """Add one flag for each option; a flag that was not given is None."""
    for name, (hint, default) in flat_fields().items():
        if name in skip:
            continue
        choices = list(get_args(hint)) if get_origin(hint) is Literal else None
        kind = _boolean if hint is bool else hint if hint in (int, float) else str
        parser.add_argument(f"--{name}", type=kind, choices=choices, default=None, help=f"default {default!r}")


def given_options(args: argparse.Namespace, *, skip: Collection[str] = ()) -> dict[str, Any]:
    """Return the options that flags gave."""
    return {k: v for k, v in vars(args).items() if k in flat_fields() and k not in skip and v is not None}


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"got {text!r}, needs true or false")


def option_value(name: str, value: Any) -> Any:
    """Return text given for an option as the option's type where text says it otherwise (true, false)."""
    hint = flat_fields()[name][0] if name in flat_fields() else None
    try:
        return _boolean(value) if hint is bool and isinstance(value, str) else value
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{name}: {error}") from None
