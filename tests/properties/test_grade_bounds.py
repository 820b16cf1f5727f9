"""Every grader takes any string: 100,000 adversarial ones without an exception, none over a millisecond."""

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from stp_rs import _core
from stp_rs.tasks.sums import sums_grades

PIECES = ["88**77**66", "(" * 500, ")" * 500, "<answer>", "</answer>", "\\boxed{", "}", "9" * 400, "1/0", "="]
PIECES += [
    "-" * 300,
    "\ud800",
    "\x00",
    "[",
    "]",
    "1234341221434321",
    "<|eot_id|>",
    "\u0663",
    " " * 300,
    "1+2*3",
]
PIECES += [
    "\\frac{1}{2}",
    "{" * 400,
    "\n",
    "0x10",
    "1e999",
    "nan",
    "__import__('os')",
    "\u2212",
    "1,2,3,4,5,6",
]
PIECES += [
    "\\sqrt",
    "\\text{",
    "```",
    "<reasoning>",
    "</reasoning>",
    "\\boxed ",
    "$",
    "#### ",
    "The answer is ",
]
PIECES += [
    "\\boxed{1" * 50,
    "<answer>" * 60,
    "12/" * 100,
    "1_" * 100,
    "x^",
    "a" * 300,
    "<" * 300,
    "\\frac" * 60,
]
SOLUTION = "1234341221434321"
LONG = ["9" * 1_000_000, "\\boxed{" * 100_000, "<answer>" * 100_000, "<answer>" + "```" * 100_000, " " * 1_000_000]
LONG += ["<reasoning>" + "</reasoning>" * 50_000, "-" * 500_000, "1=" * 100_000, "[" * 1_000_000, "1+1=2;" * 100_000]
LONG += ["\\boxed{" + "1+" * 200_000 + "1}", "\\boxed{" + "\\sqrt" * 50_000 + "}"]

Grade = Callable[[list[str]], Sequence[object] | None]


def sudoku4(texts: list[str]) -> None:
    _core.sudoku4_grade(texts, ["0" * 16] * len(texts), np.zeros((len(texts), 5), dtype=np.float32))


def sudoku9(texts: list[str]) -> None:
    n = len(texts)
    _core.sudoku9_grade(texts, ["0" * 81] * n, [""] * n, np.zeros((n, 5), dtype=np.float32))


def countdown(texts: list[str]) -> None:
    n = len(texts)
    _core.countdown_grade(texts, [[1, 2, 3]] * n, [7] * n, np.zeros(n, dtype=np.uint8))


def paper_math(texts: list[str]) -> list[bool]:
    read = [answer or "" for answer in _core.paper_math(texts)]
    return _core.paper_math_equal(read, ["\\frac{1}{2}"] * len(texts))


GRADERS: dict[str, Grade] = {
    "countdown": countdown,
    "sudoku4": sudoku4,
    "sudoku9": sudoku9,
    "numbers": _core.number_answers,
    "sums": lambda t: sums_grades(t, [[1, 2, 3]] * len(t))["solved"],
    "math": lambda t: _core.math_compare(_core.answer_spans(t), ["x^2, 2x, 3"] * len(t)),
    "math_raw": lambda t: _core.math_compare(t, ["1, 2, 3, 4"] * len(t)),
    "layout": lambda t: _core.tag_layout(t, ["reasoning", "answer"], False),
    "paper_countdown": lambda t: _core.paper_countdown(t, [[1, 2, 3]] * len(t), [7.0] * len(t)),
    "paper_countdown_reward": lambda t: _core.paper_countdown_reward(t, [[1, 2, 3]] * len(t), [7.0] * len(t)),
    "paper_sudoku": lambda t: _core.paper_sudoku(t, ["0" * 16] * len(t), [SOLUTION] * len(t)),
    "paper_sudoku_reward": lambda t: _core.paper_sudoku_reward(t, ["0" * 16] * len(t), [SOLUTION] * len(t)),
    "paper_gsm8k": _core.paper_gsm8k,
    "paper_gsm8k_reward": lambda t: _core.paper_gsm8k_reward(t, ["18"] * len(t)),
    "paper_math": paper_math,
    "paper_math_reward": lambda t: _core.paper_math_reward(t, ["18"] * len(t)),
    "espo_numbers": _core.espo_numbers,
}


def adversarial(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(0, 10))) for _ in range(n)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return adversarial(100_000, 0)


@pytest.mark.parametrize("name", GRADERS)
def test_any_string_is_graded_within_a_millisecond(name: str, texts: list[str]):
    grade = GRADERS[name]
    grade(texts)
    slow = []
    for text in [*texts[:300], *sorted(texts, key=len)[-100:], *LONG]:
        best = float("inf")
        for _ in range(20):  # a shared machine may stop us at any time: the best run is the grader's own time
            start = time.perf_counter()
            grade([text])
            best = min(best, time.perf_counter() - start)
            if best < 1e-3:
                break
        if best >= 1e-3:
            slow.append((best, text[:100]))
    assert not slow
