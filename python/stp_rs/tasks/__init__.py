"""Tasks: problems with a generator or data set, a grader, rewards, and the priors that prompts determine."""

import inspect
from collections.abc import Callable
from functools import partial

from stp_rs.errors import ConfigError
from stp_rs.tasks.base import RewardFunc as RewardFunc
from stp_rs.tasks.base import Row as Row
from stp_rs.tasks.base import Split as Split
from stp_rs.tasks.base import Task as Task
from stp_rs.tasks.competition import math_answered, math_correct, math_task, math_verified
from stp_rs.tasks.countdown import CountdownTask as CountdownTask
from stp_rs.tasks.countdown import countdown_format as countdown_format
from stp_rs.tasks.countdown import countdown_solved as countdown_solved
from stp_rs.tasks.countdown import countdown_task
from stp_rs.tasks.data import DataTask as DataTask
from stp_rs.tasks.data import leaks as leaks
from stp_rs.tasks.data import load_rows as load_rows
from stp_rs.tasks.formats import length_penalty as length_penalty
from stp_rs.tasks.formats import tag_share as tag_share
from stp_rs.tasks.formats import tag_strict as tag_strict
from stp_rs.tasks.gsm8k import gsm8k_answered, gsm8k_correct, gsm8k_task
from stp_rs.tasks.published import (
    d1_countdown,
    d1_gsm8k,
    d1_math,
    d1_sudoku,
    espo_countdown,
    espo_gsm8k,
    espo_math,
    espo_sudoku,
)
from stp_rs.tasks.questions import QuestionTask as QuestionTask
from stp_rs.tasks.sudoku import SudokuTask as SudokuTask
from stp_rs.tasks.sudoku import sudoku_cells as sudoku_cells
from stp_rs.tasks.sudoku import sudoku_corrected_cells as sudoku_corrected_cells
from stp_rs.tasks.sudoku import sudoku_reward as sudoku_reward
from stp_rs.tasks.sudoku import sudoku_solved as sudoku_solved
from stp_rs.tasks.sudoku import sudoku_task
from stp_rs.tasks.sums import SumsTask as SumsTask
from stp_rs.tasks.sums import sums_solved as sums_solved
from stp_rs.tasks.sums import sums_steps as sums_steps
from stp_rs.tasks.sums import sums_task
from stp_rs.text import one_of

TASKS: dict[str, Callable[..., Task]] = {
    "countdown": countdown_task,
    "gsm8k": gsm8k_task,
    "math": math_task,
    "sudoku": sudoku_task,
    "sums": sums_task,
    "sums_128": partial(sums_task, count=16),
    "sums_256": partial(sums_task, count=26, max_term=9),
}
"""Task factories by name; a user's own task is added with `TASKS["mine"] = MyTask`.

`sums_128` and `sums_256` are chained sums with longer working: completions of so many tokens."""

REWARDS: dict[str, RewardFunc] = {
    f.__name__: f
    for f in (
        countdown_format,
        countdown_solved,
        gsm8k_answered,
        gsm8k_correct,
        math_answered,
        math_correct,
        math_verified,
        sudoku_cells,
        sudoku_corrected_cells,
        sudoku_reward,
        sudoku_solved,
        sums_solved,
        sums_steps,
        d1_countdown,
        d1_gsm8k,
        d1_math,
        d1_sudoku,
        espo_countdown,
        espo_gsm8k,
        espo_math,
        espo_sudoku,
    )
}
"""Reward functions by name; `d1_*` and `espo_*` are the published ones with their quirks."""


def get_reward(name: str) -> RewardFunc:
    """Return a reward function by name; ConfigError lists the names."""
    if name not in REWARDS:
        raise ConfigError(f"reward: got '{name}', {one_of(name, sorted(REWARDS))}")
    return REWARDS[name]


def get_task(name: str, **options: object) -> Task:
    """Return the task `name` with its options set; `data=` (a file, a hub id or rows) works for every task.

    So do `tokenizer=` and `chat_template_kwargs=`: tasks that ask through its chat template, where it has one, take
    them, and others do without.

    Raises:
        ConfigError: for an unknown name (it lists the known ones), or an option that the task does not have.

    Example:
        >>> get_task("sudoku", blanks=6).completion_length
        20
    """
    factory = TASKS.get(name)
    if factory is None:
        raise ConfigError(f"task: got '{name}', {one_of(name, sorted(TASKS))}")
    for name_of in {"tokenizer", "chat_template_kwargs"} - inspect.signature(factory).parameters.keys():
        options.pop(name_of, None)
    try:
        return factory(**options)
    except TypeError as error:
        raise ConfigError(f"task '{name}': {error}") from error
