"""Which priors a configuration names, for the tasks of the package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stp_rs.config import TaskConfig
from stp_rs.config.sections import PolicyConfig
from stp_rs.data.prompts import encode_prompts
from stp_rs.errors import ConfigError
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.models.masked_lm import MaskedLMAdapter
from stp_rs.priors import Frequency, Hint, Length, Prior, Vocabulary, compose_priors
from stp_rs.priors.lifecycle import prepare
from stp_rs.tasks import get_task
from stp_rs.tasks.base import Constrained, Referenced, Task
from stp_rs.train.anchors import OfflineGeneration
from stp_rs.train.metrics import Ledger
from stp_rs.train.priors import check_spatial, solution_text, static_priors, training_priors
from tests.bpe import bpe

GSM8K = [{"question": f"{n} + 1?", "answer": f"It is {n}+1=<<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}"} for n in range(9)]


def names(priors: list[Prior]) -> list[str]:
    return [type(p).__name__ for p in priors]


def made(task: Task, tmp_path: Path, *, resumed: bool = False, **options: Any) -> list[Prior]:
    """Return the training priors of a task's tiny random policy on three rows."""
    length = task.completion_length
    config = TaskConfig(preset="elbo", output_dir=str(tmp_path), max_completion_length=length, **options)
    tokenizer = character_tokenizer(task.alphabet)
    size = PolicyConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    module = tiny_policy(size, vocab_size=len(tokenizer), max_length=task.prompt_length + length, seed=0)
    model = MaskedLMAdapter(module, tokenizer)
    static = static_priors(config, task, tokenizer, model)
    rows = task.rows("train", 3, 0)
    return training_priors(
        config, task, model, tokenizer, read=lambda: rows, static=static, resumed=resumed, ledger=Ledger()
    )


def dense(priors: list[Prior], task: Task, row: int = 0) -> list[int]:
    prompts = encode_prompts(task.rows("train", 3, 0), character_tokenizer(task.alphabet), uids=range(3))
    ids = np.empty((3, task.completion_length), np.int64)
    prepare(priors, prompts, task.completion_length)
    compose_priors(priors, prompts, task.completion_length).fill(ids)
    return ids[row].tolist()


def test_all_eight_sources_have_names(tmp_path: Path):
    task = get_task("sudoku")
    every = "template+copy+length+vocabulary+offline_generation+first_forward+hint+frequency"
    found = made(task, tmp_path, stp_spatial=every, stp_rescue="hint", stp_length="18", stp_prior_refresh=3)
    assert names(found) == [
        *("Template", "Copy", "Length", "Vocabulary", "Hint", "OfflineGeneration", "FirstForward", "Hint", "Frequency")
    ]
    rescue, offline, _, hint, frequency = found[4:]
    assert isinstance(rescue, Hint)
    assert isinstance(hint, Hint)
    assert (rescue.when, hint.when) == ("all_wrong", "always")
    assert isinstance(offline, OfflineGeneration)
    assert offline.refresh == 3
    assert isinstance(frequency, Frequency)
    assert frequency.minimum == 8, "one group"
    assert (tmp_path / "offline_generation.safetensors").is_file()
    assert min(dense(found, task)[17:]) >= 0, "template and length agree on the end"
    again = made(
        task, tmp_path, resumed=True, stp_spatial=every, stp_rescue="hint", stp_length="18", stp_prior_refresh=3
    )
    assert dense(again, task) == dense(found, task), "read, not made again"


def test_what_needs_an_answer_or_a_run_is_not_static():
    task, tokenizer = get_task("sudoku"), character_tokenizer(get_task("sudoku").alphabet)

    def static(**options: Any) -> list[str]:
        return names(static_priors(TaskConfig(preset="elbo", **options), task, tokenizer))

    every = "frequency+vocabulary+hint+offline_generation+length+copy+template"
    assert static(stp_spatial=every) == ["Vocabulary", "Copy", "Template"]
    assert static(stp_spatial=every, stp_length="19") == ["Vocabulary", "Length", "Copy", "Template"]
    assert static(stp_spatial="none") == static() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stp_spatial": "templat"}, "stp_spatial: got 'templat', needs template, copy"),
        ({"stp_spatial": "copy+copy"}, "got 'copy', needs .*once each"),
        ({"stp_spatial": "none+copy"}, "got 'none'"),
        ({"stp_spatial": "length", "stp_length": "quantile"}, "stp_length: got 'quantile'"),
        ({"stp_spatial": "length", "stp_length": "quantile:2"}, "stp_length: got 'quantile:2'"),
        ({"stp_spatial": "hint", "stp_prior_anneal": "linear:3"}, "stp_prior_anneal: got linear:3"),
    ],
)
def test_a_configuration_that_cannot_be_says_so(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        check_spatial(TaskConfig(preset="elbo", **options), get_task("sudoku"))
    with pytest.raises(ConfigError, match=message):
        made(get_task("sudoku"), tmp_path, **options)


def test_lengths_come_from_references_or_earlier_rollouts(tmp_path: Path):
    task = get_task("countdown")
    (by_row,) = made(task, tmp_path, stp_spatial="length")
    assert isinstance(by_row, Length)
    row = task.rows("train", 3, 0)[0]
    assert sum(i == 2 for i in dense([by_row], task)) == task.completion_length - len(row["solution"]) - 2
    (quantile,) = made(task, tmp_path, stp_spatial="length", stp_length="quantile:0.9")
    assert isinstance(quantile, Length)
    assert (quantile.quantile, quantile.slack) == (0.9, 1)


@pytest.mark.parametrize("name", ["sudoku", "countdown", "gsm8k"])
def test_references_of_tasks_solve_their_rows(name: str):
    options = {"data": GSM8K} if name == "gsm8k" else {}
    for task in (get_task(name, **options), *([get_task(name, data=[*PUZZLES])] if name == "sudoku" else [])):
        assert isinstance(task, Referenced)
        rows = task.rows("train", 4, 0)
        texts = [task.reference(row) for row in rows]
        assert task.score([t or "" for t in texts], rows)["solved"] == [1.0] * len(rows)
        assert solution_text(task)(rows[0]) == texts[0]


PUZZLES = [{"Puzzle": r["puzzle"], "Solution": r["solution"]} for r in get_task("sudoku").rows("train", 12, 0)]


def test_a_countdown_row_without_solution_is_solved():
    task = get_task("countdown")
    assert isinstance(task, Referenced)
    row = {"prompt": "", "numbers": [3, 5, 7], "target": 22}
    text = task.reference(row)
    assert text is not None
    assert task.score([text], [row])["solved"] == [1.0]
    assert task.reference({**row, "numbers": [1, 1, 1], "target": 99}) is None


@pytest.mark.parametrize("name", ["sudoku", "countdown"])
def test_every_reference_is_in_its_tasks_vocabulary(name: str):
    task = get_task(name)
    assert isinstance(task, Constrained)
    assert isinstance(task, Referenced)
    for row in task.rows("train", 20, 0):
        cells = [*(task.reference(row) or ""), *[""] * task.completion_length][: task.completion_length]
        for position, text in enumerate(cells):
            allowed = task.allowed(position)
            assert allowed is None or text in allowed
    with pytest.raises(ConfigError, match="gsm8k, which has no allowed"):
        static_priors(TaskConfig(preset="elbo", stp_spatial="vocabulary"), get_task("gsm8k", data=GSM8K), None)


def test_hints_never_give_the_final_answer_of_a_worked_solution(tmp_path: Path):
    task = get_task("gsm8k", data=GSM8K)
    span = task.answer_span
    text = "so 3<answer>\n\\boxed{4}</answer>"
    assert span(text) == (12, 22)
    assert span("\\boxed{4}") == (7, 8)
    (protected,) = made(task, tmp_path, stp_spatial="hint", stp_hint=1.0)
    (open_,) = made(task, tmp_path, stp_spatial="hint", stp_hint=1.0, stp_protect_answer=False)
    hidden = [i for i, (a, b) in enumerate(zip(dense([protected], task), dense([open_], task), strict=True)) if a != b]
    row = task.rows("train", 3, 0)[0]
    assert isinstance(task, Referenced)
    reference = task.reference(row)
    assert reference is not None
    assert "".join(reference[i] for i in hidden) == row["answer"]


def test_the_model_says_how_wide_a_vocabulary_is(tmp_path: Path):
    (vocabulary,) = made(get_task("sudoku"), tmp_path, stp_spatial="vocabulary")
    assert isinstance(vocabulary, Vocabulary)
    assert vocabulary.vocab_size == len(character_tokenizer(get_task("sudoku").alphabet))


def test_a_layout_by_character_needs_a_tokenizer_with_one_token_per_character():
    task = get_task("sudoku")
    merging = bpe(400, [row["completion"] for row in task.demonstrations(50, 0)])
    for name in ("template", "copy", "vocabulary"):
        with pytest.raises(ConfigError, match=r"task sudoku: got .* needs a tokenizer with one token"):
            static_priors(TaskConfig(preset="elbo", stp_spatial=name), task, merging)
    assert static_priors(TaskConfig(preset="elbo", stp_spatial="length", stp_length="9"), task, merging)
