"""The buffer by example: what a user sees, number by number."""

import numpy as np
import pytest
import torch

from stp_rs.errors import InvalidValueError, ShapeError, StateError
from stp_rs.rollout.buffer import Minibatch, TrajectoryBuffer, gather, minibatches
from stp_rs.types import Mark
from tests.oracles.buffer import columns, random_rows, same_arrays

L = 5
MASK = 999


def scored(n: int, *, capacity: int = 64) -> TrajectoryBuffer:
    buffer = TrajectoryBuffer(L, capacity)
    buffer.push(**columns(random_rows(n, L, seed=n), L))
    rows = np.arange(n, dtype=np.int32)
    buffer.set_rewards(rows, rows.astype(np.float32) / 2)
    buffer.set_advantages(rows, rows.astype(np.float32) - 1)
    return buffer


def literal(version: int = 0) -> dict[str, object]:
    return {
        "prompt_ids": [7, 8],
        "token_ids": [11, 12, 13, 14, 15],
        "unmask_step": [1, -1, 0, 1, -2],
        "logprob": [-0.5, 0.0, -1.0, -2.0, 0.0],
        "stop_reason": 2,
        "uid": 2**64 - 1,
        "group": 3,
        "policy_version": version,
    }


def test_replay_walks_from_the_prior_to_the_completion():
    buffer = TrajectoryBuffer(L, 4)
    assert buffer.push(**columns([literal()], L)) == 0
    out = np.empty((4, L), np.int64)
    buffer.replay(np.zeros(4, np.int32), np.arange(4, dtype=np.int32), MASK, out)
    assert out.tolist() == [
        [MASK, 12, MASK, MASK, 15],
        [MASK, 12, 13, MASK, 15],
        [11, 12, 13, 14, 15],
        [11, 12, 13, 14, 15],
    ]
    one = np.empty(L, np.int64)
    buffer.state_at(0, 1, MASK, one)
    assert one.tolist() == out[1].tolist()


def test_a_row_takes_the_documented_bytes():
    buffer = TrajectoryBuffer(L, 4)
    assert (len(buffer), buffer.nbytes, buffer.max_prompt_length) == (0, 0, 0)
    buffer.push(**columns([literal(), literal()], L))
    assert buffer.nbytes == 2 * (10 * L + 4 * 2 + 41)
    assert (len(buffer), buffer.max_prompt_length, buffer.completion_length, buffer.capacity) == (2, 2, L, 4)
    assert repr(buffer) == "TrajectoryBuffer(completion_length=5, capacity=4) with 2 rows"


def test_any_subset_of_the_columns_may_be_read():
    buffer = scored(3)
    group, prior = np.full(2, -5, np.int64), np.full((2, L), 7, np.uint8)
    buffer.minibatch(np.array([2, 0], np.int32), group=group, prior_mask=prior)
    whole = gather(buffer, np.array([2, 0], np.int32))
    assert group.tolist() == [1, 0]
    assert prior.tolist() == (whole.unmask_step == Mark.PRIOR).astype(int).tolist()


def test_prompts_are_padded_on_the_right():
    buffer = TrajectoryBuffer(L, 4)
    buffer.push(**columns([literal(), {**literal(), "prompt_ids": []}], L))
    ids = np.empty((2, 4), np.int64)
    buffer.minibatch(np.array([0, 1], np.int32), pad_token_id=1, prompt_ids=ids)
    assert ids.tolist() == [[7, 8, 1, 1], [1, 1, 1, 1]]
    with pytest.raises(ShapeError, match="at least 2, the longest prompt"):
        buffer.minibatch(np.array([0], np.int32), prompt_ids=np.empty((1, 1), np.int64))


def test_a_full_buffer_says_what_to_do_and_loses_nothing():
    buffer = TrajectoryBuffer(L, 3)
    buffer.push(**columns([literal(0), literal(1)], L))
    before = buffer.to_arrays()
    with pytest.raises(StateError, match=r"holds 2 of at most 3 rows and 2 more .* evict .* larger capacity"):
        buffer.push(**columns([literal(2), literal(2)], L))
    assert same_arrays(before, buffer.to_arrays())
    assert buffer.evict(before_version=1) == 1
    assert buffer.push(**columns([literal(2), literal(2)], L)) == 1
    version = np.empty(3, np.int64)
    buffer.minibatch(np.arange(3, dtype=np.int32), policy_version=version)
    assert version.tolist() == [1, 2, 2]
    buffer.clear()
    assert len(buffer) == 0


@pytest.mark.parametrize(("column", "call"), [("reward", "set_rewards"), ("advantage", "set_advantages")])
def test_a_number_that_was_never_set_is_not_read_as_zero(column: str, call: str):
    buffer = TrajectoryBuffer(L, 4)
    buffer.push(**columns([literal(), literal()], L))
    getattr(buffer, call)(np.array([1], np.int32), np.array([0.5], np.float32))
    out = np.empty(1, np.float32)
    buffer.minibatch(np.array([1], np.int32), **{column: out})
    assert out[0] == 0.5
    with pytest.raises(StateError, match=f"row 0 has no {column} yet; call {call}"):
        buffer.minibatch(np.array([0], np.int32), **{column: out})


def test_minibatches_visit_every_row_once_and_keep_the_last_partial_batch():
    buffer = scored(11)
    batches = list(minibatches(buffer, 4, seed=1, epoch=0, pad_token_id=3))
    assert [len(batch) for batch in batches] == [4, 4, 3]
    order = np.concatenate([batch.rows for batch in batches])
    assert sorted(order.tolist()) == list(range(11))
    assert order.tolist() != list(range(11))
    assert np.concatenate([batch.reward for batch in batches]).tolist() == (order / 2).tolist()
    for batch in batches:
        assert batch.prompt_ids.shape[1] == batch.prompt_length.max()
        for ids, length in zip(batch.prompt_ids, batch.prompt_length, strict=True):
            assert (ids[length:] == 3).all()


def test_the_order_is_a_function_of_seed_and_epoch():
    buffer = scored(16)

    def order(seed: int, epoch: int) -> list[int]:
        batches = minibatches(buffer, 5, seed=seed, epoch=epoch)
        return np.concatenate([batch.rows for batch in batches]).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_minibatches_of_nothing_and_of_no_size():
    assert list(minibatches(TrajectoryBuffer(L, 4), 4, seed=0, epoch=0)) == []
    with pytest.raises(InvalidValueError, match="batch_size: got 0"):
        minibatches(scored(2), 0, seed=0, epoch=0)


def test_tensors_share_memory_on_the_cpu():
    batch: Minibatch = next(minibatches(scored(3), 3, seed=0, epoch=0))
    tensors = batch.tensors()
    assert tensors["token_ids"].dtype == torch.int64
    assert tensors["reward"].tolist() == batch.reward.tolist()
    batch.token_ids[0, 0] = 42
    assert tensors["token_ids"][0, 0] == 42
    assert {"rows", "uid"}.isdisjoint(tensors)
