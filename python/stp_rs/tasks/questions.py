"""What GSM8K and MATH share: questions with a worked solution and a final answer, from data."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stp_rs.errors import ConfigError
from stp_rs.priors.choice import tag_span
from stp_rs.tasks.base import RewardFunc, Row, Split
from stp_rs.tasks.data import DataTask, Source, load_rows, require, shown, source_name
from stp_rs.tasks.templates import PromptTemplate, get_template, render

ANSWERED = 0.1
"""What stating any final answer earns beside the reward for the right one."""
_TAG, _BOX = tag_span(), tag_span("\\boxed{", "}")


class Exam(NamedTuple):
    """What tells one kind of question from another."""

    name: str
    asked: tuple[str, ...]
    """Columns that may hold the question, the usual one first."""
    reward_funcs: tuple[RewardFunc, RewardFunc]
    """Whether an answer is right, and whether there is one."""
    told: Callable[[Mapping[str, Any], str], tuple[str, str] | None]
    """Record and its answer column -> (answer, worked solution), or None where there is no final answer."""


def answer_span(text: str) -> tuple[int, int] | None:
    r"""Return the range from the first to the last answer of a completion, in a tag or in a box; None for none.

    An answer that is boxed while reasoning, and then given in the tag, is protected in both places.
    """
    found = [span for span in (_TAG(text), _BOX(text)) if span is not None]
    if not found:
        return None
    starts = [at + len(mark) for mark in ("<answer>", "\\boxed{") if (at := text.find(mark)) >= 0]
    return min(starts), max(end for _, end in found)


@dataclass
class QuestionTask:
    """How questions are asked and graded; `get_task("gsm8k", data=...)` gives one with rows."""

    exam: Exam
    style: PromptTemplate
    tokenizer: Any = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    examples: Sequence[tuple[str, str]] = ()
    alphabet: str = "0123456789.,-+*/=()[]{}\\$% \n<>"
    prompt_length: int = 0
    completion_length: int = 0
    whole_answer: bool = False

    def __post_init__(self) -> None:
        """Set what follows from the kind of question."""
        self.name = self.exam.name
        self.template: Mapping[int, str] = {}
        self.reward_funcs: Sequence[RewardFunc] = self.exam.reward_funcs

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Return the range of the answers in tags and boxes; None where there is none."""
        return answer_span(text)

    def max_prompt_tokens(self, tokenizer: Any) -> int:
        """Raise ConfigError: questions come from data."""
        del tokenizer
        self.rows("train", 1, 0)
        return 0

    def completion_tokens(self, tokenizer: Any) -> int:
        """Raise ConfigError: questions come from data."""
        return self.max_prompt_tokens(tokenizer)

    def check_places(self, tokenizer: Any) -> None:
        """Do nothing: a question has no template and no copies."""

    def rows(self, split: Split, n: int, seed: int) -> list[Row]:
        """Raise ConfigError: questions come from data."""
        raise ConfigError(
            f"data: got none for the task '{self.name}', which has no generator ({n} {split} rows for seed {seed} were "
            "asked for): give data, a file or a hub id with the columns question and answer"
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
        """Return solved (corrected), answered (states a final answer at all) and unsure (not judged), floats."""
        answers = [row["answer"] for row in rows]
        correct, answered = (f(completions, answer=answers) for f in self.reward_funcs)
        return {
            "solved": [float(x or 0) for x in correct],
            "answered": [float(bool(x)) for x in answered],
            "unsure": [float(x is None) for x in correct],
        }

    def load(self, path: Source) -> list[Row]:
        """Return the rows of data with `question` and `answer` (GSM8K) or `problem` and `solution` (MATH)."""
        records = load_rows(path)
        where = source_name(path)
        names = self.exam.asked
        asked = next((name for name in names if records and name in records[0]), names[0])
        answered = next((n for n in ("answer", "solution") if records and n in records[0]), "answer")
        require(records, (asked, answered), where)
        return [self._row(record, asked, f"{where}: row {i}") for i, record in enumerate(records)]

    def _row(self, record: Mapping[str, Any], asked: str, where: str) -> Row:
        question = str(record[asked])
        told = str(record.get("answer") if record.get("answer") is not None else record["solution"])
        found = self.exam.told(record, told)
        if found is None:
            raise ConfigError(f"{where} has no final answer: {shown(record)}")
        answer, solution = found
        prompt = render(self.style, question, self.tokenizer, self.examples, self.chat_template_kwargs)
        return {"prompt": prompt, "question": question, "answer": answer, "solution": solution}


def question_task(
    exam: Exam,
    data: Source | None,
    test_data: Source | None,
    drop_leaks: bool,
    style: str | None,
    tokenizer: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> DataTask | QuestionTask:
    """Return questions of a kind over data.

    Args:
        exam: the kind.
        data: a file, a hub id (`openai/gsm8k:main`) or rows in memory; split 80/10/10 by question. Without it
            the task can grade, score and load, but has no rows of its own.
        test_data: rows that become the test split instead.
        drop_leaks: drop training rows whose question is in the test data, instead of refusing.
        style: a template's name; `tags` where questions go through a chat template, else `plain`.
        tokenizer: its chat template, if it has one, is applied to the prompts.
        chat_template_kwargs: more arguments of the chat template.
    """
    chat = tokenizer if getattr(tokenizer, "chat_template", None) else None
    base = QuestionTask(exam, get_template(style or ("plain" if chat is None else "tags")), chat, chat_template_kwargs)
    return base if data is None else DataTask(base, data, test_data, drop_leaks)
