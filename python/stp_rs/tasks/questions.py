"""GSM8K and MATH: questions with a worked solution and a final answer, from data."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stp_rs._core import answer_spans, math_compare, number_answers, number_values
from stp_rs.errors import ConfigError
from stp_rs.tasks.base import RewardFunc, Row, Split
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.data import DataTask, Source, load_rows, require, shown, source_name
from stp_rs.tasks.graders import verify
from stp_rs.tasks.templates import Template, get_template, render

ANSWERED = 0.1
"""What stating any final answer earns beside the reward for the right one."""
_CALCULATIONS = re.compile(r"<<[^<>]*>>")


def final_number(answer: str) -> float | None:
    """Return the number that a ground truth states: after `####` where there is one."""
    return number_values([str(answer).rsplit("####", 1)[-1]])[0]


def gsm8k_grades(completions: Sequence[Any], answers: Sequence[Any]) -> list[bool]:
    """Return whether each completion's final number is the truth's, within one part in a million."""
    found = number_answers(texts(completions))
    truths = [final_number(a) for a in answers]
    return [
        a is not None and t is not None and abs(a[0] - t) <= 1e-6 * max(1.0, abs(t))
        for a, t in zip(found, truths, strict=True)
    ]


def gsm8k_correct(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 1.0 for each completion whose final number equals the column `answer`, else 0.0."""
    del prompts
    return [float(x) for x in gsm8k_grades(completions, column(columns, "answer", len(completions)))]


def gsm8k_answered(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 0.1 for each completion that states a final number where one belongs, else 0.0."""
    del prompts, columns
    return [ANSWERED * (found is not None) for found in number_answers(texts(completions))]


def boxed_truth(answer: str) -> str:
    """Return the final answer of a ground truth: the content of its box where it is a worked solution."""
    return answer_spans([str(answer)])[0] if "\\boxed" in str(answer) else str(answer)


def math_grades(completions: Sequence[Any], answers: Sequence[Any], use_verify: bool = False) -> list[str]:
    """Return how each completion's answer equals the truth: text, number, list, expression, verify, or no.

    With `use_verify`, pairs that the native comparison does not find equal go to math-verify (`math` extra).
    """
    given = answer_spans(texts(completions))
    truths = [boxed_truth(a) for a in answers]
    found = math_compare(given, truths)
    if use_verify:
        left = [i for i, how in enumerate(found) if how == "no" and given[i]]
        wrapped = [(f"\\boxed{{{truths[i]}}}", f"\\boxed{{{given[i]}}}") for i in left]
        for i, same in zip(left, verify.verify([t for t, _ in wrapped], [g for _, g in wrapped]), strict=True):
            found[i] = "verify" if same else "no"
    return found


def math_correct(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 1.0 for each completion whose answer equals the column `answer` under the native comparison."""
    del prompts
    return [float(how != "no") for how in math_grades(completions, column(columns, "answer", len(completions)))]


def math_verified(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return the same as `math_correct`, with math-verify (the `math` extra) for what is left."""
    del prompts
    answers = column(columns, "answer", len(completions))
    return [float(how != "no") for how in math_grades(completions, answers, use_verify=True)]


def math_answered(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 0.1 for each completion with an answer tag or a box, else 0.0."""
    del prompts, columns
    marked = [text if "\\boxed" in text or "<answer>" in text else "" for text in texts(completions)]
    return [ANSWERED * bool(span) for span in answer_spans(marked)]


@dataclass
class QuestionTask:
    """How questions are asked and graded; `get_task("gsm8k", data=...)` gives one with rows."""

    name: str
    style: Template
    tokenizer: Any = None
    examples: Sequence[tuple[str, str]] = ()
    alphabet: str = "0123456789.,-+*/=()[]{}\\$% \n<>"
    prompt_length: int = 0
    completion_length: int = 0

    def __post_init__(self) -> None:
        """Set what the tasks share."""
        self.template: Mapping[int, str] = {}
        graded: dict[str, Sequence[RewardFunc]] = {
            "gsm8k": (gsm8k_correct, gsm8k_answered),
            "math": (math_correct, math_answered),
        }
        self.reward_funcs = graded[self.name]

    def rows(self, split: Split, n: int, seed: int) -> list[Row]:
        """Raise ConfigError: questions come from data."""
        raise ConfigError(
            f"task '{self.name}' has no generator ({n} {split} rows for seed {seed} were asked for): "
            "give data, a file or a hub id with the columns question and answer"
        )

    def demonstrations(self, n: int, seed: int) -> list[Row]:
        """Raise ConfigError: questions come from data."""
        return self.rows("train", n, seed)

    def split_key(self, row: Row) -> Hashable:
        """Return the question without case and white space: two spellings of it are one problem."""
        return "".join(str(row["question"]).lower().split())

    def demonstrate(self, rows: Sequence[Row], seed: int) -> list[Row]:
        """Return the rows with their own solutions, laid out as the template asks."""
        del seed
        return [{**row, "completion": self.style.completion(row["solution"], row["answer"])} for row in rows]

    def reference(self, row: Row) -> str:
        """Return the row's own solution, laid out as the template asks."""
        return self.style.completion(row["solution"], row["answer"])

    def copies(self, row: Row) -> Mapping[int, str]:
        """Return nothing: no position of the answer is fixed by the prompt."""
        del row
        return {}

    def score(self, completions: Sequence[str], rows: Sequence[Row]) -> dict[str, list[float]]:
        """Return solved (corrected) and answered (states a final answer at all), one float per completion."""
        answers = [row["answer"] for row in rows]
        correct, answered = ([x or 0.0 for x in f(completions, answer=answers)] for f in self.reward_funcs)
        return {"solved": correct, "answered": [float(x > 0) for x in answered]}

    def load(self, path: Source) -> list[Row]:
        """Return the rows of data with `question` and `answer` (GSM8K) or `problem` and `solution` (MATH)."""
        records = load_rows(path)
        where = source_name(path)
        names = ("question", "problem") if self.name == "gsm8k" else ("problem", "question")
        asked = next((name for name in names if records and name in records[0]), names[0])
        answered = next((n for n in ("answer", "solution") if records and n in records[0]), "answer")
        require(records, (asked, answered), where)
        return [self._row(record, asked, f"{where}: row {i}") for i, record in enumerate(records)]

    def _row(self, record: Mapping[str, Any], asked: str, where: str) -> Row:
        question = str(record[asked])
        told = str(record.get("answer") if record.get("answer") is not None else record["solution"])
        solution = str(record.get("solution") or (told if "####" in told else ""))
        if self.name == "gsm8k":
            value = final_number(told)
            answer = told.rsplit("####", 1)[-1].strip()
            solution = _CALCULATIONS.sub("", solution.rsplit("####", 1)[0]).strip()
        else:
            value = 0.0
            answer = boxed_truth(told)
        if value is None or not answer:
            raise ConfigError(f"{where} has no final answer: {shown(record)}")
        prompt = render(self.style, question, self.tokenizer, self.examples)
        return {"prompt": prompt, "question": question, "answer": answer, "solution": solution}


def question_task(
    name: str,
    data: Source | None = None,
    test_data: Source | None = None,
    drop_leaks: bool = False,
    style: str | None = None,
    tokenizer: Any = None,
) -> DataTask | QuestionTask:
    """Return GSM8K or MATH over data.

    Args:
        name: `gsm8k` or `math`.
        data: a file, a hub id (`openai/gsm8k:main`) or rows in memory; split 80/10/10 by question. Without it
            the task can grade, score and load, but has no rows of its own.
        test_data: rows that become the test split instead.
        drop_leaks: drop training rows whose question is in the test data, instead of refusing.
        style: a template's name; `plain` without a tokenizer, `tags` with one.
        tokenizer: its chat template, if it has one, is applied to the prompts.
    """
    base = QuestionTask(name, get_template(style or ("plain" if tokenizer is None else "tags")), tokenizer)
    return base if data is None else DataTask(base, data, test_data, drop_leaks)


gsm8k_task = partial(question_task, "gsm8k")
math_task = partial(question_task, "math")
