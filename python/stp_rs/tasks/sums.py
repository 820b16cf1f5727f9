"""Chained sums with visible working. Prompt `7+5+9=`, completion `07+5=12;12+9=21;[21]`, numbers zero-padded."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from stp_rs._core import row_uid
from stp_rs.errors import ConfigError
from stp_rs.priors.choice import tag_span
from stp_rs.tasks.base import RewardFunc, Row, Split
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.data import SPLITS, DataTask, Source, load_rows, require, share_of, shown, source_name
from stp_rs.tasks.tokens import Placed

WORKING = 1.0
"""What fully right working earns beside the answer's 1.0: with less, a policy learns to guess the answer."""
MAX_SUM = 999_999_999
_FEWEST = 2
_READ = 65_536
_ANSWER_SPAN = tag_span("[", "]")
_STEP = re.compile(r"([0-9]{1,9})\+([0-9]{1,9})=([0-9]{1,9})")
_ANSWER = re.compile(r"\[([0-9]{1,9})\]")


def sums_grades(completions: Sequence[Any], terms: Sequence[Sequence[int]]) -> dict[str, list[float]]:
    """Return scores of N completions by name: `solved` and `steps`.

    `solved` is 1 where the last `[number]` is the sum of the terms; padding with zeros does not matter. `steps` is
    the share of right lines of working: line k, up to the k-th semicolon, is right if it adds term k + 1 to the true
    sum of the terms before it. Of a text the last 65,536 characters are read, and numbers of up to nine digits.
    Raises ConfigError for a problem of fewer than two terms.
    """
    scores: dict[str, list[float]] = {"solved": [], "steps": []}
    for whole, given in zip(texts(completions), terms, strict=True):
        text = whole[-_READ:]
        sums = list(accumulate(int(term) for term in given))
        if len(sums) < _FEWEST:
            raise ConfigError(f"terms: got {list(given)}, needs two numbers or more per problem")
        found = _ANSWER.findall(text)
        scores["solved"].append(float(bool(found) and int(found[-1]) == sums[-1]))
        truth = list(zip(sums, given[1:], sums[1:], strict=False))
        stated = (_STEP.fullmatch(line) for line in text.split(";", len(truth))[: len(truth)])
        right = (match is not None and tuple(map(int, match.groups())) for match in stated)
        scores["steps"].append(sum(a == b for a, b in zip(right, truth, strict=False)) / len(truth))
    return scores


def _graded(completions: Sequence[Any], columns: Mapping[str, object]) -> dict[str, list[float]]:
    return sums_grades(completions, column(columns, "terms", len(completions)))


def sums_solved(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 1.0 for each completion whose answer is the sum of its terms, else 0.0."""
    del prompts  # the column holds the problem
    return _graded(completions, columns)["solved"]


def sums_steps(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return `WORKING` (1.0) times the share of right lines of working, for each completion."""
    del prompts
    return [WORKING * share for share in _graded(completions, columns)["steps"]]


@dataclass
class SumsTask(Placed):
    """The chained sums task; see `stp_rs.tasks.base.Task` for what each part means.

    Every place of the working is fixed by the number of terms: signs, frame and end-of-text are the template, the
    terms are copies. What is left to decode are the partial sums, twice each, and the answer. Problems are split by
    their terms in any order.

    Example:
        >>> task = SumsTask(count=3, max_term=9)
        >>> task.completion([7, 5, 9])
        '07+5=12;12+9=21;[21]'
        >>> task.score(["[21]"], [{"terms": [7, 5, 9]}])
        {'solved': [1.0], 'steps': [0.0]}
    """

    count: int = 8
    """Terms of a problem; 8 give a canvas of 64 tokens."""
    max_term: int = 5
    """Largest term. The tiny policy learns to add terms up to 5 in 800 warm-up steps, up to 9 not in 1000."""
    lazy: float = 0.4
    """Share of demonstrations that drop every carry: a wrong mode that a reward can flip."""
    name: str = "sums"
    whole_answer: bool = False
    alphabet: str = "0123456789+=;[]"
    prompt_length: int = field(init=False)
    completion_length: int = field(init=False)
    template: Mapping[int, str] = field(init=False)
    reward_funcs: Sequence[RewardFunc] = (sums_solved, sums_steps)

    def __post_init__(self) -> None:
        """Check the options and derive lengths and template; errors name the field."""
        if not 0.0 <= self.lazy <= 1.0:
            raise ConfigError(f"lazy: got {self.lazy}, needs a share between 0 and 1")
        if self.count < _FEWEST:
            raise ConfigError(f"count: got {self.count}, needs 2 terms or more")
        if not 1 <= self.max_term <= MAX_SUM // self.count:
            raise ConfigError(
                f"max_term: got {self.max_term}, needs 1 to {MAX_SUM // self.count} (sums have at most nine digits)"
            )
        self.prompt_length = self.count * (len(str(self.max_term)) + 1)
        shape = self.completion([self.max_term] * self.count)
        # at least one end-of-text; a multiple of 4 so that usual block lengths divide it
        self.completion_length = -(-(len(shape) + 1) // 4) * 4
        self.template = {at: text for at, text in enumerate(shape) if not text.isdigit()}
        self.template |= dict.fromkeys(range(len(shape), self.completion_length), "")

    def completion(self, terms: Sequence[int], *, carry: bool = True) -> str:
        """Return the working and the answer; without `carry` every carry is dropped."""
        width, wide = len(str(self.count * self.max_term)), len(str(self.max_term))
        sums = list(accumulate(terms, None if carry else _add_without_carry))
        lines = [
            f"{a:0{width}}+{term:0{wide}}={b:0{width}};" for a, term, b in zip(sums, terms[1:], sums[1:], strict=False)
        ]
        return "".join(lines) + f"[{sums[-1]:0{width}}]"

    def rows(self, split: Split, n: int, seed: int) -> list[Row]:
        """Return n problems with columns prompt, terms, answer."""
        if split not in SPLITS:
            raise ConfigError(f"split: got '{split}', needs one of {', '.join(SPLITS)}")
        made: list[Row] = []
        code, tries = SPLITS.index(split), 100 * (n + 64)
        for i in range(tries):
            if len(made) >= n:
                break
            uid = row_uid(seed, code, i)
            terms = [1 + row_uid(uid, k) % self.max_term for k in range(self.count)]
            if _split_of(terms) == split:
                made.append(_row(terms))
        if len(made) < n:
            raise ConfigError(f"sums: found {len(made)} of {n} problems in the {split} split; raise count or max_term")
        return made

    def demonstrations(self, n: int, seed: int) -> list[Row]:
        """Return n training rows with `completion`; a share `lazy` of them drops every carry."""
        return self.demonstrate(self.rows("train", n, seed), seed)

    def demonstrate(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """Return the rows with `completion`; a share `lazy` of them drops every carry."""
        carries = [row_uid(seed, i, 3) / 2**64 >= self.lazy for i in range(len(rows))]
        return [
            {**row, "completion": self.completion(row["terms"], carry=carry)}
            for row, carry in zip(rows, carries, strict=True)
        ]

    def split_key(self, row: Row) -> Hashable:
        """Return the terms in order: terms are in one split only, however they are ordered."""
        return tuple(sorted(row["terms"]))

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Return the range between the last brackets; None where there are none."""
        return _ANSWER_SPAN(text)

    def copies(self, row: Row) -> Mapping[int, str]:
        """Return the places of the terms in the working; a partial sum is never among them."""
        width, wide = len(str(self.count * self.max_term)), len(str(self.max_term))
        cells = dict(enumerate(f"{row['terms'][0]:0{width}}"))
        for k, term in enumerate(row["terms"][1:]):
            start = k * (2 * width + wide + 3) + width + 1
            cells |= dict(enumerate(f"{term:0{wide}}", start))
        return cells

    def reference(self, row: Row) -> str:
        """Return the right working and answer."""
        return self.completion(row["terms"])

    def allowed(self, position: int) -> Sequence[str]:
        """Return what the template has at a position, else the digits."""
        fixed = self.template.get(position)
        return tuple("0123456789") if fixed is None else (fixed,)

    def score(self, completions: Sequence[str], rows: Sequence[Row]) -> dict[str, list[float]]:
        """Return solved and steps (the share of right lines of working), one float per completion."""
        return sums_grades(completions, [row["terms"] for row in rows])

    def load(self, path: Source) -> list[Row]:
        """Return the rows of data with `terms` ([7, 5, 9] or "7+5+9"); an `answer` beside them must be their sum.

        Raises ConfigError, with the row, for a missing column or terms that do not fit this task.
        """
        where = source_name(path)
        rows = [_row(terms) for terms in read_terms(path)]
        for number, row in enumerate(rows):
            if len(row["terms"]) != self.count or max(row["terms"]) > self.max_term:
                raise ConfigError(
                    f"{where}: row {number} ('{row['prompt']}') does not fit this task, of {self.count} terms up to "
                    f"{self.max_term}; the working has one length, so give every row as many terms, and larger limits"
                )
        return rows


def _add_without_carry(a: int, b: int) -> int:
    place, total = 1, 0
    while place <= max(a, b):
        total += (a // place + b // place) % 10 * place
        place *= 10
    return total


def _split_of(terms: Sequence[int]) -> str:
    """Return the split of terms in any order: 3/4 train, 1/12 validation, 1/6 test."""
    share = share_of(tuple(sorted(terms)))
    return SPLITS[(share >= 3 / 4) + (share >= 5 / 6)]


def _row(terms: Sequence[int]) -> Row:
    return {"prompt": "+".join(map(str, terms)) + "=", "terms": list(terms), "answer": sum(terms)}


def read_terms(source: Source) -> list[list[int]]:
    """Return the terms of every row of a source; errors show the row."""
    records, where = load_rows(source), source_name(source)
    require(records, ("terms",), where)
    found = []
    for number, record in enumerate(records):
        given = record["terms"]
        try:
            terms = [int(x) for x in (re.split(r"[+,]", given.strip("[]= ")) if isinstance(given, str) else given)]
            if len(terms) < _FEWEST or min(terms) < 0:
                raise ValueError("needs two terms or more, none negative")
            if record.get("answer") is not None and int(record["answer"]) != sum(terms):
                raise ValueError(f"the answer {record['answer']} is not the sum {sum(terms)}")
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{where}: row {number} is no chained sum ({error}): {shown(record)}") from error
        found.append(terms)
    return found


def sums_task(
    data: Source | None = None, test_data: Source | None = None, drop_leaks: bool = False, **options: Any
) -> "DataTask | SumsTask":
    """Return chained sums, generated or over data (with limits that fit it); options as in SumsTask."""
    if data is None:
        return SumsTask(**options)
    terms = read_terms(data) + ([] if test_data is None else read_terms(test_data))
    fitted = {"count": len(terms[0]), "max_term": max(1, *(max(row) for row in terms))}
    return DataTask(SumsTask(**{**fitted, **options}), data, test_data, drop_leaks)
