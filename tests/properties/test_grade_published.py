"""`published` equals Python's own reading of the published rules, on text that puts them to the test."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stp_rs.tasks import published
from stp_rs.tasks.graders import published as graders
from tests.oracles import paper as oracle


def text(*pieces: str, max_size: int = 12) -> st.SearchStrategy[str]:
    """Strings of the given pieces, some free characters among them.

    Characters that are a letter in one version of Unicode only, or to Rust only (marks), are left out.
    """
    free = st.characters(codec="utf-8", exclude_categories=["Cn", "Mn", "Mc", "Me", "So"])
    return st.lists(st.one_of(st.sampled_from(pieces), free), max_size=max_size).map("".join)


SPACES = (" ", "\n", "\t", "\x1c", "\x85", "\u3000")
NUMBERS = (
    "0",
    "12",
    "-",
    ".",
    ",",
    "3.5",
    "1,200",
    "1_000",
    "1e5",
    "nan",
    "inf",
    "\u0663",
    "\uff11",
    "\u00b2",
)
TAGS = ("<answer>", "</answer>", "\\boxed{", "}", "{", "\\boxed ", "\\fbox{", "$", "\\boxed", "...")
ENDS = ("<|eot_id|>", "<|endoftext|>")


@given(text(*SPACES, *NUMBERS, *TAGS))
def test_gsm8k(t: str):
    want, got = oracle.gsm8k(t), graders.number_answer(t)
    if want is None or got is None:
        assert (want is None) == (got is None)
    else:
        assert got[0] == want or (math.isnan(got[0]) and math.isnan(want))


MATHS = (
    "\\frac",
    "\\dfrac",
    "\\tfrac",
    "\\sqrt",
    "1",
    "2",
    "{",
    "}",
    "/",
    "=",
    "x",
    " ",
    ".",
    "0.5",
    "\\text{ cm}",
)
MATHS += (
    "\\!",
    "\\\\",
    "\\left",
    "\\right",
    "^{\\circ}",
    "^\\circ",
    "\\$",
    "\\%",
    "\n",
    "-",
    "+",
    "_",
    "\u0661",
)


@given(text(*MATHS), text(*MATHS))
def test_math_equality(a: str, b: str):
    assert (graders.math_equal(a, b), graders.math_equal(a, a)) == (oracle.math_equal(a, b), True)


@given(text(*MATHS, max_size=6))
def test_math_normal_forms(a: str):
    try:
        want = oracle.normal(a)
    except (ValueError, IndexError):
        with pytest.raises((ValueError, IndexError)):
            graders.normal(a)
    else:
        assert graders.normal(a) == want


@given(text(*TAGS, "1", "x", "\n"))
def test_math_reading(t: str):
    assert graders.math_answer(t) == oracle.math_answer(t)


OPERATORS = (
    "+",
    "-",
    "*",
    "/",
    "(",
    ")",
    ".",
    " ",
    "=",
    "\n",
    "2",
    "3",
    "4",
    "02",
    "\\div",
    "\\times",
    "\\cdot",
)


@given(text(*OPERATORS, *TAGS))
def test_countdown_expressions(t: str):
    assert graders.countdown_expression(t) == oracle.countdown_expression(t)


@given(
    st.lists(st.sampled_from([*OPERATORS[:9], *OPERATORS[10:14], "\t", "\x0b", "//", "\u0662"]), max_size=9).map(
        "".join
    ),
    st.sampled_from([2.0, 3.0, 5.0, 6.0, 0.75, 9.0, -1.0]),
)
def test_countdown_values(expression: str, target: float):
    if re.search(r"\*\s*\*.*\*\s*\*", expression, re.DOTALL):
        return  # towers of powers may hang Python
    value = oracle.countdown_value(expression)
    digits = [int(d) for d in re.findall(r"\d+", expression)]
    goals = [target] if value is None or abs(value) > 1e15 else [target, value]
    boxed = f"\\boxed{{{expression}}}"
    for goal in goals:
        graded = graders.countdown_expression(boxed)
        got = graders.countdown_correct(graded, digits, goal)
        assert got == oracle.countdown_correct(graded, digits, goal), (graded, goal)


SOLUTION = "1234341221434321"
GRIDS = (SOLUTION, "1234", "0000", "```", "\u0661", "_", "a", "\n", " ", *TAGS[:2], *ENDS)
GRID_TEXT = text(*GRIDS)


@given(GRID_TEXT, st.sampled_from(["1200341200430020", SOLUTION, "0" * 16]))
def test_sudoku(t: str, puzzle: str):
    answer = graders.sudoku_answer(t)
    assert answer == oracle.sudoku_answer(t)
    assert graders.sudoku_cells(answer, puzzle, SOLUTION) == (
        oracle.sudoku_right(answer, puzzle, SOLUTION),
        puzzle.count("0"),
    )
    reward = published.d1_sudoku([t], puzzle=[puzzle], solution=[SOLUTION])
    assert reward == [pytest.approx(oracle.sudoku_reward(t, puzzle, SOLUTION))]


LAYOUT = ("<reasoning>", "</reasoning>", "<answer>", "</answer>", "\n", " ", "18", "a", "\u00b2")
WHOLE = ("<reasoning>\na\n</reasoning>\n<answer>\n", "18\n</answer>\n", "<reasoning>a</reasoning>\n<answer>")


@given(text(*LAYOUT, *WHOLE))
def test_gsm8k_reward(t: str):
    want = oracle.gsm8k_reward(t, "18")
    got = published.d1_gsm8k_parts([t], ["18"])[0]
    assert got == pytest.approx(want)
    assert published.d1_gsm8k([t], answer=["18"]) == [pytest.approx(sum(want.values()))]


@given(text("The answer is ", "#### ", "18", "-", ".", ",", "\n", " ", "\u0663"))
def test_espo_numbers(t: str):
    assert graders.espo_number(t) == oracle.espo_number(t)
    assert published.espo_gsm8k([t], answer=[oracle.espo_number(t)]) == [1.0]


@given(text(*TAGS, *OPERATORS))
def test_countdown_reward(t: str):
    if "**" in t.replace(" ", ""):
        return
    answer = oracle.last_answer(t)
    right = answer is not None and oracle.countdown_correct(answer.strip(), [2, 3], 6.0)
    want = 1.0 if right else 0.0 if answer is None else 0.1
    columns = {"numbers": [[2, 3]], "target": [6]}
    assert published.d1_countdown([t], **columns) == published.espo_countdown([t], **columns) == [want]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        *[("1+2*3", 7.0), ("-2**2", -4.0), ("2**-1", 0.5), ("2**3**2", 512.0), ("-7//2", -4.0), ("-7.5//2", -4.0)],
        *[("007.5", 7.5), ("00", 0.0), ("(5\n+6)", 11.0), ("- - +3", 3.0), ("0**0", 1.0), ("1**99999999999", 1.0)],
        *[("2**202-2**202+3", 3.0), ("(" * 150 + "1" + ")" * 150, 1.0), ("99999999999*99999999999", 9.9999999998e21)],
        *[(bad, None) for bad in ("", "()", "1+", "(1", "1 2", "2(3)", "007", "1..2", ".", "5\n+6", "1/0", "1//0")],
        *[(bad, None) for bad in ("0**-1", "(-8)**(1/3)", "88**77**66", "10.0**400", "2**99999999999", "\u0663", "x")],
        *[("(" * 100_000, None), ("-" * 100_000 + "1", None), ("9" * 50_000, None), ("9**9**9**9", None)],
        *[("__import__('os').getcwd()", None), ("1 if 2 else 3", None), ("[1][0]", None), ("(1).real", None)],
    ],
)
def test_arithmetic_is_pythons_and_bounded(expression: str, value: float | None):
    assert graders.arithmetic(expression) == value
