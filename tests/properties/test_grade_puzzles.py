"""Laws of the puzzle graders against obvious oracles, on text that looks like answers and other text."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stp_rs import _core
from stp_rs.tasks.countdown import VERDICTS, countdown_verdicts
from stp_rs.tasks.sudoku import sudoku_grades
from tests.oracles import grade as oracle

GRIDS = oracle.all_grids()
puzzles = st.tuples(st.sampled_from(GRIDS), st.sets(st.integers(0, 15), min_size=1, max_size=12)).map(
    lambda x: "".join("0" if i in x[1] else c for i, c in enumerate(x[0]))
)
answers = st.one_of(st.sampled_from(GRIDS), st.text("01234", min_size=16, max_size=16))


def test_the_grids_are_those_of_the_enumeration():
    assert _core.sudoku4_grids() == GRIDS
    assert len(GRIDS) == 288


@given(answer=answers, puzzle=puzzles, keep=st.booleans())
def test_sudoku_scores_equal_the_oracle(answer: str, puzzle: str, keep: bool):
    if keep:
        answer = "".join(a if p == "0" else p for a, p in zip(answer, puzzle, strict=True))
    want = oracle.sudoku_score(answer, puzzle, GRIDS)
    for text in (f"[{answer}]", f"<answer>\n{answer}\n</answer><|eot_id|>", f"so: {' '.join(answer)}"):
        got = sudoku_grades([text], [puzzle])
        assert {name: pytest.approx(got[name][0]) for name in want} == want


expressions = st.recursive(
    st.integers(0, 30).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map(lambda x: f"({x})"),
        inner.map(lambda x: f"-{x}"),
    ),
    max_leaves=5,
)


@given(expression=st.one_of(expressions, st.text("0123456789+-*/() ", max_size=12)), shuffle=st.randoms())
def test_countdown_verdicts_equal_the_oracle(expression: str, shuffle: random.Random):
    try:
        reader = oracle._Reader(expression)
        value, numbers = reader.sum(), reader.numbers
    except (oracle.NotAnExpression, ZeroDivisionError):
        value, numbers = 1, [1, 2]
    shuffle.shuffle(numbers)
    target = int(value)
    got = countdown_verdicts([expression], [numbers], [target])[0]
    assert (got == "solved") == oracle.countdown_solved(expression, numbers, target)


@given(text=st.text(max_size=200), puzzle=puzzles)
def test_any_text_is_graded(text: str, puzzle: str):
    assert countdown_verdicts([text], [[1, 2, 3]], [6])[0] in VERDICTS
    assert 0.0 <= sudoku_grades([text], [puzzle])["cells"][0] <= 1.0
