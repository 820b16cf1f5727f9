"""Tasks of reasoning-gym (the `tasks` extra): its generators make the rows, its verifiers score answers."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stp_rs._core import answer_spans, row_uid
from stp_rs.errors import ConfigError
from stp_rs.tasks.base import RewardFunc, Row, Split
from stp_rs.tasks.columns import column, texts
from stp_rs.tasks.data import SPLITS, load_rows, require, share_of, source_name
from stp_rs.tasks.questions import answer_span
from stp_rs.tasks.templates import get_template, render
from stp_rs.tasks.tokens import longest, rounded

_CUTS = (0.8, 0.9)
_SAMPLE = 256
"""Entries looked at once to find the lengths and characters of a dataset."""


class ReasoningGymTask:
    """One reasoning-gym dataset as a task. Questions are split by their text, so no split shares one.

    Example (with the extra installed):
        `ReasoningGymTask("leg_counting", max_instances=2).rows("train", 8, seed=0)`
    """

    def __init__(
        self,
        dataset: str,
        style: str = "plain",
        tokenizer: Any = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **config: Any,
    ) -> None:
        """Make a dataset with reasoning-gym's own `config`; prompts as in `stp_rs.tasks.templates`."""
        try:
            self._library = importlib.import_module("reasoning_gym")
        except ImportError as error:
            raise ConfigError("reasoning-gym is not installed: pip install 'stp-rs[tasks]'") from error
        self._dataset_name, self._config = dataset, config
        self._style, self._tokenizer, self._template_kwargs = get_template(style), tokenizer, chat_template_kwargs
        sample = self._entries(_SAMPLE, 0)
        self._scorer = sample
        rows = [self._row(sample[i]) for i in range(_SAMPLE)]
        answers = [self._style.completion("", str(row["answer"])) for row in rows]
        self.name = f"reasoning_gym/{dataset}"
        self.alphabet = "".join(sorted({c for row in rows for c in row["prompt"]}.union(*answers)))
        self.prompt_length = max(len(row["prompt"]) for row in rows)
        self.completion_length = -(-(max(map(len, answers)) + 1) // 8) * 8
        self.whole_answer = False
        self.template: Mapping[int, str] = {}
        self._texts = [row["prompt"] for row in rows], answers
        self.reward_funcs: Sequence[RewardFunc] = (self.reasoning_gym_score,)

    def _entries(self, size: int, seed: int) -> Any:
        try:
            return self._library.create_dataset(self._dataset_name, size=size, seed=seed, **self._config)
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"reasoning-gym dataset '{self._dataset_name}': {error}") from error

    def _row(self, entry: Mapping[str, Any]) -> Row:
        question = str(entry["question"])
        prompt = render(self._style, question, self._tokenizer, chat_template_kwargs=self._template_kwargs)
        return {"prompt": prompt, "question": question, "answer": entry["answer"], "entry": dict(entry)}

    def rows(self, split: Split, n: int, seed: int) -> list[Row]:
        """Return n entries of a split, with the whole reasoning-gym entry in the column `entry`."""
        if split not in SPLITS:
            raise ConfigError(f"split: got '{split}', needs one of {', '.join(SPLITS)}")
        made: list[Row] = []
        for turn in range(64):
            key = row_uid(seed, SPLITS.index(split), turn) >> 33  # reasoning-gym takes 31-bit seeds
            size = 2 * n + 32
            entries = self._entries(size, key)
            rows = [self._row(entries[i]) for i in range(size)]
            made += [row for row in rows if _split_of(row["question"]) == split]
            if len(made) >= n:
                return made[:n]
        raise ConfigError(
            f"reasoning-gym dataset '{self._dataset_name}' gave {len(made)} of {n} {split} entries: "
            "it repeats few questions; widen its configuration"
        )

    def demonstrations(self, n: int, seed: int) -> list[Row]:
        """Return n training rows with the reference answer, laid out as the template asks."""
        rows = self.rows("train", n, seed)
        return [{**row, "completion": self._style.completion("", str(row["answer"]))} for row in rows]

    def reference(self, row: Row) -> str:
        """Return the reference answer, laid out as the template asks."""
        return self._style.completion("", str(row["answer"]))

    def answer_span(self, text: str) -> tuple[int, int] | None:
        """Return the range of the answers in tags and boxes; None where there is none."""
        return answer_span(text)

    def max_prompt_tokens(self, tokenizer: Any) -> int:
        """Return the longest prompt of a sample, in tokens."""
        return longest(self._texts[0], tokenizer)

    def completion_tokens(self, tokenizer: Any) -> int:
        """Return a canvas for the longest answer of a sample, in tokens, end-of-text included."""
        return rounded(longest(self._texts[1], tokenizer) + 1, 8)

    def check_places(self, tokenizer: Any) -> None:
        """Do nothing: there is no template, and there are no copies."""

    def copies(self, row: Row) -> Mapping[int, str]:
        """Return nothing: no position of the answer is fixed by the prompt."""
        del row
        return {}

    def reasoning_gym_score(
        self, completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: object
    ) -> list[float]:
        """Return reasoning-gym's own score of each answer, in [0, 1]; reads the column `entry`."""
        del prompts
        answers = answer_spans(texts(completions))
        entries = column(columns, "entry", len(completions))
        return [
            float(self._scorer.score_answer(answer=answer or None, entry=entry))
            for answer, entry in zip(answers, entries, strict=True)
        ]

    def score(self, completions: Sequence[str], rows: Sequence[Row]) -> dict[str, list[float]]:
        """Return solved (a full score) and score, one float per completion."""
        scores = self.reasoning_gym_score(completions, entry=[row["entry"] for row in rows])
        return {"solved": [float(s >= 1.0) for s in scores], "score": scores}

    def load(self, path: Path | str) -> list[Row]:
        """Return the rows of stored reasoning-gym entries (columns question, answer, metadata)."""
        records = load_rows(path)
        require(records, ("question", "answer", "metadata"), source_name(path))
        return [self._row(record) for record in records]


def _split_of(question: str) -> str:
    share = share_of(question)
    return SPLITS[(share >= _CUTS[0]) + (share >= _CUTS[1])]
