"""Published training rewards by name, quirks included; `docs/graders.md` lists what is wrong with each.

d1: arXiv 2504.12216. ESPO: arXiv 2512.03759, whose Countdown and Sudoku rewards are d1's. Use them to compare
with published runs; use the rewards of the tasks to train.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stp_rs._core import (
    espo_numbers,
    paper_countdown_reward,
    paper_gsm8k_reward,
    paper_math_reward,
    paper_sudoku_reward,
)
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.verify import verify

_GSM8K_PARTS = ("layout", "soft", "strict", "digits", "correct")


def d1_gsm8k_parts(completions: Sequence[Any], answers: Sequence[str]) -> list[dict[str, float]]:
    """Return the five parts of d1's GSM8K reward for each completion, by name."""
    found = paper_gsm8k_reward(texts(completions), [str(a) for a in answers])
    return [dict(zip(_GSM8K_PARTS, parts, strict=True)) for parts in found]


def d1_gsm8k(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return d1's GSM8K reward (column `answer`, compared as text): layout, formats, digits, correct."""
    del prompts
    return [sum(parts.values()) for parts in d1_gsm8k_parts(completions, column(columns, "answer", len(completions)))]


def d1_math(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return d1's MATH reward (column `answer`): 2.0 for an equal box, and 0.75 or 0.25 for the format."""
    del prompts
    answers = [str(a) for a in column(columns, "answer", len(completions))]
    return [correct + layout for correct, layout in paper_math_reward(texts(completions), answers)]


def _countdown(completions: Sequence[Any], columns: Mapping[str, object]) -> list[float]:
    numbers = [[int(x) for x in one] for one in column(columns, "numbers", len(completions))]
    targets = [float(t) for t in column(columns, "target", len(completions))]
    return paper_countdown_reward(texts(completions), numbers, targets)


def d1_countdown(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return d1's Countdown reward (columns `numbers`, `target`): 1.0, 0.1 for any answer tag, or 0."""
    del prompts
    return _countdown(completions, columns)


def _sudoku(completions: Sequence[Any], columns: Mapping[str, object]) -> list[float]:
    puzzles = [str(p) for p in column(columns, "puzzle", len(completions))]
    solutions = [str(s) for s in column(columns, "solution", len(completions))]
    return paper_sudoku_reward(texts(completions), puzzles, solutions)


def d1_sudoku(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return d1's Sudoku reward (columns `puzzle`, `solution`): share of blank cells, clues not looked at."""
    del prompts
    return _sudoku(completions, columns)


def espo_gsm8k(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return ESPO's GSM8K reward (column `answer`, compared as text): 1.0 or 0.0."""
    del prompts
    answers = [str(a) for a in column(columns, "answer", len(completions))]
    found = espo_numbers(texts(completions))
    return [float(a == b) for a, b in zip(found, answers, strict=True)]


def espo_math(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return ESPO's MATH reward (column `answer`): 1.0 where math-verify (`math` extra) finds them equal."""
    del prompts
    answers = [str(a) for a in column(columns, "answer", len(completions))]
    return [float(bool(same)) for same in verify(texts(completions), answers)]


def espo_countdown(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return ESPO's Countdown reward, which is d1's."""
    del prompts
    return _countdown(completions, columns)


def espo_sudoku(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return ESPO's Sudoku reward, which is d1's."""
    del prompts
    return _sudoku(completions, columns)
