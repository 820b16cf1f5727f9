"""YAML files of options, read as YAML 1.2 says: 1e-6 is a number, `on` and `017` are text, a name stands once."""

import math
import re
from pathlib import Path
from typing import Any

from stp_rs.errors import ConfigError

LARGEST = 1 << 16
"""Most values of a file, written out."""
_TOO_LARGE = f"its aliases stand for more than {LARGEST:,} values"


def read_yaml(path: str | Path, what: str = "config file") -> dict[str, Any]:
    """Return the mapping of a YAML file.

    Raises:
        ConfigError: the file cannot be read, is no mapping, or a name in it is no text or stands twice.
    """
    import yaml

    try:
        loaded = _load(Path(path).read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{what} {path}: {error}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{what} {path}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{what} {path}: got {type(loaded).__name__}, needs lines of `name: value`")
    if wrong := [name for name in loaded if not isinstance(name, str)]:
        raise ConfigError(f"{what} {path}: got the name {wrong[0]!r}, needs text")
    return loaded


def read_text(text: str) -> Any:
    """Return the value that a text is in YAML; the text itself where it is none."""
    import yaml

    try:
        return _load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _load(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """The core schema of YAML 1.2, in decimal."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            lines: dict[tuple[str, Any], int] = {}
            for key, _ in node.value:
                name, line = (key.tag, str(key.value)), key.start_mark.line + 1
                if name in lines:
                    raise ConfigError(f"got {key.value!r} in line {lines[name]} and in line {line}, needs it once")
                lines[name] = line
            return node

        def flatten_mapping(self, node: Any) -> None:
            super().flatten_mapping(node)
            if len(node.value) > LARGEST:  # merges of merges double with every line
                raise ConfigError(_TOO_LARGE)

    Loader.yaml_implicit_resolvers = {}
    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
        (
            "float",
            r"[-+]?(?:(?:0|[1-9][0-9]*)?\.[0-9]+|(?:0|[1-9][0-9]*)\.?)(?:[eE][-+]?[0-9]+)?",
            list("-+.0123456789"),
        ),
        ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.")),
        ("merge", r"<<", ["<"]),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), first)
    Loader.add_constructor("tag:yaml.org,2002:float", _number)
    loaded = yaml.load(text, Loader)  # a SafeLoader
    if _size(loaded, {}) > LARGEST:
        raise ConfigError(_TOO_LARGE)
    return loaded


def _size(value: Any, known: dict[int, float]) -> float:
    """Return how many values there are where each alias is written out; infinity where one holds itself."""
    if not isinstance(value, list | dict):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # until it is counted
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(one, known) for one in inner)
    return known[id(value)]


def _number(_loader: Any, node: Any) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))
