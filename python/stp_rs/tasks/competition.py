"""MATH: competition problems whose answers are expressions, from data. math-verify judges what is not certain."""

from collections.abc import Mapping, Sequence
from typing import Any

from stp_rs._core import answer_spans, math_compare
from stp_rs.errors import ConfigError
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.data import DataTask, Source
from stp_rs.tasks.graders import verify
from stp_rs.tasks.questions import ANSWERED, Exam, QuestionTask, question_task

RIGHT = ("text", "number", "verify")
"""How an answer may be found right: see `math_grades`."""


def boxed_truth(answer: Any) -> str:
    """Return the final answer of a ground truth: the content of its box where it is a worked solution."""
    return answer_spans([str(answer)])[0] if "\\boxed" in str(answer) else str(answer)


def math_grades(completions: Sequence[Any], answers: Sequence[Any]) -> list[str]:
    """Return how each completion's answer was judged against the truth.

    Certain, and judged here: `text` (the same expression), `number` (the same exact number) and `no`. All else goes to
    math-verify, in one batch: `verify` (equal), `no`, or `slow` where it took too long, which counts as wrong. Without
    the `math` extra it is `unsure`, which counts as nothing.
    """
    given = answer_spans(texts(completions))
    compared = math_compare(given, [boxed_truth(a) for a in answers])
    found = [how for how, *_ in compared]
    left = [i for i, how in enumerate(found) if how == "unsure"]
    if left and verify.available():
        pairs = [
            verify.Pair(f"\\boxed{{{truth}}}", f"\\boxed{{{a}}}", n)
            for _, a, truth, n in map(compared.__getitem__, left)
        ]
        for i, same in zip(left, verify.verify(pairs), strict=True):
            found[i] = "slow" if same is None else "verify" if same else "no"
    return found


def math_correct(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
) -> list[float | None]:
    """Return 1.0 for each completion whose answer equals the column `answer`, 0.0 where it does not.

    None, no judgement, where that is not certain and math-verify (the `math` extra) is not installed.
    """
    del prompts
    grades = math_grades(completions, column(columns, "answer", len(completions)))
    return [None if how == "unsure" else float(how in RIGHT) for how in grades]


def math_verified(
    completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
) -> list[float | None]:
    """Return the same as `math_correct`; ConfigError without math-verify, so that every completion is judged."""
    if not verify.available():
        raise ConfigError("math-verify is not installed: pip install 'stp-rs[math]'")
    return math_correct(completions, prompts, **columns)


def math_answered(completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object) -> list[float]:
    """Return 0.1 for each completion with an answer tag or a box, else 0.0."""
    del prompts, columns
    marked = [text if "\\boxed" in text or "<answer>" in text else "" for text in texts(completions)]
    return [ANSWERED * bool(span) for span in answer_spans(marked)]


def _told(record: Mapping[str, Any], told: str) -> tuple[str, str] | None:
    """Return (answer, worked solution) of a record; None where it has no answer."""
    answer = boxed_truth(told)
    return (answer, str(record.get("solution") or "")) if answer else None


_EXAM = Exam("math", ("problem", "question"), (math_correct, math_answered), _told)


def math_task(
    data: Source | None = None,
    test_data: Source | None = None,
    drop_leaks: bool = False,
    style: str | None = None,
    tokenizer: Any = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> DataTask | QuestionTask:
    """Return MATH over data; the arguments are those of `question_task`."""
    return question_task(_EXAM, data, test_data, drop_leaks, style, tokenizer, chat_template_kwargs)
