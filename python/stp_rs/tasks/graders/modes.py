"""The two ways to grade a stored completion: as `published`, mistakes included, and `corrected`.

Every item on which the two differ is explained by one of `RULES`; `docs/graders.md` has the table.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stp_rs._core import answer_spans, countdown_expressions, grid_answers, number_answers, number_grade
from stp_rs.errors import ConfigError
from stp_rs.tasks.competition import RIGHT, boxed_truth, math_grades
from stp_rs.tasks.countdown import countdown_verdicts, number_set, whole_number
from stp_rs.tasks.data import shown
from stp_rs.tasks.graders import published
from stp_rs.tasks.gsm8k import final_number
from stp_rs.tasks.sudoku import plain_grid, sudoku_grades

MODES = ("published", "corrected")


@dataclass(frozen=True)
class Item:
    """A stored completion and the record it came from."""

    completion: str
    truth: Any
    question: str
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Grade:
    """What one mode made of an item."""

    correct: bool | None
    """None where the item has no ground truth that this mode could use."""
    answer: str
    """What was read."""
    why: str
    """How it was judged, in a word or two."""
    right: float = 0.0
    """Sudoku: blank cells right."""
    blanks: int = 0
    """Sudoku: blank cells."""


Grader = Callable[[Sequence[Item]], list[Grade]]


def _texts(items: Sequence[Item]) -> list[str]:
    return [item.completion for item in items]


# --- GSM8K ---
def _paper_number(truth: Any) -> float:
    """Return the ground truth as published code compares it: a float; NaN, which equals nothing, for none."""
    if truth is None:
        return math.nan
    if isinstance(truth, str):
        found = final_number(truth)
        return math.nan if found is None else found
    return float(truth)


def _gsm8k_paper(items: Sequence[Item]) -> list[Grade]:
    grades = []
    for item in items:
        found = published.number_answer(item.completion)
        if found is None:
            grades.append(Grade(False, "", "nothing found"))
        else:
            grades.append(Grade(found[0] == _paper_number(item.truth), found[1], f"{found[0]:g}"))
    return grades


def _gsm8k_corrected(items: Sequence[Item]) -> list[Grade]:
    given = _texts(items)
    truths = ["" if item.truth is None else str(item.truth) for item in items]
    grades = []
    for right, found in zip(number_grade(given, truths), number_answers(given), strict=True):
        value, answer = ("no final answer", "") if found is None else found
        grades.append(Grade(right, answer, "no ground truth" if right is None else value))
    return grades


def _gsm8k_rule(item: Item, published: Grade, corrected: Grade) -> str:
    if corrected.correct is None:
        return "no-truth"
    if not published.answer:
        return _missed(item.completion)
    if not corrected.answer:
        marked = re.search(r"<answer>|\\(boxed|fbox)|####|answer( is|:)", item.completion, re.IGNORECASE)
        return "not-one" if marked else "unmarked"
    cut = _squeeze(corrected.answer).startswith(_squeeze(published.answer))  # at the first closing brace
    if not cut:
        return "last-box"
    grouped = re.search(r"\d(,|\\,|\{,\})\d{3}", corrected.answer)
    return "thousands" if grouped else "reading"


def _missed(completion: str) -> str:
    """Return why published patterns find nothing where an answer is."""
    # box by box, because a pattern that runs to the next brace from every box takes quadratic time
    if any("\n" in box.split("}", 1)[0] for box in re.split(r"\\boxed\s*\{", completion)[1:]):
        return "line-break"
    return "unclosed" if "<answer>" in completion or "\\boxed" in completion else "marker"


# --- MATH ---
def _math_paper(items: Sequence[Item]) -> list[Grade]:
    grades = []
    for item in items:
        answer = published.math_answer(item.completion)
        if answer is None:
            grades.append(Grade(item.truth is None, "", "nothing found"))
        elif isinstance(item.truth, float):
            grades.append(Grade(published.math_close(answer, item.truth), answer, "as a number"))
        else:
            truth = "" if item.truth is None else str(item.truth)
            grades.append(Grade(published.math_equal(answer, truth), answer, "as text"))
    return grades


def _math_corrected(items: Sequence[Item]) -> list[Grade]:
    truths = ["" if item.truth is None else boxed_truth(item.truth) for item in items]
    how = math_grades(_texts(items), truths)
    return [
        Grade(None if item.truth is None or found == "unsure" else found in RIGHT, answer, found)
        for item, answer, found in zip(items, answer_spans(_texts(items)), how, strict=True)
    ]


def _math_rule(item: Item, published: Grade, corrected: Grade) -> str:
    if corrected.correct is None:
        return "unsure" if item.truth is not None else "no-truth"
    if published.correct:
        return "strict"
    if not published.answer or "\\boxed{" in published.answer:
        return _missed(item.completion)
    if _squeeze(published.answer) != _squeeze(corrected.answer):
        return "no-box" if "\\boxed" not in item.completion else "last-box"
    return f"as-{corrected.why}"


# --- Countdown ---
def countdown_problem(item: Item) -> tuple[list[int], int]:
    """Return numbers and target of an item, from its ground truth, its columns, or its question.

    Numbers may be text (`[3, 8]`); a truth may be `[[3, 8], 24]` as values or as text, a mapping with `numbers` and
    `target`, or the target alone where the numbers are a column.

    Raises:
        ConfigError: there are none, or they are no whole numbers; it shows the record.
    """
    try:
        numbers, target = _countdown_parts(item)
        return number_set(numbers), whole_number(target)
    except ValueError as error:
        raise ConfigError(
            f"an item has no numbers and target (ground_truth [[...], n]; {error}): {shown(item.record)}"
        ) from error


def _countdown_parts(item: Item) -> tuple[Any, Any]:
    truth, record = item.truth, item.record
    if isinstance(truth, str) and truth.lstrip().startswith(("[[", "{", "((")):
        with contextlib.suppress(ValueError):
            truth = json.loads(truth.replace("(", "[").replace(")", "]"))
    pair = 2
    if isinstance(truth, list | tuple) and len(truth) == pair and isinstance(truth[0], list | tuple | str):
        return truth[0], truth[1]
    if isinstance(truth, Mapping) and "numbers" in truth and "target" in truth:
        return truth["numbers"], truth["target"]
    numbers = next((record[name] for name in ("numbers", "nums") if record.get(name) is not None), None)
    target = record.get("target")
    if target is None and isinstance(truth, int | float | str):
        target = truth
    if numbers is not None and target is not None:
        return numbers, target
    asked = re.search(r"Numbers: \[([\d, ]+)\]", item.question, re.IGNORECASE)
    stated = re.search(r"Target: (\d+)(?![\d.]*\d)", item.question, re.IGNORECASE)
    if asked is None or stated is None:
        raise ValueError("none were found")
    return asked[1], stated[1]


def _countdown_paper(items: Sequence[Item]) -> list[Grade]:
    grades = []
    for item in items:
        answer = published.countdown_expression(item.completion)
        correct = published.countdown_correct(answer, *countdown_problem(item))
        grades.append(Grade(correct, answer, "right" if correct else "wrong"))
    return grades


def _countdown_corrected(items: Sequence[Item]) -> list[Grade]:
    problems = [countdown_problem(item) for item in items]
    verdicts = countdown_verdicts(_texts(items), [n for n, _ in problems], [t for _, t in problems])
    answers = countdown_expressions(_texts(items))
    return [Grade(v == "solved", a, v) for v, a in zip(verdicts, answers, strict=True)]


def _countdown_rule(item: Item, published: Grade, corrected: Grade) -> str:
    if published.correct:
        powers = "power" if re.search(r"\*\*|//", published.answer) else "strict"
        decimal = "decimal" if re.search(r"\d\.|\.\d", published.answer) else powers
        return "statement" if corrected.why == "wrong_statement" else decimal
    if "\\boxed" not in item.completion:
        return "no-box"
    same = _squeeze(published.answer) == _squeeze(corrected.answer)
    return "notation" if same or _digits(published.answer) == _digits(corrected.answer) else "last-box"


# --- Sudoku ---
def sudoku_puzzle(item: Item) -> str:
    """Return the puzzle of an item, from its columns or its question; 16 or 81 cells, 0 for a blank."""
    for name in ("puzzle", "Puzzle"):
        if item.record.get(name) is not None:
            return plain_grid(item.record[name])
    found = re.search(r"(?<![\d.])([\d.]{81}|[\d.]{16})(?![\d.])", item.question) or re.match(r"\d{16}", item.question)
    whole = plain_grid(item.question)
    if found is not None:
        return plain_grid(found[0])
    if len(whole) in (16, 81) and whole.isdecimal():
        return whole
    raise ConfigError(f"an item has no puzzle (a column or a question with 16 digits): {shown(item.record)}")


def _sudoku_paper(items: Sequence[Item]) -> list[Grade]:
    grades = []
    for item in items:
        answer = published.sudoku_answer(item.completion)
        right, blanks = published.sudoku_cells(
            answer, sudoku_puzzle(item), "" if item.truth is None else str(item.truth)
        )
        grades.append(Grade(right == blanks, answer, f"{right} of {blanks} cells", float(right), blanks))
    return grades


def _sudoku_corrected(items: Sequence[Item]) -> list[Grade]:
    grades = []
    for item in items:
        puzzle = sudoku_puzzle(item)
        scores = sudoku_grades([item.completion], [puzzle], ["" if item.truth is None else plain_grid(item.truth)])
        answer = grid_answers([item.completion], len(puzzle))[0]
        blanks = puzzle.count("0")
        right = scores["cells"][0] * blanks
        broken = "" if scores["clues_kept"][0] or answer is None else ", clues overwritten"
        why = "no grid" if answer is None else f"{right:.0f} of {blanks} cells{broken}"
        grades.append(Grade(bool(scores["solved"][0]), answer or "", why, right, blanks))
    return grades


def _sudoku_rule(item: Item, published: Grade, corrected: Grade) -> str:
    if not corrected.answer:
        return "length" if len(published.answer) != len(sudoku_puzzle(item)) else "prose"
    if published.answer == corrected.answer:
        return "second-solution" if corrected.right > published.right else "clues"
    return "layout"


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _digits(text: str) -> list[str]:
    return re.findall(r"\d+", text)


PUBLISHED: dict[str, Grader] = {
    "countdown": _countdown_paper,
    "gsm8k": _gsm8k_paper,
    "math": _math_paper,
    "sudoku": _sudoku_paper,
}
CORRECTED: dict[str, Grader] = {
    "countdown": _countdown_corrected,
    "gsm8k": _gsm8k_corrected,
    "math": _math_corrected,
    "sudoku": _sudoku_corrected,
}
EXPLAIN: dict[str, Callable[[Item, Grade, Grade], str]] = {
    "countdown": _countdown_rule,
    "gsm8k": _gsm8k_rule,
    "math": _math_rule,
    "sudoku": _sudoku_rule,
}


RULES: dict[str, str] = {
    "no-truth": "the item has no ground truth: published code counts it as wrong, we leave it out",
    "unclosed": "a box or answer tag is not closed, or a box has no braces: published patterns see nothing there",
    "line-break": "the box spans several lines: the published pattern does not match a line break",
    "marker": "the answer follows '####' or 'answer is': published code looks into boxes and tags only",
    "not-one": "several numbers, a range or a denial state no answer: published code takes one of the numbers",
    "unmarked": "published code takes a number from text that states no final answer",
    "last-box": "several answers are given: published code takes another one than the final one",
    "thousands": "a thousands separator ends the number for published code: 1,200 is read as 1",
    "reading": "the same text has another value: fraction, unit, expression or equation",
    "no-box": "the answer is in its tag without a box: published code looks at the whole text instead",
    "as-text": "equal once layout, units, signs or letter case are set aside",
    "as-number": "equal as numbers, spelt differently",
    "as-verify": "equal for math-verify",
    "unsure": "the answer is neither certainly right nor certainly wrong, and math-verify is not installed",
    "strict": "published code accepts an answer that does not state the result",
    "statement": "the value after the equals sign is not the value of the expression",
    "decimal": "a decimal such as 3.4 counts as the two numbers 3 and 4 for published code",
    "power": "a power or floor division is no operation of the game",
    "notation": "operators, brackets or an equation in a notation that published code cannot evaluate",
    "length": "the answer has not as many digits as the grid has cells: published code pads or cuts it",
    "prose": "the digits are part of prose, which is no grid",
    "second-solution": "the puzzle has several solutions and the answer is nearer to another one",
    "clues": "cells are counted differently although the digits are the same",
    "layout": "the digits are taken from another part or another layout of the text",
}
"""What each rule means; the task and the direction are in the table of `docs/graders.md`."""
