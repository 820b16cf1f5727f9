"""GSM8K: word problems with a worked solution and a final number after `####`, from data."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from stp_rs._core import number_answers, number_grade, number_values
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.data import DataTask, Source
from stp_rs.tasks.questions import ANSWERED, Exam, QuestionTask, question_task

_CALCULATIONS = re.compile(r"<<[^<>]*>>")


def final_number(answer: Any) -> float | None:
    """Return the number that a ground truth states, after `####` where there is one; None for none."""
    return number_values([str(answer).rsplit("####", 1)[-1]])[0]


def gsm8k_correct(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 1.0 for each completion whose final number equals the column `answer`, else 0.0.

    Numbers are compared exactly; an answer may have more decimals than a truth of two or more, and must round to it.
    """
    del prompts
    answers = [str(answer) for answer in column(columns, "answer", len(completions))]
    return [float(bool(right)) for right in number_grade(texts(completions), answers)]


def gsm8k_answered(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 0.1 for each completion that states one final number where one belongs, else 0.0."""
    del prompts, columns
    return [ANSWERED * (found is not None) for found in number_answers(texts(completions))]


def _told(record: Mapping[str, Any], told: str) -> tuple[str, str] | None:
    """Return (answer, worked solution without calculator marks) of a record; None where it has no final number."""
    solution = str(record.get("solution") or (told if "####" in told else ""))
    answer = told.rsplit("####", 1)[-1].strip()
    solution = _CALCULATIONS.sub("", solution.rsplit("####", 1)[0]).strip()
    return None if final_number(told) is None else (answer, solution)


_EXAM = Exam("gsm8k", ("question", "problem"), (gsm8k_correct, gsm8k_answered), _told)


def gsm8k_task(
    data: Source | None = None,
    test_data: Source | None = None,
    drop_leaks: bool = False,
    style: str | None = None,
    tokenizer: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> DataTask | QuestionTask:
    """Return GSM8K over data; the arguments are those of `question_task`."""
    return question_task(_EXAM, data, test_data, drop_leaks, style, tokenizer, chat_template_kwargs)
