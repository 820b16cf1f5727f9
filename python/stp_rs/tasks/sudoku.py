"""4x4 Sudoku, the task of the quickstart. Prompt: 16 digits, 0 a blank. Completion: `[` + 16 digits + `]`."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from stp_rs._core import permutation, row_uid, sudoku4_grade, sudoku4_grids, sudoku4_puzzles, sudoku9_grade
from stp_rs.errors import ConfigError
from stp_rs.priors.choice import tag_span
from stp_rs.tasks.base import RewardFunc, Row, Split
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.data import DataTask, Source, load_rows, require, source_name
from stp_rs.tasks.tokens import Placed

CELLS = 16
MAX_BLANKS = 12
LARGE = 81
PARTIAL = 0.5
"""Most that an unsolved grid earns from `sudoku_reward`."""
_SPLIT_SEED = 288
_ANSWER_SPAN = tag_span("[", "]")
_SIZES = {"train": 216, "validation": 24, "test": 48}


@cache
def split_grids() -> dict[str, tuple[int, ...]]:
    """Return the indices of the 288 solution grids by split: 216 train, 24 validation, 48 test, fixed."""
    order = permutation(_SPLIT_SEED, 0, 288).tolist()
    cuts = np.cumsum([0, *_SIZES.values()])
    return {name: tuple(order[a:b]) for name, a, b in zip(_SIZES, cuts[:-1], cuts[1:], strict=True)}


def plain_grid(grid: Any) -> str:
    """Return the cells of a grid, row by row, 0 for a blank; other characters stay, for the grader to refuse.

    Blanks may be `.`, `_`, `*` or `?`; line breaks, blanks, `|`, `-`, `+`, commas and brackets between cells are
    layout. A list of rows, or of cells, is a grid as well.
    """
    if isinstance(grid, list | tuple):
        return "".join(plain_grid(part) for part in grid)
    return "".join(str(grid).translate(_CELLS).split())


_CELLS = str.maketrans(dict.fromkeys("._*?", "0") | dict.fromkeys("|-+,;[]()'\"", " "))


def sudoku_grades(
    completions: Sequence[Any], puzzles: Sequence[str], solutions: Sequence[str] | None = None
) -> dict[str, list[float]]:
    """Return scores of N completions by name; all puzzles 4x4 (16 cells) or all 9x9 (81).

    `solved` (a valid grid that keeps every clue), `cells` (share of blank cells right, against the valid
    solution nearest to the answer; for 9x9 against the given or a found one), `clues_kept`, `well_formed` (a
    grid was found) and `chance` (the share of cells that random digits get right: 1/4 or 1/9, more where a
    4x4 puzzle has several solutions). `solutions` is used for 9x9 only; "" means to find one.
    """
    out = np.zeros((len(completions), 5), dtype=np.float32)
    grids = [plain_grid(p) for p in puzzles]
    if grids and len(grids[0]) == LARGE:
        solved = [plain_grid(s) for s in solutions] if solutions else [""] * len(grids)
        sudoku9_grade(texts(completions), grids, solved, out)
    else:
        sudoku4_grade(texts(completions), grids, out)
    names = ("solved", "cells", "clues_kept", "well_formed", "chance")
    scores = {name: out[:, i].tolist() for i, name in enumerate(names)}
    return scores


def sudoku_corrected_cells(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
) -> list[float]:
    """Return the chance-corrected share of blank cells: 0 on average for random digits, 1 for all right."""
    grades = sudoku_grades(completions, _puzzles(completions, prompts, columns))
    return [(cells - chance) / (1.0 - chance) for cells, chance in zip(grades["cells"], grades["chance"], strict=True)]


def _puzzles(completions: Sequence[Any], prompts: Sequence[Any] | None, columns: Mapping[str, object]) -> list[str]:
    if columns.get("puzzle") is None and prompts is not None:
        return texts(prompts)  # the task's own prompt is the puzzle
    return [plain_grid(p) for p in column(columns, "puzzle", len(completions))]


def sudoku_solved(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 1.0 for each completion that is a valid solution of its puzzle (any one), else 0.0."""
    return sudoku_grades(completions, _puzzles(completions, prompts, columns))["solved"]


def sudoku_cells(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return the share of blank cells right, in [0, 1]; 0 where no grid was given. Clues do not count."""
    return sudoku_grades(completions, _puzzles(completions, prompts, columns))["cells"]


def sudoku_reward(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 1.0 for a solved puzzle, else at most 0.5 for a partial one; the default training reward.

    Partial credit is 0.5 * max(0, (cells - chance) / (1 - chance)): the chance level earns nothing, a grid
    with one wrong cell stays well below a solved one, and an answer that overwrites a clue earns nothing,
    because it answers another puzzle.
    """
    grades = sudoku_grades(completions, _puzzles(completions, prompts, columns))
    scores = zip(grades["solved"], grades["cells"], grades["clues_kept"], grades["chance"], strict=True)
    return [
        1.0 if solved else PARTIAL * max(0.0, (cells - chance) / (1.0 - chance)) * kept
        for solved, cells, kept, chance in scores
    ]


@dataclass
class SudokuTask(Placed):
    """The 4x4 Sudoku task; see `stp_rs.tasks.base.Task` for what each part means.

    Puzzles have one solution and are split by solution grid, so no test grid is ever seen in training.

    Example:
        >>> task = SudokuTask()
        >>> row = task.rows("train", 1, seed=0)[0]
        >>> task.score(["[" + row["solution"] + "]"], [row])["solved"]
        [1.0]
    """

    blanks: int = 8
    lazy: float = 0.5
    """Share of demonstrations that fill each row's missing digits in ascending order: a wrong *mode* that a
    reward can flip, where random noise would leave RL nothing to gain."""
    name: str = "sudoku"
    whole_answer: bool = True
    alphabet: str = "01234[]"
    prompt_length: int = CELLS
    completion_length: int = 20
    template: Mapping[int, str] = field(default_factory=lambda: {0: "[", 17: "]", 18: "", 19: ""})
    reward_funcs: Sequence[RewardFunc] = (sudoku_reward,)

    def __post_init__(self) -> None:
        """Check the options; ConfigError names the field."""
        if not 1 <= self.blanks <= MAX_BLANKS:
            raise ConfigError(f"blanks: got {self.blanks}, needs 1 to 12 (fewer than 4 clues never fix a grid)")
        if not 0.0 <= self.lazy <= 1.0:
            raise ConfigError(f"lazy: got {self.lazy}, needs a share between 0 and 1")

    def rows(self, split: Split, n: int, seed: int) -> list[Row]:
        """Return n puzzles with columns prompt, puzzle, solution."""
        grids = split_grids().get(split)
        if grids is None:
            raise ConfigError(f"split: got '{split}', needs one of {', '.join(_SIZES)}")
        code = tuple(_SIZES).index(split)
        uids = [row_uid(seed, code, i) for i in range(n)]
        chosen = [grids[uid % len(grids)] for uid in uids]
        solutions = sudoku4_grids()
        puzzles = sudoku4_puzzles(chosen, uids, self.blanks, seed)
        return [
            {"prompt": puzzle, "puzzle": puzzle, "solution": solutions[grid]}
            for puzzle, grid in zip(puzzles, chosen, strict=True)
        ]

    def demonstrations(self, n: int, seed: int) -> list[Row]:
        """Return n training rows with `completion`; a share `lazy` of them carries the wrong mode."""
        return self.demonstrate(self.rows("train", n, seed), seed)

    def demonstrate(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """Return the rows with `completion`; a share `lazy` of them carries the wrong mode."""
        made = []
        for i, row in enumerate(rows):
            lazy = row_uid(seed, i, 3) / 2**64 < self.lazy
            made.append({**row, "completion": f"[{lazy_fill(row['puzzle']) if lazy else row['solution']}]"})
        return made

    def split_key(self, row: Row) -> Hashable:
        """Return the solution grid: it is what train and test must not share."""
        return str(row["solution"])

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Return the range between the last brackets; None where there are none."""
        return _ANSWER_SPAN(text)

    def copies(self, row: Row) -> Mapping[int, str]:
        """Return the clue cells: completion position 1 + cell -> its digit."""
        return {1 + i: digit for i, digit in enumerate(row["puzzle"]) if digit != "0"}

    def reference(self, row: Row) -> str:
        """Return the solved grid in its frame."""
        return f"[{row['solution']}]"

    def allowed(self, position: int) -> Sequence[str]:
        """Return the digits where cells are, and the frame and end-of-text elsewhere."""
        return ("1", "2", "3", "4") if 1 <= position <= CELLS else ("[", "]", "")

    def score(self, completions: Sequence[str], rows: Sequence[Row]) -> dict[str, list[float]]:
        """Return solved, cells and clues_kept, one float per completion."""
        grades = sudoku_grades(completions, [row["puzzle"] for row in rows])
        return {name: grades[name] for name in ("solved", "cells", "clues_kept")}

    def load(self, path: Source) -> list[Row]:
        """Return the rows of a CSV or JSONL file with columns `Puzzle` and `Solution` (0 is a blank)."""
        records = [{str(k).lower(): v for k, v in record.items()} for record in load_rows(path)]
        where = source_name(path)
        require(records, ("puzzle", "solution"), where)
        return [_loaded(record, f"{where}: row {number}") for number, record in enumerate(records)]


def _loaded(record: Mapping[str, Any], where: str) -> Row:
    # a spreadsheet or JSON number loses the leading zeros
    puzzle, solution = (plain_grid(record[name]).zfill(CELLS) for name in ("puzzle", "solution"))
    try:
        graded = sudoku_grades([f"[{solution}]"], [puzzle])
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not graded["solved"][0]:
        raise ConfigError(f"{where}: '{solution}' is no valid solution of puzzle '{puzzle}'")
    return {"prompt": puzzle, "puzzle": puzzle, "solution": solution}


def lazy_fill(puzzle: str) -> str:
    """Return the puzzle with each row's missing digits filled in ascending order, columns ignored."""
    filled = []
    for start in range(0, CELLS, 4):
        row = puzzle[start : start + 4]
        missing = iter(d for d in "1234" if d not in row)
        filled.append("".join(next(missing) if c == "0" else c for c in row))
    return "".join(filled)


def sudoku_task(
    data: Source | None = None, test_data: Source | None = None, drop_leaks: bool = False, **options: Any
) -> "DataTask | SudokuTask":
    """Return 4x4 Sudoku, generated or over data; options as in SudokuTask."""
    base = SudokuTask(**options)
    return base if data is None else DataTask(base, data, test_data, drop_leaks)
