"""Every grader takes any string: 100,000 adversarial ones without an exception, in time that grows linearly."""

import random
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from stp_rs import _core
from stp_rs.tasks import published as rewards
from stp_rs.tasks.graders import published
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
ANSWERED = " <reasoning>\na\n</reasoning>\n<answer>\n\\boxed{18}\n</answer>\n"
LONG = ["9" * 1_000_000, "\\boxed{" * 100_000, "<answer>" * 100_000, "<answer>" + "```" * 100_000, " " * 1_000_000]
LONG += ["<reasoning>" + "</reasoning>" * 50_000, "-" * 500_000, "1=" * 100_000, "[" * 1_000_000, "1+1=2;" * 100_000]
LONG += ["\\boxed{" + "1+" * 200_000 + "1}", "\\boxed{" + "\\sqrt" * 50_000 + "}"]

Grade = Callable[[list[str]], Sequence[object]]


def sudoku4(texts: list[str]) -> list[list[float]]:
    out = np.zeros((len(texts), 5), dtype=np.float32)
    _core.sudoku4_grade(texts, ["0" * 16] * len(texts), out)
    return out.tolist()


def sudoku9(texts: list[str]) -> list[list[float]]:
    n = len(texts)
    out = np.zeros((n, 5), dtype=np.float32)
    _core.sudoku9_grade(texts, ["0" * 81] * n, [""] * n, out)
    return out.tolist()


def countdown(texts: list[str]) -> list[int]:
    n = len(texts)
    out = np.zeros(n, dtype=np.uint8)
    _core.countdown_grade(texts, [[1, 2, 3]] * n, [7] * n, out)
    return out.tolist()


GRADERS: dict[str, Grade] = {
    "countdown": countdown,
    "sudoku4": sudoku4,
    "sudoku9": sudoku9,
    "numbers": _core.number_answers,
    "sums": lambda t: sums_grades(t, [[1, 2, 3]] * len(t))["solved"],
    "math": lambda t: _core.math_compare(_core.answer_spans(t), ["x^2, 2x, 3"] * len(t)),
    "math_raw": lambda t: _core.math_compare(t, ["1, 2, 3, 4"] * len(t)),
    "layout": lambda t: _core.tag_layout(t, ["reasoning", "answer"], False),
    "paper_countdown": lambda t: [
        published.countdown_correct(published.countdown_expression(x), [1, 2, 3], 7.0) for x in t
    ],
    "paper_countdown_reward": lambda t: rewards.d1_countdown(t, numbers=[[1, 2, 3]] * len(t), target=[7] * len(t)),
    "paper_sudoku": lambda t: [published.sudoku_cells(published.sudoku_answer(x), "0" * 16, SOLUTION) for x in t],
    "paper_sudoku_reward": lambda t: rewards.d1_sudoku(t, puzzle=["0" * 16] * len(t), solution=[SOLUTION] * len(t)),
    "paper_gsm8k": lambda t: [published.number_answer(x) for x in t],
    "paper_gsm8k_reward": lambda t: rewards.d1_gsm8k(t, answer=["18"] * len(t)),
    "paper_math": lambda t: [published.math_equal(published.math_answer(x) or "", "\\frac{1}{2}") for x in t],
    "paper_math_reward": lambda t: rewards.d1_math(t, answer=["18"] * len(t)),
    "espo_numbers": lambda t: [published.espo_number(x) for x in t],
}
READ = 65_536
"""Characters of a text that are read, from its end."""
CPU_SECONDS = 1.0
"""Of this thread, for one text. The graders need at most some milliseconds; quadratic time would need a minute."""


def adversarial(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(0, 10))) for _ in range(n)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return adversarial(100_000, 0)


@pytest.mark.parametrize("name", GRADERS)
def test_any_string_is_graded(name: str, texts: list[str]):
    found = GRADERS[name](texts)
    assert len(found) == len(texts)


@pytest.mark.parametrize("name", GRADERS)
def test_long_texts_take_linear_time(name: str, texts: list[str]):
    slow = []
    for text in [*sorted(texts, key=len)[-20:], *LONG]:
        start = time.thread_time()  # CPU time of this thread: what else the machine does is not in it
        GRADERS[name]([text])
        if time.thread_time() - start > CPU_SECONDS:
            slow.append(text[:100])
    assert not slow


@pytest.mark.parametrize("name", [name for name in GRADERS if name != "math_raw"])
def test_of_a_long_text_the_end_is_read(name: str):
    grade, kept = GRADERS[name], ("x" * READ)[: -len(ANSWERED)] + ANSWERED
    for before in ("\\boxed{7}", "<answer>7</answer>", "#### 7\n", "The answer is 7.\n", "9" * 1000):
        assert grade([before * 1000 + kept]) == grade([kept])
