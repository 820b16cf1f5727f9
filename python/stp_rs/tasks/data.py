"""Data sets from files, the hub or memory; splits by key that cannot leak; tasks that serve such rows."""

import codecs
import csv
import importlib
import io
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from stp_rs._core import permutation, row_uid
from stp_rs.errors import ConfigError
from stp_rs.tasks.base import Row, Split, Task
from stp_rs.tasks.tokens import check_places, count, longest, rounded

Source = str | Path | Sequence[Mapping[str, Any]]
"""A .csv, .jsonl, .json or .parquet file, a hub id (`owner/name` or `owner/name:config`), or rows."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Rows to learn from, rows to select checkpoints on, and rows to report: never the same ones."""
_SHARES = (0.8, 0.1)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def load_rows(source: Source, split: str = "train") -> list[dict[str, Any]]:
    """Return the records of a source as they are; `split` is used for a hub id only.

    Raises:
        ConfigError: for a missing file, an unknown format or a missing extra; it says what to do.
    """
    if not isinstance(source, str | Path):
        return [dict(row) for row in source]
    path = Path(source)
    if not path.suffix and not path.exists() and _HUB_ID.fullmatch(str(source)):
        return _hub(str(source), split)
    if path.suffix == ".parquet":
        return _parquet(path)
    return read_file(path)


def _hub(name: str, split: str) -> list[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"'{name}' is a hub id: pip install 'stp-rs[datasets]', or give a file") from error
    repository, _, config = name.partition(":")
    return [dict(row) for row in datasets.load_dataset(repository, config or None, split=split)]


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(f"{path} is parquet: pip install 'stp-rs[datasets]', or convert it to JSONL") from error
    if not path.is_file():
        raise ConfigError(f"data file {path} does not exist")
    return [dict(row) for row in parquet.read_table(path).to_pylist()]


def read_file(path: Path) -> list[dict[str, Any]]:
    """Return the records of a .csv, .jsonl or .json file (a list, or an object with one list).

    Text is UTF-8, or UTF-16 with a byte order mark. A .jsonl file has one object per line, blank lines aside.

    Raises:
        ConfigError: the file cannot be read, is empty, or is not what its name says; it names the file and the place.
    """
    if path.is_dir():
        raise ConfigError(f"data file {path} is a folder; give a .csv, .jsonl, .json or .parquet file")
    if not path.is_file():
        raise ConfigError(f"data file {path} does not exist; give a .csv, .jsonl, .json or .parquet file")
    text = _text(path)
    if not text.strip():
        raise ConfigError(f"{path}: got an empty file, needs one record or more")
    if path.suffix == ".csv":
        return _csv(text, path)
    if path.suffix == ".json":
        return _records(_json(text, f"{path}"), path)
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    return [_mapping(_json(line, f"{path}, line {n}"), path) for n, line in lines if line.strip()]


_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def _text(path: Path) -> str:
    """Return the text of a file, line breaks as they are; ConfigError names the encoding that was tried."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"data file {path} cannot be read: {error.strerror or error}") from error
    packed = next((name for mark, name in _COMPRESSED.items() if data.startswith(mark)), None)
    if packed or data.startswith(b"PAR1"):
        raise ConfigError(
            f"{path}: got {f'a {packed} archive' if packed else 'parquet'}, needs text; unpack or rename it"
        )
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not {encoding} text (byte {error.start}); save it as UTF-8, or as UTF-16 with a byte order mark"
        ) from error
    if "\0" in text:
        raise ConfigError(
            f"{path}: got NUL characters when read as {encoding}; save it as UTF-8, or as UTF-16 with a byte order mark"
        )
    return text


def _json(text: str, where: str) -> Any:
    """Return a JSON value; ConfigError for anything else, NaN and Infinity among it, which JSON does not have."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ConfigError(f"{where}: nested too deep; a .jsonl file has one object per line") from None
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON ({error}); a .jsonl file has one object per line") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"got {constant}, which JSON does not have; write null")


def _csv(text: str, path: Path) -> list[dict[str, Any]]:
    """Return the rows of CSV text by column; line breaks inside quotes stay, and a field may have any length."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    limit = csv.field_size_limit(max(len(text) + 1, csv.field_size_limit()))
    try:
        for row in reader:
            rows.append((reader.line_num, row))
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error
    finally:
        csv.field_size_limit(limit)
    rows = [(line, row) for line, row in rows if row]
    names = [name.strip() for name in rows[0][1]]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{path}: got two columns named {twice!r}, needs different names in the first line")
    for line, row in rows[1:]:
        if len(row) != len(names):
            raise ConfigError(
                f"{path}, line {line}: got {len(row)} fields for {len(names)} columns; quote fields that hold commas"
            )
    return [dict(zip(names, row, strict=True)) for _, row in rows[1:]]


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
                raise ConfigError(f"{source}: row {number} has no column '{name}'; the row is {shown(row)}")


def source_name(source: Source) -> str:
    """Return what to call a source in a message."""
    return str(source) if isinstance(source, str | Path) else "data"


def shown(row: Mapping[str, Any]) -> str:
    """Return a row as one short line for a message."""
    return json.dumps(dict(row), ensure_ascii=False, default=str)[:200]


Key = Callable[[Row], Hashable]
"""What must not be in two splits: the solution grid, the number set, the question."""


def share_of(key: Hashable) -> float:
    """Return the place of a key in [0, 1): a fixed function of its text, the same everywhere."""
    code = 0
    for byte in repr(key).encode():
        code = row_uid(code, byte)
    return code / 2**64


def split_rows(rows: Sequence[Row], key: Key) -> dict[Split, list[Row]]:
    """Return rows by split, about 80/10/10 by key; equal keys go together.

    Where the hash leaves a split of a small file empty, keys are dealt by rank instead.

    Raises:
        ConfigError: for fewer than three different keys.
    """
    places = {key(row): share_of(key(row)) for row in rows}
    if len(places) < len(SPLITS):
        raise ConfigError(f"{len(places)} different problems cannot fill train, validation and test; give more rows")
    cuts = (_SHARES[0], sum(_SHARES))
    found = {k: SPLITS[(p >= cuts[0]) + (p >= cuts[1])] for k, p in places.items()}
    if len(set(found.values())) < len(SPLITS):
        ranked = sorted(places, key=lambda k: (places[k], repr(k)))
        held_out = max(1, round(len(ranked) * _SHARES[1]))
        found = dict.fromkeys(ranked, SPLITS[0])
        found.update(dict.fromkeys(ranked[-2 * held_out :], SPLITS[1]))
        found.update(dict.fromkeys(ranked[-held_out:], SPLITS[2]))
    made: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        made[found[key(row)]].append(row)
    return made


def leaks(train: Sequence[Row], test: Sequence[Row], key: Key) -> list[int]:
    """Return the indices of training rows whose key is also in the test rows."""
    held_out = {key(row) for row in test}
    return [i for i, row in enumerate(train) if key(row) in held_out]


def make_splits(rows: list[Row], test: list[Row] | None, key: Key, drop_leaks: bool) -> dict[Split, list[Row]]:
    """Return rows by split; given test rows are the test split, rows that leak are an error or dropped."""
    if test is None:
        return split_rows(rows, key)
    found = set(leaks(rows, test, key))
    if found and not drop_leaks:
        first = rows[min(found)]
        raise ConfigError(
            f"{len(found)} of {len(rows)} training rows are also in the test data by their solution, numbers "
            f"or question, for example {shown(first)}; remove them, or pass drop_leaks=True"
        )
    kept = [row for i, row in enumerate(rows) if i not in found]
    made = split_rows(kept, key)
    return {"train": made["train"] + made["test"], "validation": made["validation"], "test": list(test)}


class Sourced(Task, Protocol):
    """A task whose rows may come from data."""

    def split_key(self, row: Row) -> Hashable:
        """Return what must not be in two splits."""
        ...

    def demonstrate(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """Return the rows that can be demonstrated, with an added `completion`."""
        ...


class DataTask:
    """A task that serves rows of a data set instead of generated ones; lengths and alphabet cover those rows.

    Training rows come around again, in a new order, when more are asked for than there are; validation and
    test rows never do, so that a score counts each of them once.
    """

    def __init__(self, base: Sourced, data: Source, test_data: Source | None = None, drop_leaks: bool = False) -> None:
        """Load, convert and split the data with the base task's own loader."""
        rows = base.load(data)  # type: ignore[arg-type]  # our loaders take any source
        test = None if test_data is None else base.load(test_data)  # type: ignore[arg-type]
        self._base = base
        self._rows = make_splits(rows, test, base.split_key, drop_leaks)
        every = rows + (test or [])
        shown_rows = base.demonstrate(every, 0)
        longest = max((len(row["completion"]) + 1 for row in shown_rows), default=0)
        self.name = base.name
        self.whole_answer = base.whole_answer
        self.template = base.template
        self._prompts = [row["prompt"] for row in every]
        self._completions = [row["completion"] for row in shown_rows]
        for name in ("reference", "allowed"):  # what a task may offer beside `Task`
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))
        self.reward_funcs = base.reward_funcs
        self.alphabet = "".join(sorted(set(base.alphabet).union(*self._prompts, *self._completions)))
        self.prompt_length = max([base.prompt_length, *map(len, self._prompts)])
        fits = longest <= base.completion_length
        self.completion_length = base.completion_length if fits else -(-longest // 8) * 8

    def rows(self, split: Split, n: int, seed: int) -> list[Row]:
        """Return n rows of a split in an order fixed by the seed; of validation and test at most all."""
        rows = self._rows.get(split)
        if rows is None:
            raise ConfigError(f"split: got '{split}', needs one of {', '.join(SPLITS)}")
        picked: list[Row] = []
        turn = 0
        while len(picked) < n and (turn == 0 or split == "train"):
            order = permutation(seed, row_uid(SPLITS.index(split), turn), len(rows)).tolist()
            picked += [dict(rows[i]) for i in order[: n - len(picked)]]
            turn += 1
        return picked

    def demonstrations(self, n: int, seed: int) -> list[Row]:
        """Return up to n training rows with `completion`; fewer where rows cannot be demonstrated."""
        return self._base.demonstrate(self.rows("train", n, seed), seed)

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Return what the base task takes for the answer."""
        return self._base.answer_span(text)

    def max_prompt_tokens(self, tokenizer: Any) -> int:
        """Return the longest prompt of the rows, in tokens."""
        return longest(self._prompts, tokenizer)

    def completion_tokens(self, tokenizer: Any) -> int:
        """Return a canvas for the longest completion of the rows, in tokens; at least the base task's layout.

        Where every character is a token it is `completion_length`. Otherwise it is the longest completion and one
        end-of-text, in a multiple of 8.
        """
        by_character = all(count(text, tokenizer) == len(text) for text in self._completions[:64])
        found = longest(self._completions, tokenizer) + 1
        return max(self.completion_length, found) if by_character else rounded(found, 8)

    def check_places(self, tokenizer: Any) -> None:
        """Raise ConfigError unless a tokenizer has one token per place of the base task's layout."""
        if self.template:
            check_places(self.name, self._completions, tokenizer)

    def copies(self, row: Row) -> Mapping[int, str]:
        """Return what the base task's prompts determine."""
        return self._base.copies(row)

    def score(self, completions: Sequence[str], rows: Sequence[Row]) -> dict[str, list[float]]:
        """Return the base task's scores."""
        return self._base.score(completions, rows)

    def load(self, path: Path) -> list[Row]:
        """Return the rows of another file in the same format."""
        return self._base.load(path)
