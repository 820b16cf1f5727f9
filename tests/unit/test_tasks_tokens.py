"""Lengths in tokens, places of the layout, and answer spans, for a character tokenizer and for byte-level BPE."""

from typing import Any

import numpy as np
import pytest

from stp_rs import tasks
from stp_rs.errors import ConfigError
from stp_rs.models import character_tokenizer
from stp_rs.priors import eligible_tokens, tag_span
from stp_rs.tasks import questions
from tests.bpe import bpe


def shown(text: str, tokenizer: Any, span: Any, width: int = 0) -> tuple[str, np.ndarray]:
    """Return what a hint of every eligible token shows, and which tokens are eligible."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids += [tokenizer.eos_token_id] * max(0, width - len(ids))
    eligible = eligible_tokens(np.array([ids]), tokenizer, span)[0]
    return tokenizer.decode([i for i, e in zip(ids, eligible, strict=True) if e], skip_special_tokens=True), eligible


BOX = tag_span("\\boxed{", "}")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a \\boxed{\\frac{11}{7}} b", "\\frac{11}{7}"),
        ("a \\boxed{\\frac{\\sqrt{11}}{7}}", "\\frac{\\sqrt{11}}{7}"),
        ("\\boxed{1} then \\boxed{\\text{x}}", "\\text{x}"),
        ("\\boxed{\\boxed{7}}", "\\boxed{7}"),
        ("\\boxed{\\frac{11}{7", "\\frac{11}{7"),
        ("\\boxed{}", ""),
    ],
)
def test_braces_of_a_box_are_balanced(text: str, answer: str):
    found = BOX(text)
    assert found is not None
    assert text[slice(*found)] == answer


def test_brackets_of_a_frame_are_balanced():
    text = "[3*[5+7]]"
    assert text[slice(*(tag_span("[", "]")(text) or (0, 0)))] == "3*[5+7]"


@pytest.mark.parametrize("vocab", [259, 280, 320])
@pytest.mark.parametrize("end", ["", " and so on \U0001f680"])
@pytest.mark.parametrize(
    "answer", ["\\frac{11}{7}", "\u7b54\u6848", "\U0001f600", "caf\u00e9", "7", "\u00e9\u00e9\u00e9"]
)
@pytest.mark.parametrize("before", ["so ", "\u95ee\u9898\u662f ", "\U0001f680"])
def test_nothing_of_a_protected_answer_is_shown_by_byte_tokens(vocab: int, end: str, answer: str, before: str):
    tokenizer = bpe(vocab)
    text = f"{before}<answer>\\boxed{{{answer}}}</answer>{end}"
    visible, eligible = shown(text, tokenizer, questions.answer_span)
    assert eligible.any()
    assert answer not in visible
    whole = text.index(answer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    raw = text.encode()
    at, first, last = 0, len(text[:whole].encode()), len(text[: whole + len(answer)].encode())
    byte_of = {c: b for b, c in bytes_to_unicode().items()}
    for token, shown_here in zip(tokenizer.convert_ids_to_tokens(ids), eligible, strict=True):
        size = len([byte_of[c] for c in token])
        assert not (shown_here and at < last and at + size > first), (token, raw[at : at + size])
        at += size
    assert at == len(raw)


def bytes_to_unicode() -> dict[int, str]:
    """The characters that byte-level tokens are written with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


@pytest.mark.parametrize("text", ["no answer here 7", "\u7b54\u6848\u662f 7", "7"])
def test_where_no_answer_is_found_nothing_is_shown(text: str):
    _, eligible = shown(text, bpe(), questions.answer_span, width=40)
    assert not eligible.any()


def test_an_answer_is_protected_wherever_it_is_given():
    text = "first \\boxed{7} and then <answer>7</answer>, done"
    assert "7" not in shown(text, bpe(), questions.answer_span)[0]
    assert shown(text, bpe(), questions.answer_span)[0].endswith("</answer>, done")


def test_what_follows_the_end_of_text_is_shown_and_repeated_rows_agree():
    tokenizer = bpe()
    ids = tokenizer("a <answer>7</answer>", add_special_tokens=False)["input_ids"]
    row = [*ids, tokenizer.eos_token_id, tokenizer.eos_token_id]
    eligible = eligible_tokens(np.array([row, row]), tokenizer, tag_span())
    assert eligible[0].tolist() == eligible[1].tolist()
    assert eligible[0, -2:].tolist() == [1, 1]
    assert 0 < eligible[0].sum() < len(row)


def test_a_decoder_that_gives_no_places_shows_nothing():
    class Shuffling:
        eos_token_id = 9

        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            return "[1]" if len(ids) > 1 else "?"

    assert eligible_tokens(np.array([[1, 2, 3, 9]]), Shuffling(), tag_span("[", "]")).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("name", ["sudoku", "countdown", "sums"])
def test_lengths_of_a_character_tokenizer_are_the_tasks_own(name: str):
    task = tasks.get_task(name)
    tokenizer = character_tokenizer(task.alphabet)
    assert task.completion_tokens(tokenizer) == task.completion_length
    assert task.max_prompt_tokens(tokenizer) == task.prompt_length
    task.check_places(tokenizer)


@pytest.mark.parametrize("name", ["sudoku", "countdown", "sums"])
def test_lengths_of_a_bpe_tokenizer_hold_the_tasks_texts(name: str):
    task = tasks.get_task(name)
    shown_rows = task.demonstrations(400, 7)
    tokenizer = bpe(400, [row["completion"] for row in task.demonstrations(300, 1)])
    length = task.completion_tokens(tokenizer)
    needed = max(len(tokenizer(row["completion"])["input_ids"]) + 1 for row in shown_rows)
    assert needed <= length <= task.completion_length
    assert length % 4 == 0
    prompts = max(len(tokenizer(row["prompt"])["input_ids"]) for row in shown_rows)
    assert prompts <= task.max_prompt_tokens(tokenizer)
    with pytest.raises(ConfigError, match=rf"task {name}: got \d+ tokens for \d+ characters .*one token per character"):
        task.check_places(tokenizer)


def test_lengths_of_questions_are_those_of_their_rows():
    data = [
        {"question": f"What is {i} + {i}? \u7b54", "answer": f"{i} + {i} = {2 * i}\n#### {2 * i}"} for i in range(30)
    ]
    task = tasks.get_task("gsm8k", data=data, style="tags")
    for tokenizer in (bpe(260), bpe(400, [row["question"] for row in data])):
        rows = task.demonstrations(100, 0)
        needed = max(len(tokenizer(row["completion"])["input_ids"]) + 1 for row in rows)
        assert needed <= task.completion_tokens(tokenizer) < needed + 8
        assert task.max_prompt_tokens(tokenizer) >= max(len(tokenizer(row["prompt"])["input_ids"]) for row in rows)
        task.check_places(tokenizer)  # without a layout there is nothing to check
    with pytest.raises(ConfigError, match="has no generator"):
        tasks.get_task("math").completion_tokens(bpe())


def test_a_puzzle_over_data_checks_its_places():
    rows = [{"Puzzle": r["puzzle"], "Solution": r["solution"]} for r in tasks.SudokuTask().rows("train", 40, seed=0)]
    task = tasks.get_task("sudoku", data=rows)
    task.check_places(character_tokenizer(task.alphabet))
    assert task.completion_tokens(character_tokenizer(task.alphabet)) == 20
    with pytest.raises(ConfigError, match="task sudoku"):
        task.check_places(bpe(400, [row["Solution"] for row in rows]))


@pytest.mark.parametrize(("name", "whole"), [("sudoku", True), ("countdown", True), ("sums", False), ("gsm8k", False)])
def test_tasks_say_where_their_answer_is(name: str, whole: bool):
    task = tasks.get_task(name)
    assert task.whole_answer is whole
    text = "<answer>\\boxed{7}</answer>" if name == "gsm8k" else "1+6=7;[7]"
    found = task.answer_span(text)
    assert found is not None
    assert "7" in text[slice(*found)]
    assert task.answer_span("nothing") is None


def test_a_tokenizer_is_for_the_tasks_that_ask_through_it():
    tokenizer = bpe()
    assert tasks.get_task("sudoku", tokenizer=tokenizer).name == "sudoku"
    assert tasks.get_task("gsm8k", tokenizer=tokenizer).style.prefill == ""  # it has no chat template
