"""Loaders and splits: every source, every error, and no problem in two splits."""

import json
import sys
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stp_rs import tasks
from stp_rs.errors import ConfigError
from stp_rs.tasks import data
from stp_rs.tasks.sudoku import SudokuTask

ROWS = [{"question": "q", "answer": "1"}, {"question": "r", "answer": "2"}]


def test_files_and_rows_in_memory(tmp_path: Path):
    for name, text in {
        "a.json": json.dumps(ROWS),
        "b.json": json.dumps({"model": "x", "rows": ROWS}),
        "c.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
        "d.csv": "question,answer\nq,1\nr,2\n",
        "e.csv": "\ufeffquestion,answer\nq,1\nr,2\n",
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert data.load_rows(tmp_path / name) == ROWS
        assert data.load_rows(str(tmp_path / name)) == ROWS
    assert data.load_rows(tuple(ROWS)) == ROWS


def test_a_line_separator_inside_a_jsonl_string_is_no_line_break(tmp_path: Path):
    rows = [{"question": "a\u2028b\x85c", "answer": "1"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False), encoding="utf-8")
    assert data.load_rows(tmp_path / "a.jsonl") == rows


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "{}", "0 lists of objects"),
        ("a.json", '{"a": [{}], "b": [{}]}', "2 lists of objects"),
        ("a.json", "3", "got a int"),
        ("a.json", "[", "not valid JSON"),
        ("a.json", "[1]", "got the row 1"),
        ("a.jsonl", "[1]", r"got the row \[1\]"),
    ],
)
def test_bad_files(name: str, text: str, message: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        data.load_rows(tmp_path / name)


def test_hub_ids_go_to_the_datasets_extra(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def load_dataset(repository: str, config: str | None, split: str) -> list[dict[str, str]]:
        calls.append((repository, config, split))
        return ROWS

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert data.load_rows("openai/gsm8k:main") == ROWS
    assert data.load_rows("a/b", split="test") == ROWS
    assert calls == [("openai/gsm8k", "main", "train"), ("a/b", None, "test")]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'stp-rs\[datasets\]'"):
        data.load_rows("openai/gsm8k:main")


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"pip install 'stp-rs\[datasets\]'"):
        data.load_rows(tmp_path / "a.parquet")
    monkeypatch.undo()
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert data.load_rows(tmp_path / "a.parquet") == ROWS
    with pytest.raises(ConfigError, match="does not exist"):
        data.load_rows(tmp_path / "b.parquet")


def key_of(row: dict[str, int]) -> int:
    return row["key"]


@given(st.lists(st.integers(0, 60), min_size=3, max_size=200))
def test_no_key_is_in_two_splits_and_no_row_is_lost(keys: list[int]):
    rows = [{"key": key, "number": i} for i, key in enumerate(keys)]
    if len(set(keys)) < 3:
        with pytest.raises(ConfigError, match="different problems"):
            data.split_rows(rows, key_of)
        return
    made = data.split_rows(rows, key_of)
    seen = [{row["key"] for row in part} for part in made.values()]
    assert sum(map(len, seen)) == len(set(keys)) == len(set.union(*seen))
    assert all(seen)
    assert sorted(row["number"] for part in made.values() for row in part) == list(range(len(keys)))


def test_large_data_is_split_about_80_10_10():
    made = data.split_rows([{"key": i} for i in range(5000)], key_of)
    assert [round(len(made[s]) / 5000, 1) for s in data.SPLITS] == [0.8, 0.1, 0.1]


def test_test_data_that_leaks_is_refused_or_dropped():
    task = SudokuTask()
    rows, test = task.rows("train", 60, seed=0), task.rows("test", 20, seed=0)
    mixed = [{"Puzzle": r["puzzle"], "Solution": r["solution"]} for r in rows + test[:5]]
    held_out = [{"Puzzle": r["puzzle"], "Solution": r["solution"]} for r in test]
    assert len(data.leaks(rows + test[:5], test, task.split_key)) == 5
    with pytest.raises(ConfigError, match="5 of 65 training rows are also in the test data"):
        tasks.get_task("sudoku", data=mixed, test_data=held_out)
    made = tasks.get_task("sudoku", data=mixed, test_data=held_out, drop_leaks=True)
    solutions = {split: {r["solution"] for r in made.rows(split, 500, seed=0)} for split in data.SPLITS}
    assert not solutions["test"] & (solutions["train"] | solutions["validation"])
    assert len(made.rows("test", 500, seed=0)) == 20


def test_countdown_over_data_fits_its_limits_and_is_demonstrated_by_the_solver():
    problems = [{"input": f"{a},{b},100", "output": str(100 - a + b)} for a in range(20, 40) for b in (3, 7)]
    task = tasks.get_task("countdown", data=[*problems, {"input": "1,1,1", "output": "90"}], lazy=0.0)
    assert task.prompt_length >= len("20,3,100=83:")
    shown = task.demonstrations(60, seed=0)
    assert len(shown) >= 50
    assert set(task.score([row["completion"] for row in shown], shown)["solved"]) == {1.0}
    with pytest.raises(ConfigError, match="train, validation, test"):
        task.rows("dev", 1, seed=0)


def test_sudoku_over_data_keeps_its_copies():
    rows = [{"Puzzle": r["puzzle"], "Solution": r["solution"]} for r in SudokuTask().rows("train", 40, seed=0)]
    task = tasks.get_task("sudoku", data=rows)
    row = task.rows("train", 1, seed=0)[0]
    assert task.copies(row) == SudokuTask().copies(row)
    assert (task.completion_length, task.template) == (20, SudokuTask().template)


def csv_rows(tmp_path: Path, data: bytes) -> list[dict[str, object]]:
    (tmp_path / "rows.csv").write_bytes(data)
    return data_rows(tmp_path / "rows.csv")


def data_rows(path: Path) -> list[dict[str, object]]:
    return data.load_rows(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_csv_fields_keep_line_breaks_and_separators(encoding: str, ending: str, tmp_path: Path):
    question, answer = 'two\nlines\u2028and \x85 \x0b more, "quoted"', "48 clips\n#### 7\nbye"
    text = ending.join(["question,answer", '"' + question.replace('"', '""') + f'","{answer}"', "r,2", ""])
    mark = {"utf-16-le-bom": b"\xff\xfe", "utf-16-be-bom": b"\xfe\xff"}.get(encoding, b"")
    raw = mark + text.encode(encoding.removesuffix("-bom"))
    assert csv_rows(tmp_path, raw) == [{"question": question, "answer": answer}, {"question": "r", "answer": "2"}]


def test_a_gold_answer_of_two_lines_is_the_same_from_csv_and_json(tmp_path: Path):
    row = {"completion": "\\boxed{7}", "answer": "3 + 4\n#### 7\n(checked)"}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    (tmp_path / "a.csv").write_text('completion,answer\n\\boxed{7},"3 + 4\n#### 7\n(checked)"\n')
    assert data.load_rows(tmp_path / "a.csv") == data.load_rows(tmp_path / "a.json") == [row]


def test_a_csv_field_may_be_long(tmp_path: Path):
    long = "x" * 500_000
    assert csv_rows(tmp_path, f'a,b\n"{long}",1\n'.encode()) == [{"a": long, "b": "1"}]


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.csv", "caf\u00e9,b\n1,2\n".encode("cp1252"), r"a\.csv: not utf-8 text \(byte 3\); save it as UTF-8"),
        ("a.jsonl", '{"a": "\u4f60\u597d"}'.encode("gbk"), r"a\.jsonl: not utf-8 text \(byte \d+\)"),
        ("a.json", b"\xff\xfe[\xd8", r"a\.json: not utf-16 text"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16-le"), "NUL characters when read as utf-8"),
        ("a.jsonl", b'{"a": "x\0"}', "NUL characters"),
        ("a.csv", b"", "empty file"),
        ("a.json", b"\xef\xbb\xbf \n", "empty file"),
        ("a.jsonl", b"\n\n", "empty file"),
        ("a.csv", b"a,b\n1,2,3\n", r"line 2: got 3 fields for 2 columns"),
        ("a.csv", b"a,b\n1,2\n3\n", r"line 3: got 1 fields for 2 columns"),
        ("a.csv", b'a,b\n1,"2\n', r"not valid CSV"),
        ("a.csv", b"a,b, a\n1,2,3\n", "two columns named 'a'"),
        ("a.jsonl", b'{"a": 1,}', r"line 1: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": NaN}\n', r"line 3: not valid JSON \(got NaN, which JSON does not have"),
        ("a.jsonl", b"[" * 100_000, "nested too deep|not valid JSON"),
        ("a.jsonl", b"\x1f\x8b\x08\x00", "gzip archive"),
        ("a.csv", b"PK\x03\x04", "zip archive"),
        ("a.json", b"PAR1", "parquet"),
    ],
)
def test_files_that_cannot_be_read_are_named_in_one_line(name: str, raw: bytes, message: str, tmp_path: Path):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ConfigError, match=message) as caught:
        data.load_rows(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_folder_is_no_file(tmp_path: Path):
    with pytest.raises(ConfigError, match="is a folder"):
        data.read_file(tmp_path)


def test_jsonl_may_have_blank_lines_and_windows_line_ends(tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'\r\n{"a": 1}\r\n\r\n{"a": 2}\r\n')
    assert data.load_rows(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]
