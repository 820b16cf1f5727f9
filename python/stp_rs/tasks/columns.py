"""What every reward and loader needs: texts of completions, columns of a batch, rows of a file."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stp_rs.errors import ConfigError


def texts(completions: Sequence[Any]) -> list[str]:
    """Return one string per completion; of a conversation (a list of messages) the last message's content."""
    return [_text(completion) for completion in completions]


def _text(completion: object) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and completion and isinstance(completion[-1], Mapping):
        return str(completion[-1].get("content") or "")
    return "" if completion is None else str(completion)


def column(columns: Mapping[str, object], name: str, n: int) -> list[Any]:
    """Return column `name` of a batch of n rows; ConfigError when it is missing or has another length."""
    values = columns.get(name)
    if values is None:
        have = ", ".join(sorted(columns)) or "none"
        raise ConfigError(f"the reward needs the column '{name}'; the batch has: {have}. Keep it in the dataset.")
    values = list(values) if isinstance(values, Iterable) else []
    if len(values) != n:
        raise ConfigError(f"column '{name}' has {len(values)} values for {n} completions; give one per completion")
    return values


def read_rows(path: Path | str) -> list[dict[str, Any]]:
    """Return the records of a .csv, .jsonl or .json file (a list, or an object with one list)."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"data file {path} does not exist; give a .csv, .jsonl or .json file")
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".csv":
            return list(csv.DictReader(text.splitlines()))
        if path.suffix == ".json":
            return _records(json.loads(text), path)
        return [_mapping(json.loads(line), path) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); a .jsonl file has one object per line") from error


def _records(data: object, path: Path) -> list[dict[str, Any]]:
    if isinstance(data, Mapping):
        lists = [v for v in data.values() if isinstance(v, list) and v and isinstance(v[0], Mapping)]
        if len(lists) != 1:
            raise ConfigError(f"{path}: got an object with {len(lists)} lists of objects, needs exactly one")
        data = lists[0]
    if not isinstance(data, list):
        raise ConfigError(f"{path}: got a {type(data).__name__}, needs a list of objects")
    return [_mapping(record, path) for record in data]


def _mapping(record: object, path: Path) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ConfigError(f"{path}: got the row {json.dumps(record)[:80]}, needs an object with named columns")
    return dict(record)


def require(rows: Sequence[Mapping[str, Any]], names: Iterable[str], source: str) -> None:
    """Raise ConfigError with the missing column and the row, unless every row has all of `names`."""
    if not rows:
        raise ConfigError(f"{source}: no rows")
    for number, row in enumerate(rows):
        for name in names:
            if row.get(name) is None:
                shown = json.dumps(dict(row), ensure_ascii=False, default=str)[:200]
                raise ConfigError(f"{source}: row {number} has no column '{name}'; the row is {shown}")
