"""Texts that others wrote, in files that others read line by line: every file is UTF-8, every line one record."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs.errors import InvalidValueError
from stp_rs.train.callbacks import store_columns
from stp_rs.train.report import write_report, write_viewer
from tests.fixtures import ones, trainer

HOSTILE = "1\n2\r\n3\u2028\u2029\x85\x0b\x0c\x1c\0\u202e\ufeff\x1b[2J</script>'\",\\"
"""Every line break of Python and of JavaScript, a NUL, a direction mark, a byte order mark, an escape, quotes."""


class Strange:
    def __repr__(self) -> str:
        raise RuntimeError


CELLS: list[tuple[Any, Any]] = [
    (HOSTILE, HOSTILE),
    ("a\ud800b\udfff", "a\ufffdb\ufffd"),
    (None, None),
    (float("nan"), None),
    (float("-inf"), None),
    (np.float32(0.5), 0.5),
    (np.float64("nan"), None),
    (np.array([1, 2]), [1, 2]),
    (torch.tensor(2.0, requires_grad=True), 2.0),
    (True, True),
    (10**30, 10**30),
    ([{"role": "user", "content": "\ud800"}], [{"role": "user", "content": "\ufffd"}]),
    ({1: "x", "\ud800": (1, 2)}, {"1": "x", "\ufffd": [1, 2]}),
    (b"x", "b'x'"),
    (Strange(), "a Strange that cannot be shown"),
]


def table() -> dict[str, list[Any]]:
    return {"completion": [HOSTILE] * len(CELLS), "\ud800": [given for given, _ in CELLS]}


def test_any_value_has_a_place_in_a_line_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    rows = lines_of(store_columns(tmp_path / "table", table()))
    assert [row["\ufffd"] for row in rows] == [wanted for _, wanted in CELLS]
    assert {row["completion"] for row in rows} == {HOSTILE}


def test_any_value_has_a_place_in_parquet(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    rows = parquet.read_table(store_columns(tmp_path / "table", table())).to_pylist()
    told = [wanted if wanted is None or isinstance(wanted, str) else json.dumps(wanted) for _, wanted in CELLS]
    assert [row["\ufffd"] for row in rows] == told
    assert {row["completion"] for row in rows} == {HOSTILE}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, read as strictly as anybody may: a line ends wherever some reader ends one."""
    text = path.read_bytes().decode("utf-8")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_every_file_of_a_run_is_read_by_others(tmp_path: Path):
    run = tmp_path / "a \u2028\n\u202e run"

    def judge(completions: Sequence[str], log_extra: Any, log_metric: Any, **_: Any) -> list[float]:
        log_extra(HOSTILE, ["\ud800"] * len(completions))
        log_metric(f"{HOSTILE}\ud800", 1.0)
        return ones(completions)

    judge.__name__ = f"{HOSTILE}\ud800"
    options = {"log_completions": True, "stp_keep_rollouts": 2, "save_strategy": "steps", "save_steps": 1}
    rows = [{"prompt": HOSTILE[:8]}, {"prompt": "1\0\u202e"}, {"prompt": "1"}]
    made = trainer(run, reward=judge, rows=rows, stp_rollouts=2, logging_steps=1, **options)
    made.train()
    write_report(run)
    write_viewer(run)
    lines = lines_of(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, made.state.global_step + 1))
    assert f"{HOSTILE}\ud800" in lines[0]
    for path in run.rglob("*"):
        if path.suffix in (".json", ".yaml", ".html", ".md"):
            text = path.read_bytes().decode("utf-8")
            if path.suffix == ".json":
                json.loads(text, parse_constant=pytest.fail)
            if path.suffix == ".html":
                assert text.isascii() or "\u2028" not in text
    (stored, *_) = sorted((run / "completions").iterdir())
    if stored.suffix == ".jsonl":
        assert {line["prompt"] for line in lines_of(stored)} <= {row["prompt"] for row in rows}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("1\ud800", r"row 0: its prompt '1\\ud800' cannot be encoded: it holds half of a character"),
        (
            [{"role": "user", "content": "1"}],
            "row 0: its prompt .* cannot be encoded: ValueError: Cannot use chat",
        ),
        ([[1, 2]], r"row 0: its prompt \[\[1, 2\]\] cannot be encoded: "),
    ],
)
def test_prompts_that_no_tokenizer_reads_are_named(prompt: Any, message: str, tmp_path: Path):
    with pytest.raises(InvalidValueError, match=message):
        trainer(tmp_path, rows=[{"prompt": prompt}], num_generations=2, per_device_train_batch_size=2).train_step()
