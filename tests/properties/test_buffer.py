"""Any sequence of calls leaves the buffer and a list of dicts in the same state."""

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stp_rs.errors import StateError
from stp_rs.rollout.buffer import TrajectoryBuffer, minibatches
from stp_rs.types import Mark
from tests.oracles.buffer import ListBuffer, Row, columns, random_rows, same_arrays

L = 3
CAPACITY = 9
MASK = 12345
# few and small, so that a replayed step is often the one that revealed a token
steps = st.one_of(st.integers(Mark.UNDRAWN, 3), st.just(2**15 - 1))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def rollouts(draw: st.DrawFn, most: int = 4) -> list[Row]:
    row = st.fixed_dictionaries(
        {
            "prompt_ids": st.lists(st.integers(0, 2**32 - 1), max_size=4),
            "token_ids": st.lists(st.integers(0, 2**32 - 1), min_size=L, max_size=L),
            "unmask_step": st.lists(steps, min_size=L, max_size=L),
            "stop_reason": st.integers(0, 255),
            "uid": st.integers(0, 2**64 - 1),
            "group": st.integers(-(2**63), 2**63 - 1),
            "policy_version": st.integers(-1, 3),
        }
    )
    rows = draw(st.lists(row, max_size=most))
    logprob = st.floats(max_value=0, min_value=-(2.0**100), width=32)
    for record in rows:
        record["logprob"] = [draw(logprob) if step >= 0 else 0.0 for step in record["unmask_step"]]
    return rows


class BufferMachine(RuleBasedStateMachine):
    """Pushes, scores, evicts, pickles and reads two buffers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = TrajectoryBuffer(L, CAPACITY)
        self.oracle = ListBuffer(L, CAPACITY)

    def some_rows(self, data: st.DataObject) -> list[int]:
        return data.draw(st.lists(st.integers(0, len(self.oracle.rows) - 1), max_size=4))

    @rule(rows=rollouts())
    def push(self, rows: list[Row]) -> None:
        arrays = columns(rows, L)
        if len(self.oracle.rows) + len(rows) > CAPACITY:
            with pytest.raises(StateError):
                self.buffer.push(**arrays)
        else:
            assert self.buffer.push(**arrays) == self.oracle.push(rows)

    @precondition(lambda self: self.oracle.rows)
    @rule(data=st.data(), name=st.sampled_from(["reward", "advantage"]))
    def score(self, data: st.DataObject, name: str) -> None:
        rows = self.some_rows(data)
        values = [data.draw(finite) for _ in rows]
        call = self.buffer.set_rewards if name == "reward" else self.buffer.set_advantages
        call(np.array(rows, np.int32), np.array(values, np.float32))
        self.oracle.set(name, rows, values)

    @rule(before=st.integers(-2, 5))
    def evict(self, before: int) -> None:
        assert self.buffer.evict(before) == self.oracle.evict(before)

    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.oracle.rows.clear()

    @rule()
    def pickle(self) -> None:
        arrays = self.buffer.to_arrays()
        self.buffer = pickle.loads(pickle.dumps(self.buffer))
        assert same_arrays(arrays, self.buffer.to_arrays())

    @precondition(lambda self: self.oracle.rows)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        rows = self.some_rows(data)
        before = [data.draw(st.integers(0, 4)) for _ in rows]
        out = np.empty((len(rows), L), np.int64)
        self.buffer.replay(np.array(rows, np.int32), np.array(before, np.int32), MASK, out)
        pairs = zip(rows, before, strict=True)
        assert out.tolist() == [self.oracle.state_at(row, step, MASK) for row, step in pairs]

    @precondition(lambda self: self.oracle.rows)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        rows = self.some_rows(data)
        records = [self.oracle.rows[row] for row in rows]
        expected = columns(records, L, pad_token_id=1)
        expected["prior_mask"] = (expected["unmask_step"] == Mark.PRIOR).astype(np.uint8)
        out: dict[str, Any] = {name: np.empty_like(array) for name, array in expected.items()}
        self.buffer.minibatch(np.array(rows, np.int32), pad_token_id=1, **out)
        assert same_arrays(expected, out)

    @precondition(lambda self: self.oracle.rows)
    @rule(data=st.data(), name=st.sampled_from(["reward", "advantage"]))
    def read_scores(self, data: st.DataObject, name: str) -> None:
        rows = self.some_rows(data)
        values = [self.oracle.rows[row][name] for row in rows]
        out: dict[str, Any] = {name: np.empty(len(rows), np.float32)}
        if None in values:
            with pytest.raises(StateError, match=f"call set_{name}s"):
                self.buffer.minibatch(np.array(rows, np.int32), **out)
        else:
            self.buffer.minibatch(np.array(rows, np.int32), **out)
            assert out[name].tolist() == values

    @invariant()
    def sizes_agree(self) -> None:
        assert len(self.buffer) == len(self.oracle.rows)
        assert self.buffer.nbytes == self.oracle.nbytes()
        longest = max((len(row["prompt_ids"]) for row in self.oracle.rows), default=0)
        assert self.buffer.max_prompt_length == longest


BufferMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestBuffer = BufferMachine.TestCase


@given(n=st.integers(0, 40), size=st.integers(1, 50), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_minibatches_are_a_partition_of_the_rows(n: int, size: int, seed: int, epoch: int):
    buffer = TrajectoryBuffer(L, 40)
    buffer.push(**columns(random_rows(n, L, seed=0), L))
    rows = np.arange(n, dtype=np.int32)
    buffer.set_rewards(rows, rows.astype(np.float32))
    buffer.set_advantages(rows, rows.astype(np.float32))
    batches = list(minibatches(buffer, size, seed=seed, epoch=epoch))
    assert all(len(batch) == size for batch in batches[:-1])
    assert sorted(row for batch in batches for row in batch.reward.tolist()) == rows.tolist()


@given(rows=rollouts(), step=st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_each_denoising_step_reveals_exactly_its_own_tokens(rows: list[Row], step: int):
    buffer = TrajectoryBuffer(L, CAPACITY)
    buffer.push(**columns([{**row, "token_ids": [1] * L} for row in rows], L))
    indices = np.arange(len(rows), dtype=np.int32)
    states = np.empty((2, len(rows), L), np.int64)
    for at in (0, 1):
        buffer.replay(indices, np.full(len(rows), step + at, np.int32), MASK, states[at])
    drawn = np.array([row["unmask_step"] for row in rows]).reshape(-1, L) != Mark.UNDRAWN
    revealed = (states[0] == MASK) & (states[1] != MASK) & drawn
    assert revealed.tolist() == [[at == step for at in row["unmask_step"]] for row in rows]
