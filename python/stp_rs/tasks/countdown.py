"""Countdown: reach a target from given numbers, each used once. Prompt `3,7,5=22:`, completion `[3*5+7]`."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stp_rs._core import countdown_grade, countdown_numbers, countdown_problems, countdown_solutions, row_uid
from stp_rs.errors import ConfigError
from stp_rs.priors.choice import tag_span
from stp_rs.tasks.base import RewardFunc, Row, Split
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.data import DataTask, Source, load_rows, require, shown, source_name
from stp_rs.tasks.tokens import Placed

VERDICTS = ("solved", "wrong_value", "wrong_statement", "wrong_numbers", "undefined", "malformed", "missing")
"""What the grader says of a completion, by code; the first three are legal expressions of the numbers."""
_LEGAL = 3
FORMAT = 0.1
"""What a legal expression of exactly the given numbers earns, right or wrong."""
_SPLITS = ("train", "validation", "test")
_SPLIT_SALT = 0xC0DE
_ANSWER_SPAN = tag_span("[", "]")


def whole_number(value: Any) -> int:
    """Return a whole number of data: an int, a float without a fraction, or its text. ValueError for anything else."""
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[-+]?[0-9]{1,18}(\.0*)?", text):
        raise ValueError(f"{value!r} is no whole number")
    return int(text.split(".")[0])


def number_set(value: Any) -> list[int]:
    """Return the numbers of a problem: a list, or its text such as `[3, 8]` or `3 8`. ValueError for anything else."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[\s,;]+", value.strip().strip("[]()").strip()) if part]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise ValueError(f"{value!r} are no numbers")
    numbers = [whole_number(one) for one in value]
    if not numbers:
        raise ValueError("there are no numbers")
    return numbers


def countdown_verdicts(completions: Sequence[Any], numbers: Sequence[Any], targets: Sequence[Any]) -> list[str]:
    """Return the verdict of each of N completions, one of `VERDICTS`.

    Numbers and targets may be text.

    Raises:
        ConfigError: numbers or a target that are no whole numbers; it shows them.
    """
    out = np.zeros(len(completions), dtype=np.uint8)
    try:
        sets, goals = [number_set(one) for one in numbers], [whole_number(t) for t in targets]
    except ValueError as error:
        raise ConfigError(f"countdown: numbers or target: {error}, needs whole numbers") from error
    countdown_grade(texts(completions), sets, goals, out)
    return [VERDICTS[code] for code in out]


def _verdicts(completions: Sequence[Any], columns: Mapping[str, object]) -> list[str]:
    n = len(completions)
    return countdown_verdicts(completions, column(columns, "numbers", n), column(columns, "target", n))


def countdown_solved(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
) -> list[float]:
    """Return 1.0 for each completion that reaches its target, every number used exactly once, else 0.0."""
    del prompts  # the columns hold the problem
    return [float(v == "solved") for v in _verdicts(completions, columns)]


def countdown_format(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
) -> list[float]:
    """Return 0.1 for each completion that is a legal expression of exactly the given numbers, else 0.0."""
    del prompts
    return [FORMAT * (VERDICTS.index(v) < _LEGAL) for v in _verdicts(completions, columns)]


def split_of(numbers: Sequence[int]) -> str:
    """Return the split that a number set (in any order) belongs to: 3/4 train, 1/12 validation, 1/6 test."""
    key = _SPLIT_SALT
    for number in sorted(numbers):
        key = row_uid(key, number)
    share = key / 2**64
    return "train" if share < 3 / 4 else "validation" if share < 5 / 6 else "test"


@dataclass
class CountdownTask(Placed):
    """The Countdown task; see `stp_rs.tasks.base.Task` for what each part means.

    Problems are split by number set, and every problem has a solution with whole positive steps. The
    lengths follow from the other options.

    Example:
        >>> task = CountdownTask()
        >>> row = task.rows("train", 1, seed=0)[0]
        >>> task.score([f"[{row['solution']}]"], [row])["solved"]
        [1.0]
    """

    count: int = 3
    max_number: int = 9
    max_target: int = 99
    operators: str = "+-*/"
    lazy: float = 0.3
    """Share of demonstrations that just add the numbers up: a wrong mode that a reward can flip."""
    name: str = "countdown"
    whole_answer: bool = True
    alphabet: str = "0123456789,=:[]()+-*/"
    prompt_length: int = field(init=False)
    completion_length: int = field(init=False)
    template: Mapping[int, str] = field(default_factory=lambda: {0: "["})
    reward_funcs: Sequence[RewardFunc] = (countdown_solved, countdown_format)

    def __post_init__(self) -> None:
        """Check the options and derive the lengths; errors name the field."""
        if not 0.0 <= self.lazy <= 1.0:
            raise ConfigError(f"lazy: got {self.lazy}, needs a share between 0 and 1")
        try:
            countdown_numbers([], self.count, self.max_number, 0)
            countdown_problems([[1] * self.count], [0], self.max_target, self.operators, 0)
        except ValueError as error:
            raise ConfigError(f"countdown: {error}") from error
        digits = len(str(self.max_number))
        self.prompt_length = self.count * (digits + 1) + len(str(self.max_target)) + 1
        # frame, numbers, operators, brackets; a multiple of 4 so that usual block lengths divide it
        longest = 2 + self.count * digits + (self.count - 1) + 2 * max(0, self.count - 2)
        self.completion_length = -(-(longest + 1) // 4) * 4

    def _row(self, numbers: Sequence[int], target: int) -> Row:
        prompt = f"{','.join(map(str, numbers))}={target}:"
        return {"prompt": prompt, "numbers": list(numbers), "target": target}

    def rows(self, split: Split, n: int, seed: int) -> list[Row]:
        """Return n problems with columns prompt, numbers, target, solution."""
        if split not in _SPLITS:
            raise ConfigError(f"split: got '{split}', needs one of {', '.join(_SPLITS)}")
        made: list[Row] = []
        start, chunk = 0, 4 * n + 64
        while len(made) < n and start < 100 * (n + 64):
            uids = [row_uid(seed, _SPLITS.index(split), i) for i in range(start, start + chunk)]
            start += chunk
            drawn = countdown_numbers(uids, self.count, self.max_number, seed)
            kept = [(x, uid) for x, uid in zip(drawn, uids, strict=True) if split_of(x) == split]
            found = countdown_problems(
                [x for x, _ in kept], [uid for _, uid in kept], self.max_target, self.operators, seed
            )
            for (numbers, _), problem in zip(kept, found, strict=True):
                if problem is not None:
                    made.append({**self._row(numbers, problem[0]), "solution": problem[1]})
        if len(made) < n:
            raise ConfigError(
                f"countdown: found {len(made)} of {n} problems in the {split} split; "
                "raise max_number or max_target, or allow more operators"
            )
        return made[:n]

    def demonstrations(self, n: int, seed: int) -> list[Row]:
        """Return n training rows with `completion`; a share `lazy` of them just adds the numbers up."""
        return self.demonstrate(self.rows("train", n, seed), seed)

    def demonstrate(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """Return the rows that can be solved, with `completion`; a share `lazy` just adds the numbers up."""
        unsolved = [i for i, row in enumerate(rows) if "solution" not in row]
        found = countdown_solutions([rows[i]["numbers"] for i in unsolved], [rows[i]["target"] for i in unsolved])
        solutions = dict(zip(unsolved, found, strict=True))
        made = []
        for i, row in enumerate(rows):
            solution = row.get("solution") or solutions.get(i)
            lazy = row_uid(seed, i, 3) / 2**64 < self.lazy
            if solution is not None:
                expression = "+".join(map(str, row["numbers"])) if lazy else solution
                made.append({**row, "completion": f"[{expression}]"})
        return made

    def split_key(self, row: Row) -> Hashable:
        """Return the numbers in order: a number set is in one split only."""
        return tuple(sorted(row["numbers"]))

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Return the range between the last brackets; None where there are none."""
        return _ANSWER_SPAN(text)

    def copies(self, row: Row) -> Mapping[int, str]:
        """Return nothing: no position of the answer is fixed by the prompt."""
        del row
        return {}

    def reference(self, row: Row) -> str | None:
        """Return an expression that reaches the target, in its frame; None where there is none."""
        solution = row.get("solution") or countdown_solutions([row["numbers"]], [row["target"]])[0]
        return None if solution is None else f"[{solution}]"

    def allowed(self, position: int) -> Sequence[str]:
        """Return the opening frame first, and then what an expression or the end is made of."""
        return ("[",) if position == 0 else (*"0123456789+-*/()]", "")

    def score(self, completions: Sequence[str], rows: Sequence[Row]) -> dict[str, list[float]]:
        """Return solved and valid (a legal expression of the given numbers), a float per completion."""
        verdicts = countdown_verdicts(completions, [r["numbers"] for r in rows], [r["target"] for r in rows])
        return {
            "solved": [float(v == "solved") for v in verdicts],
            "valid": [float(VERDICTS.index(v) < _LEGAL) for v in verdicts],
        }

    def load(self, path: Source) -> list[Row]:
        """Return the rows of data with `input` ("30,100,93") and `output` ("23"), or `numbers`, `target`.

        Where `output` holds worked steps ("44-15=29,79-29=50"), the target is the last number of `input`.
        Raises ConfigError, with the row, for a missing column or a problem longer than this task's prompts.
        """
        where = source_name(path)
        rows = []
        for number, (numbers, target) in enumerate(read_problems(path)):
            row = self._row(numbers, target)
            if len(row["prompt"]) > self.prompt_length or len(numbers) > self.count:
                raise ConfigError(
                    f"{where}: row {number} ('{row['prompt']}') is larger than this task (count={self.count},"
                    f" max_number={self.max_number}, max_target={self.max_target}); "
                    "make the task with larger limits, or with data= for limits that fit"
                )
            rows.append(row)
        return rows


def read_problems(source: Source) -> list[tuple[list[int], int]]:
    """Return the (numbers, target) of every row of a source; errors show the row."""
    records = load_rows(source)
    where = source_name(source)
    columns = next((c for c in _COLUMNS if records and c[0] in records[0]), _COLUMNS[0])
    require(records, columns, where)
    problems = []
    for i, record in enumerate(records):
        try:
            problems.append(_problem(record[columns[0]], record[columns[1]]))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: row {i} is no Countdown problem ({error}): {shown(record)}") from error
    return problems


_COLUMNS = (("input", "output"), ("numbers", "target"), ("nums", "target"))


def _problem(given: Any, output: Any) -> tuple[list[int], int]:
    numbers = number_set(given)
    return (numbers[:-1], numbers[-1]) if "=" in str(output) else (numbers, whole_number(output))


def countdown_task(
    data: Source | None = None, test_data: Source | None = None, drop_leaks: bool = False, **options: Any
) -> "DataTask | CountdownTask":
    """Return Countdown, generated or over data (with limits that fit it); options as in CountdownTask."""
    if data is None:
        return CountdownTask(**options)
    problems = read_problems(data) + ([] if test_data is None else read_problems(test_data))
    fitted = {
        "count": max(len(numbers) for numbers, _ in problems),
        "max_number": max(max(numbers) for numbers, _ in problems),
        "max_target": max(2, *(target for _, target in problems)),
    }
    return DataTask(CountdownTask(**{**fitted, **options}), data, test_data, drop_leaks)
