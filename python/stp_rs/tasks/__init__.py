"""Tasks: problems with a generator or data set, a grader, rewards, and the priors that prompts determine."""

from collections.abc import Callable

from stp_rs.errors import ConfigError
from stp_rs.tasks.base import RewardFunc as RewardFunc
from stp_rs.tasks.base import Row as Row
from stp_rs.tasks.base import Split as Split
from stp_rs.tasks.base import Task as Task
from stp_rs.tasks.countdown import CountdownTask as CountdownTask
from stp_rs.tasks.countdown import countdown_format as countdown_format
from stp_rs.tasks.countdown import countdown_solved as countdown_solved
from stp_rs.tasks.sudoku import SudokuTask as SudokuTask
from stp_rs.tasks.sudoku import sudoku_cells as sudoku_cells
from stp_rs.tasks.sudoku import sudoku_reward as sudoku_reward
from stp_rs.tasks.sudoku import sudoku_solved as sudoku_solved

TASKS: dict[str, Callable[..., Task]] = {"countdown": CountdownTask, "sudoku": SudokuTask}
"""Task factories by name; a user's own task is added with `TASKS["mine"] = MyTask`."""


def get_task(name: str, **options: object) -> Task:
    """Return the task `name` with its options set.

    Raises:
        ConfigError: for an unknown name (it lists the known ones), or an option that the task does not have.

    Example:
        >>> get_task("sudoku", blanks=6).completion_length
        20
    """
    factory = TASKS.get(name)
    if factory is None:
        raise ConfigError(f"task: got '{name}', needs one of {', '.join(sorted(TASKS))}")
    try:
        return factory(**options)
    except TypeError as error:
        raise ConfigError(f"task '{name}': {error}") from error
