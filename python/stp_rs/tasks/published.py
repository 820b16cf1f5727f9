"""Published training rewards by name, quirks included; `docs/graders.md` lists what is wrong with each.

d1: arXiv 2504.12216. ESPO: arXiv 2512.03759, whose Countdown and Sudoku rewards are d1's. Use them to compare
with published runs; use the rewards of the tasks to train.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.countdown import number_set
from stp_rs.tasks.graders import published
from stp_rs.tasks.graders.verify import Pair, verify
from stp_rs.tasks.sudoku import plain_grid


def d1_gsm8k_parts(completions: Sequence[Any], answers: Sequence[str]) -> list[dict[str, float]]:
    """Return the five parts of d1's GSM8K reward for each completion, by name."""
    given = zip(texts(completions), map(str, answers), strict=True)
    return [published.gsm8k_parts(text, answer)._asdict() for text, answer in given]


def d1_gsm8k(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return d1's GSM8K reward (column `answer`, compared as text): layout, formats, digits, correct."""
    del prompts
    return [sum(parts.values()) for parts in d1_gsm8k_parts(completions, column(columns, "answer", len(completions)))]


def d1_math(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return d1's MATH reward (column `answer`): 2.0 for an equal box, and 0.75 or 0.25 for the format."""
    del prompts
    answers = [str(a) for a in column(columns, "answer", len(completions))]
    return [sum(published.math_reward(text, answer)) for text, answer in zip(texts(completions), answers, strict=True)]


def _countdown(completions: Sequence[Any], columns: Mapping[str, object]) -> list[float]:
    numbers = [number_set(one) for one in column(columns, "numbers", len(completions))]
    targets = [float(t) for t in column(columns, "target", len(completions))]
    given = zip(texts(completions), numbers, targets, strict=True)
    return [published.countdown_reward(*one) for one in given]


def d1_countdown(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return d1's Countdown reward (columns `numbers`, `target`): 1.0, 0.1 for any answer tag, or 0."""
    del prompts
    return _countdown(completions, columns)


def _sudoku(completions: Sequence[Any], columns: Mapping[str, object]) -> list[float]:
    puzzles = [plain_grid(p) for p in column(columns, "puzzle", len(completions))]
    solutions = [str(s) for s in column(columns, "solution", len(completions))]
    return [published.sudoku_reward(*one) for one in zip(texts(completions), puzzles, solutions, strict=True)]


def d1_sudoku(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return d1's Sudoku reward (columns `puzzle`, `solution`): share of blank cells, clues not looked at."""
    del prompts
    return _sudoku(completions, columns)


def espo_gsm8k(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return ESPO's GSM8K reward (column `answer`, compared as text): 1.0 or 0.0."""
    del prompts
    answers = [str(a) for a in column(columns, "answer", len(completions))]
    return [float(published.espo_number(text) == a) for text, a in zip(texts(completions), answers, strict=True)]


def espo_math(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return ESPO's MATH reward (column `answer`): 1.0 where math-verify (`math` extra) finds them equal."""
    del prompts
    answers = [str(a) for a in column(columns, "answer", len(completions))]
    pairs = [Pair(text, answer) for text, answer in zip(texts(completions), answers, strict=True)]
    return [float(bool(same)) for same in verify(pairs)]


def espo_countdown(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return ESPO's Countdown reward, which is d1's."""
    del prompts
    return _countdown(completions, columns)


def espo_sudoku(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return ESPO's Sudoku reward, which is d1's."""
    del prompts
    return _sudoku(completions, columns)
