"""Options as dataclass fields whose help text carries their range, their section and what they decide.

A field's metadata holds `help` and nothing else, because argument parsers of transformers hand it on to argparse; the
rest is attached to that text.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any, Literal

from stp_rs.errors import ConfigError
from stp_rs.text import one_of

Identity = Literal["numbers", "speed", "output"]
"""What an option decides: the numbers of a run, only how fast they come, or only what is written and where."""


class Help(str):
    """The help text of an option, with its range and what it decides."""

    low: float | None
    high: float | None
    identity: Identity

    def __new__(cls, text: str, low: float | None, high: float | None, identity: Identity) -> "Help":
        """Return the text."""
        made = super().__new__(cls, text)
        made.low, made.high, made.identity = low, high, identity
        return made


def option(
    default: Any, text: str, low: float | None = None, high: float | None = None, *, identity: Identity = "numbers"
) -> Any:
    """Return a dataclass field of an option.

    Args:
        default: its default; None is "not set", and never another value.
        text: its help.
        low: least value that it may have, where it is a number.
        high: greatest one.
        identity: what it decides.
    """
    return dataclasses.field(default=default, metadata={"help": Help(text, low, high, identity)})


@dataclass(frozen=True)
class Option:
    """An option of a configuration class, with all that checks, help texts and comparisons of runs need to know."""

    name: str
    kind: Any
    """The type of its values."""
    optional: bool
    """Whether None is one of them."""
    text: str
    section: str
    identity: Identity
    low: float | None = None
    high: float | None = None

    @property
    def choices(self) -> tuple[Any, ...]:
        """Its values where they are few, else nothing."""
        return typing.get_args(self.kind) if typing.get_origin(self.kind) is Literal else ()

    def check(self, value: Any) -> Any:
        """Return a value as this option's type.

        Raises:
            ConfigError: another type, or out of range.
        """
        if value is None:
            if self.optional:
                return None
            raise ConfigError(f"{self.name}: got None, needs {_KINDS.get(self.kind, 'a value')}")
        if self.choices:
            if value not in self.choices:
                raise ConfigError(f"{self.name}: got {value!r}, {one_of(value, self.choices)}")
            return value
        if self.kind not in _KINDS:
            return value
        value = value.value if isinstance(value, Enum) else value
        accepted = {float: Real, int: Integral, str: str, bool: bool, dict: dict}[self.kind]
        given: Any = value
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.kind is not bool):
            raise ConfigError(f"{self.name}: got {value!r} ({type(value).__name__}), needs {_KINDS[self.kind]}")
        low, high = self.low, self.high
        if self.kind in (int, float) and not ((low is None or given >= low) and (high is None or given <= high)):
            bounds = f"from {low:g} to {high:g}" if low is not None and high is not None else f"of at least {low}"
            raise ConfigError(f"{self.name}: got {value}, needs a value {bounds}")
        return value if type(value) is int else self.kind(value)


_KINDS: dict[Any, str] = {
    int: "an integer", float: "a number", str: "text", bool: "true or false", dict: "a mapping",
}  # fmt: skip


def plain_type(hint: Any) -> tuple[Any, bool]:
    """Return (type without None, whether None was in it); a union of several types comes back as it is."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    optional = len(members) < len(typing.get_args(hint))
    return (members[0] if len(members) == 1 else hint), optional
