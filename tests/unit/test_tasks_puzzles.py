"""The puzzle tasks: splits that cannot leak, lazy demonstrations, loaders that say what is wrong."""

import json
import os
from pathlib import Path

import pytest

from stp_rs import tasks
from stp_rs.errors import ConfigError
from stp_rs.tasks.countdown import split_of
from stp_rs.tasks.sudoku import lazy_fill, split_grids
from tests.oracles import grade as oracle

DATA = Path(os.environ.get("STP_SHARED", Path(__file__).parents[3] / "shared")) / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data at {DATA}")
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("name", ["sudoku", "countdown", "sums"])
def test_rows_are_a_function_of_split_n_and_seed(name: str):
    task = tasks.get_task(name)
    for split in SPLITS:
        rows = task.rows(split, 40, seed=1)
        assert rows == task.rows(split, 40, seed=1)
        assert rows[:7] == task.rows(split, 7, seed=1)
        assert rows != task.rows(split, 40, seed=2)
        assert len({row["prompt"] for row in rows}) > 20


@pytest.mark.parametrize("name", ["sudoku", "countdown", "sums"])
def test_texts_fit_the_alphabet_and_the_canvas(name: str):
    task = tasks.get_task(name)
    for row in task.demonstrations(300, seed=0):
        assert set(row["prompt"] + row["completion"]) <= set(task.alphabet)
        assert len(row["prompt"]) <= task.prompt_length
        assert len(row["completion"]) < task.completion_length
        assert all((row["completion"] + " " * 9)[at].strip() == text for at, text in task.template.items())
        assert all(row["completion"][at] == text for at, text in task.copies(row).items())


def test_sudoku_splits_share_no_solution_grid():
    grids = split_grids()
    assert [len(grids[s]) for s in SPLITS] == [216, 24, 48]
    assert sorted(sum(grids.values(), ())) == list(range(288))
    task = tasks.get_task("sudoku")
    seen = [{row["solution"] for row in task.rows(s, 500, seed=3)} for s in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert len(seen[2]) == 48


def test_sudoku_puzzles_have_one_solution_and_the_blanks_asked_for():
    for blanks in (4, 8, 12):
        for row in tasks.get_task("sudoku", blanks=blanks).rows("train", 30, seed=0):
            fits = [all(p in ("0", c) for p, c in zip(row["puzzle"], g, strict=True)) for g in GRIDS]
            assert sum(fits) == 1
            assert row["puzzle"].count("0") == blanks


GRIDS = oracle.all_grids()


def test_lazy_demonstrations_are_a_wrong_mode():
    assert lazy_fill("3000" + "0" * 8 + "0432") == "3124" + "12341234" + "1432"
    task = tasks.get_task("sudoku")
    rows = task.demonstrations(1000, seed=0)
    lazy = sum(row["completion"][1:-1] == lazy_fill(row["puzzle"]) for row in rows)
    assert 450 < lazy < 620  # a half, and some puzzles whose lazy answer is right
    scores = task.score([row["completion"] for row in rows], rows)
    assert set(scores) == {"solved", "cells", "clues_kept"}
    assert min(scores["clues_kept"]) == 1.0
    assert 0.4 < sum(scores["solved"]) / 1000 < 0.6
    perfect = tasks.get_task("sudoku", lazy=0.0).demonstrations(50, seed=0)
    assert task.score([row["completion"] for row in perfect], perfect)["solved"] == [1.0] * 50


def test_countdown_problems_are_solvable_and_split_by_number_set():
    for options in ({}, {"count": 4, "max_number": 20, "max_target": 200}, {"operators": "+-"}):
        task = tasks.get_task("countdown", **options)
        for split in SPLITS:
            rows = task.rows(split, 60, seed=0)
            assert {split_of(row["numbers"]) for row in rows} == {split}
            assert {split_of(row["numbers"][::-1]) for row in rows} == {split}
            for row in rows:
                assert oracle.countdown_solved(row["solution"], row["numbers"], row["target"])
    with pytest.raises(ConfigError, match="raise max_number"):
        tasks.get_task("countdown", count=2, max_number=1, operators="-").rows("test", 5, seed=0)


def test_countdown_demonstrations_and_scores():
    task = tasks.get_task("countdown")
    rows = task.demonstrations(500, seed=0)
    scores = task.score([row["completion"] for row in rows], rows)
    assert set(scores) == {"solved", "valid"}
    assert min(scores["valid"]) == 1.0
    solved = sum(scores["solved"]) / 500
    assert 1.0 - task.lazy < solved < 1.0 - 0.6 * task.lazy  # some sums happen to be the target


def test_sums_are_split_by_their_terms_in_any_order():
    for options in ({}, {"count": 3, "max_term": 99}, {"count": 12, "max_term": 9}):
        task = tasks.get_task("sums", **options)
        seen = [{task.split_key(row) for row in task.rows(s, 300, seed=5)} for s in SPLITS]
        assert sum(map(len, seen)) == len(set.union(*seen))
        assert all(row["answer"] == sum(row["terms"]) for row in task.rows("test", 20, seed=0))
    with pytest.raises(ConfigError, match="raise count or max_term"):
        tasks.get_task("sums", count=2, max_term=1).rows("test", 5, seed=0)


def test_sums_have_a_canvas_of_64_and_demonstrations_that_drop_carries():
    task = tasks.get_task("sums")
    assert task.completion_length == 64
    assert task.completion([1, 4, 5, 5, 5, 3, 2, 2]).startswith("01+4=05;05+5=10;10+5=15;15+5=20;")
    assert task.completion([1, 4, 5, 5, 5, 3, 2, 2], carry=False).startswith("01+4=05;05+5=00;00+5=05;05+5=00;")
    rows = task.demonstrations(1000, seed=0)
    scores = task.score([row["completion"] for row in rows], rows)
    assert set(scores) == {"solved", "steps"}
    dropped = [row["completion"] == task.completion(row["terms"], carry=False) for row in rows]
    assert 0.35 < sum(dropped) / 1000 < 0.5
    assert scores["solved"] == [float(row["completion"] == task.completion(row["terms"])) for row in rows]
    perfect = tasks.get_task("sums", lazy=0.0).demonstrations(50, seed=0)
    assert task.score([row["completion"] for row in perfect], perfect) == {"solved": [1.0] * 50, "steps": [1.0] * 50}


def test_sums_rewards_read_the_answer_and_each_line_of_working():
    columns = {"terms": [[7, 5, 9]] * 6}
    texts = ["07+5=12;12+9=21;[21]", "7+5=12;12+9=20;[021]", "12+9=21;7+5=12;[20]", "[21][3]", "21", "7+5=12;12+9=21"]
    assert tasks.get_reward("sums_solved")(texts, **columns) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert tasks.get_reward("sums_steps")(texts, **columns) == [1.0, 0.5, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(ConfigError, match="column 'terms'"):
        tasks.get_reward("sums_solved")(["[1]"])
    with pytest.raises(ConfigError, match="two numbers or more"):
        tasks.get_reward("sums_steps")(["[1]"], terms=[[1]])


def test_sums_from_a_file_fit_their_canvas_to_it(tmp_path: Path):
    path = tmp_path / "sums.jsonl"
    given = [{"terms": [10 + i, 5, 9], "answer": 24 + i} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, given)))
    task = tasks.get_task("sums", data=path)
    row = task.rows("train", 1, seed=0)[0]
    assert row["prompt"] == f"{row['terms'][0]}+5+9="
    completion = task.demonstrations(1, seed=0)[0]["completion"]
    assert len(completion) < task.completion_length
    assert all(completion[at] == text for at, text in task.copies(row).items())
    path.write_text("terms\n7+5+9\n")
    assert tasks.get_task("sums", count=3, max_term=9).load(path.rename(tmp_path / "a.csv"))[0]["terms"] == [7, 5, 9]
    for text, message in (
        ('{"numbers": [1, 2]}', r"no column 'terms'; the row is .*numbers"),
        ('{"terms": [1, "x"]}', r"row 0 is no chained sum .*\"x\""),
        ('{"terms": [1, 2], "answer": 4}', "not the sum 3"),
        ('{"terms": [1]}', "two terms or more"),
        ('{"terms": [1, 2]}', "does not fit this task"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            tasks.get_task("sums").load(path)


def test_unknown_names_and_options_are_errors_that_list_what_exists():
    with pytest.raises(ConfigError, match=r"countdown.*sudoku"):
        tasks.get_task("chess")
    with pytest.raises(ConfigError, match="blancs"):
        tasks.get_task("sudoku", blancs=3)
    for bad in ({"blanks": 13}, {"blanks": 0}, {"lazy": 1.5}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            tasks.get_task("sudoku", **bad)
    for bad in ({"count": 1}, {"operators": "^"}, {"max_number": 0}, {"lazy": -1}, {"max_target": 1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            tasks.get_task("countdown", **bad)
    for bad in ({"count": 1}, {"max_term": 0}, {"max_term": 10**9}, {"lazy": 2}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            tasks.get_task("sums", **bad)
    for name in ("countdown", "sudoku", "sums"):
        with pytest.raises(ConfigError, match="train, validation, test"):
            tasks.get_task(name).rows("dev", 1, seed=0)


@needs_data
def test_published_files_load():
    sudoku = tasks.get_task("sudoku")
    rows = sudoku.load(DATA / "sudoku_4x4_test.csv")
    assert len(rows) == 500
    assert all(len(row["prompt"]) == 16 for row in rows)
    assert sudoku.score([f"[{row['solution']}]" for row in rows], rows)["solved"] == [1.0] * 500
    countdown = tasks.get_task("countdown", max_number=100, max_target=100)
    rows = countdown.load(DATA / "countdown_cd3_test.jsonl")
    assert len(rows) == 256
    assert rows[0] == {"prompt": "30,100,93=23:", "numbers": [30, 100, 93], "target": 23}
    assert countdown.load(DATA / "countdown_cd3_steps.jsonl")[0]["target"] == 50


def test_loaders_name_the_missing_column_and_show_the_row(tmp_path: Path):
    sudoku, countdown = tasks.get_task("sudoku"), tasks.get_task("countdown")
    path = tmp_path / "a.csv"
    path.write_text("Puzzle,Answer\n3102200002100320,3142243142131324\n")
    with pytest.raises(ConfigError, match=r"no column 'solution'; the row is .*3102200002100320"):
        sudoku.load(path)
    path.write_text("Puzzle,Solution\n3102200002100320,3142243142131342\n")
    with pytest.raises(ConfigError, match="row 0: '3142243142131342' is no valid solution"):
        sudoku.load(path)
    path.write_text("Puzzle,Solution\n0432100020004321,1\n")
    with pytest.raises(ConfigError, match="row 0"):
        sudoku.load(path)
    lines = tmp_path / "b.jsonl"
    lines.write_text(json.dumps({"input": "1,2,3"}))
    with pytest.raises(ConfigError, match=r"no column 'output'; the row is .*1,2,3"):
        countdown.load(lines)
    lines.write_text(json.dumps({"input": "1,x,3", "output": "4"}))
    with pytest.raises(ConfigError, match="row 0 is no Countdown problem"):
        countdown.load(lines)
    lines.write_text(json.dumps({"input": "1,20,300", "output": "4"}))
    with pytest.raises(ConfigError, match="larger than this task"):
        countdown.load(lines)
    lines.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        countdown.load(lines)
    with pytest.raises(ConfigError, match="does not exist"):
        countdown.load(tmp_path / "none.jsonl")
    lines.write_text("")
    with pytest.raises(ConfigError, match="empty file"):
        countdown.load(lines)
