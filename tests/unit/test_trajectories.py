"""The one record of trajectories: rows taken, joined, replaced, evicted, written to arrays of ours, and to a file."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs.data.prompts import PromptBatch
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import CheckpointError, DtypeError, InvalidValueError, ShapeError
from stp_rs.types import Mark

L = 4


def record(rows: int, seed: int, *, width: int = 3, version: int = 0) -> Rollout:
    """Return a record with every column set and different in every row."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, width + 1, rows).astype(np.int32)
    uid = rng.integers(0, 2**64, rows, dtype=np.uint64)
    dataset = [{"prompt": f"{seed}-{i}"} for i in range(rows)]
    prompts = PromptBatch(dataset, rng.integers(3, 99, (rows, width)), lengths, uid, np.arange(rows) // 2)
    tokens = rng.integers(3, 99, (rows, L))
    steps = rng.integers(Mark.UNDRAWN, L, (rows, L)).astype(np.int32)
    reward = rng.normal(size=rows).astype(np.float32)
    return Rollout.of(prompts, tokens, steps).replaced(
        logprob=-rng.random((rows, L)).astype(np.float32),
        nfe=rng.integers(1, L, rows).astype(np.int32),
        stop_reason=rng.integers(1, 6, rows).astype(np.uint8),
        policy_version=np.full(rows, version),
        completions=[f"text {seed}-{i}" for i in range(rows)],
        reward=reward,
        rewards={"b": reward / 2, "a": reward / 2},
        advantage=rng.normal(size=rows).astype(np.float32),
        stats={"forwards": 10 * rows, "tokens": 7, "head_rows": 5},
    )


def facts(rollout: Rollout) -> list[tuple[Any, ...]]:
    """Return each row as a tuple, prompts without their padding, groups left out."""
    out = []
    for i, row in enumerate(rollout.prompts.rows):
        prompt = rollout.prompt_ids[i, : rollout.prompt_length[i]].tolist()
        columns = {name: column[i].tolist() for name, column in rollout.columns().items()}
        out.append((row, prompt, int(rollout.uid[i]), rollout.completions[i], columns))
    return out


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), max_size=8))
def test_rows_are_taken_in_the_order_given(rows: list[int]):
    whole = record(6, 1)
    for taken in (whole.select(rows), whole.minibatch(rows)):
        assert facts(taken) == [facts(whole)[row] for row in rows]
        assert taken.group.tolist() == whole.group[rows].tolist()
    assert whole.minibatch(rows).prompt_ids.shape[1] == whole.prompt_length[rows].max(initial=0)


def test_records_are_joined_and_their_shared_counters_counted_once():
    first, second = record(3, 1), record(2, 2, width=5)
    joined = Rollout.concat([first.select([2]), second, first.select([0, 1])])
    assert facts(joined) == [facts(first)[2], *facts(second), *facts(first)[:2]]
    assert joined.stats == {"forwards": 50, "tokens": 14, "head_rows": 10}
    assert joined.cost.forwards == 50
    with pytest.raises(InvalidValueError, match="the same columns in all"):
        Rollout.concat([first, Rollout.of(second.prompts, second.token_ids, second.unmask_step)])
    with pytest.raises(InvalidValueError, match="got 0 records"):
        Rollout.concat([])


def test_rows_are_replaced_in_the_groups_of_what_was_there():
    first, second = record(4, 1), record(2, 2)
    merged = first.replace_rows([3, 0], second)
    assert facts(merged) == [facts(second)[1], *facts(first)[1:3], facts(second)[0]]
    assert merged.group.tolist() == first.group.tolist()
    assert facts(first) == facts(record(4, 1)), "the record that was given is not changed"
    assert facts(first.replace_rows([], second.select([]))) == facts(first)


def test_rows_of_older_policies_are_evicted():
    joined = Rollout.concat([record(2, i, version=i) for i in range(4)])
    assert joined.evict(2).policy_version.tolist() == [2, 2, 3, 3]
    assert len(joined.evict(9)) == 0


def test_columns_are_written_into_arrays_of_ours_without_a_copy():
    whole, rows = record(6, 1), [4, 1, 1]
    mine = {"token_ids": torch.empty((3, L), dtype=torch.int64), "advantage": torch.empty(3)}
    batch = whole.minibatch(rows, {name: tensor.numpy() for name, tensor in mine.items()})
    assert facts(batch) == facts(whole.select(rows))
    assert mine["token_ids"].tolist() == whole.token_ids[rows].tolist()
    for name, tensor in mine.items():
        assert np.shares_memory(getattr(batch, name), tensor.numpy())
    with pytest.raises(ShapeError, match="token_ids: got shape"):
        whole.select(rows, {"token_ids": np.empty((2, L), np.int64)})
    with pytest.raises(DtypeError, match="advantage: got dtype float64, needs float32"):
        whole.select(rows, {"advantage": np.empty(3, np.float64)})
    with pytest.raises(IndexError):
        whole.select([6])


def test_a_column_has_a_value_for_every_row():
    with pytest.raises(ShapeError, match="reward: got 2 rows, needs 3"):
        record(3, 1).replaced(reward=np.zeros(2, np.float32))
    bare = Rollout.of(record(3, 1).prompts, np.zeros((3, L), np.int64), np.zeros((3, L), np.int32))
    with pytest.raises(InvalidValueError, match="advantage: the record has none yet"):
        bare.weights()


def test_minibatches_have_every_row_once_in_a_keyed_order():
    whole = record(7, 1)
    batches = list(whole.minibatches(3, seed=5, epoch=2))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    order = [int(uid) for batch in batches for uid in batch.uid]
    assert sorted(order) == sorted(whole.uid.tolist()) != order
    assert order == [int(uid) for batch in whole.minibatches(7, seed=5, epoch=2) for uid in batch.uid]
    assert order != [int(uid) for batch in whole.minibatches(7, seed=5, epoch=3) for uid in batch.uid]
    with pytest.raises(InvalidValueError, match="batch_size: got 0"):
        whole.minibatches(0, seed=0, epoch=0)


def test_a_file_and_a_pickle_give_an_equal_record(tmp_path: Path):
    whole = record(5, 1)
    whole.save(tmp_path / "record.safetensors")
    for again in (Rollout.load(tmp_path / "record.safetensors"), pickle.loads(pickle.dumps(whole))):
        assert facts(again) == facts(whole)
        assert again.group.tolist() == whole.group.tolist()
        assert (again.exact, again.stats) == (whole.exact, whole.stats)
        assert {n: c.dtype for n, c in again.columns().items()} == {n: c.dtype for n, c in whole.columns().items()}
    (tmp_path / "broken").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="cannot be read as a record"):
        Rollout.load(tmp_path / "broken")
