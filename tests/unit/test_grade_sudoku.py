"""Known answers of the Sudoku grader, and the defects of published graders it does not share."""

import numpy as np
import pytest

from stp_rs import _core
from stp_rs.errors import DtypeError, InvalidValueError, ShapeError
from stp_rs.tasks.sudoku import sudoku_cells, sudoku_grades, sudoku_reward, sudoku_solved

PUZZLE = "1000341221434321"
SOLVED = "1234341221434321"
TWO_SOLUTIONS = "1200340021430021"


def one(text: str, puzzle: str = PUZZLE) -> dict[str, float]:
    return {name: values[0] for name, values in sudoku_grades([text], [puzzle]).items()}


def test_a_solved_grid():
    want = {"solved": 1.0, "cells": 1.0, "clues_kept": 1.0, "well_formed": 1.0, "chance": 0.25}
    assert one(f"[{SOLVED}]") == want


def test_overwritten_clues_are_not_solved():
    other = next(g for g in _core.sudoku4_grids() if g[0] == "2")
    got = one(f"[{other}]")
    assert (got["solved"], got["clues_kept"]) == (0.0, 0.0)
    assert sudoku_reward([f"[{other}]"], puzzle=[PUZZLE]) == [0.0]


def test_any_valid_solution_is_accepted():
    puzzle = "0" * 16
    for grid in _core.sudoku4_grids()[::37]:
        assert one(f"[{grid}]", puzzle)["solved"] == 1.0
    assert one(f"[{SOLVED}]", puzzle)["chance"] > 0.5  # with 288 solutions the nearest one is near


def test_prose_digits_are_no_grid():
    text = "Row 1 has 2, row 2 has 34, the box 3 has 1 2 3 4 and row 4 is 1234. <answer>see above</answer>"
    assert one(text)["well_formed"] == 0.0
    assert one("<answer>123434122143432</answer>")["cells"] == 0.0  # 15 digits are not padded


def test_share_and_reward():
    assert sudoku_cells(["[1231341221434321]"], puzzle=[PUZZLE]) == [pytest.approx(2 / 3)]
    assert sudoku_solved(["[1231341221434321]"], puzzle=[PUZZLE]) == [0.0]
    partial = 0.5 * (2 / 3 - 0.25) / 0.75
    assert sudoku_reward(["[1231341221434321]", f"[{SOLVED}]", ""], puzzle=[PUZZLE] * 3) == [
        pytest.approx(partial),
        1.0,
        0.0,
    ]


def test_conversations_and_prompts_as_puzzles():
    chat = [[{"role": "assistant", "content": f"[{SOLVED}]"}]]
    assert sudoku_solved(completions=chat, prompts=[PUZZLE]) == [1.0]


@pytest.mark.parametrize("puzzle", ["", "123", "1100" + "0" * 12, "x" * 16, "5" + "0" * 15])
def test_a_bad_puzzle_is_an_error_that_shows_it(puzzle: str):
    with pytest.raises(InvalidValueError, match="puzzle: got"):
        sudoku_grades(["[]"], [puzzle])


def test_the_boundary_names_what_is_wrong():
    with pytest.raises(DtypeError, match="out"):
        _core.sudoku4_grade(["a"], [PUZZLE], np.zeros((1, 5)))
    with pytest.raises(ShapeError, match="out"):
        _core.sudoku4_grade(["a"], [PUZZLE], np.zeros((2, 5), dtype=np.float32))
    with pytest.raises(ShapeError, match="puzzles"):
        _core.sudoku4_grade(["a"], [], np.zeros((1, 5), dtype=np.float32))
    with pytest.raises(InvalidValueError, match="blanks"):
        _core.sudoku4_puzzles([0], [0], 13, 0)
    _core.sudoku4_grade([], [], np.zeros((0, 5), dtype=np.float32))


@pytest.mark.parametrize(
    "puzzle",
    [
        *(PUZZLE.replace("0", blank) for blank in "._*?"),
        *("1000\n3412\n2143\n4321\n", "1...\r\n3412\r\n2143\r\n4321", "1 . . . | 3 4 1 2 | 2 1 4 3 | 4 3 2 1"),
        "[[1,0,0,0],[3,4,1,2],[2,1,4,3],[4,3,2,1]]",
    ],
)
def test_puzzles_are_read_in_any_layout_and_with_any_blanks(puzzle: str):
    assert sudoku_cells([f"[{SOLVED}]", "[1231341221434321]"], puzzle=[puzzle] * 2) == [1.0, pytest.approx(2 / 3)]
    assert sudoku_solved([f"[{SOLVED}]"], puzzle=[puzzle]) == [1.0]


def test_puzzles_may_be_lists():
    rows = [[1, 0, 0, 0], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]]
    assert sudoku_solved([f"[{SOLVED}]"], puzzle=[rows]) == [1.0]
