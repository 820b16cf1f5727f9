"""Prompts in, texts out: ids and keys of randomness."""

from typing import Any

import numpy as np
import pytest

from stp_rs.data.prompts import batch_indices, encode_prompts, rows_of_batches
from stp_rs.errors import InvalidValueError
from stp_rs.rollout.rewards import completion_token_ids, decode_completions
from tests.fixtures import tokenizer

EOS, MASK = 2, 1


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"prompt": text, "answer": text[::-1]} for text in texts]


def test_prompts_are_right_padded_ids_with_their_keys():
    batch = encode_prompts(rows("0[1", "3"), tokenizer(), uids=[40, 7])
    assert batch.prompt_ids.tolist() == [[4, 8, 5], [7, 0, 0]]
    assert batch.prompt_length.tolist() == [3, 1]
    assert batch.uid.tolist() == [40, 7]
    assert len(encode_prompts([], tokenizer(), uids=[])) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "row 1: needs a non-empty `prompt`"),
        ({"prompt": ""}, "row 1: needs a non-empty `prompt`"),
        ({"prompt": 12}, "row 1: needs a non-empty `prompt`"),
        ({"prompt": "0[MASK]"}, r"row 1: the prompt holds the mask token '\[MASK\]'; remove it"),
        (
            {"prompt": "yes?"},
            r"row 1: the tokenizer knows nothing of its prompt 'yes\?', whose 4 tokens are all '\[UNK\]'",
        ),
    ],
)
def test_prompts_that_cannot_be_used_say_which_and_why(row: dict[str, Any], message: str):
    with pytest.raises(InvalidValueError, match=message):
        encode_prompts([{"prompt": "0"}, row], tokenizer(), uids=[0, 1])


def test_repeats_are_neighbours_of_one_group_with_keys_of_their_own():
    batch = encode_prompts(rows("01", "2", "33"), tokenizer(), uids=[5, 6, 7])
    repeated = batch.repeat(4, step=3)
    assert repeated.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert repeated.prompt_ids[4:8].tolist() == [[6, 0]] * 4
    assert [row["prompt"] for row in repeated.rows] == ["01"] * 4 + ["2"] * 4 + ["33"] * 4
    assert len(set(repeated.uid.tolist())) == 12
    assert not set(repeated.uid.tolist()) & set(batch.repeat(4, step=4).uid.tolist())
    alone = encode_prompts(rows("2"), tokenizer(), uids=[6]).repeat(4, step=3)
    assert alone.uid.tolist() == repeated.uid[4:8].tolist(), "a row's key knows nothing of its batch"


def test_a_prompt_that_is_twice_in_a_batch_is_decoded_with_other_random_numbers():
    batch = encode_prompts(rows("01", "01"), tokenizer(), uids=[5, 5]).repeat(3)
    assert len(set(batch.uid.tolist())) == 6


def test_every_row_comes_once_per_epoch_in_an_order_of_its_own():
    size, count = 3, 7
    picked = [i for step in range(14) for i in batch_indices(step, size, count, seed=2)]
    epochs = [picked[e * count : (e + 1) * count] for e in range(6)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3
    assert picked[6:9] == batch_indices(2, size, count, seed=2), "any step can be asked for on its own"
    assert picked[:7] != [i for step in range(3) for i in batch_indices(step, size, count, seed=3)][:7]


@pytest.mark.parametrize(("batches", "size", "count"), [(3, 2, 7), (2, 3, 7), (0, 3, 7), (4, 2, 8), (9, 4, 5)])
def test_the_rows_of_a_run_are_those_of_its_batches(batches: int, size: int, count: int):
    read = {i for step in range(batches) for i in batch_indices(step, size, count, seed=2)}
    assert rows_of_batches(batches, size, count, seed=2) == sorted(read)


def test_texts_end_at_the_first_end_of_text():
    ids = np.array([[4, 5, EOS, 6], [EOS, 4, 4, 4], [4, 0, 3, 9], [4, 5, 6, 7]])
    texts = decode_completions(ids, np.array([4, 4, 4, 2]), tokenizer())
    assert texts == ["01", "", "0]", "01"]
    assert completion_token_ids(ids, np.array([4, 4, 4, 2]), tokenizer()) == [[4, 5, EOS], [EOS], [4, 0, 3, 9], [4, 5]]
