"""Step maps: each drawn token at exactly one step, states of a rollout rebuilt from them, other trainers' rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stp_rs import Rollout, Unmasking, encode_prompts, generate, state_at
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.steps import NO_STEP
from stp_rs.errors import InvalidValueError
from stp_rs.types import Mark
from tests.fixtures import LENGTH, tiny, tokenizer


def record(unmask_step: np.ndarray) -> Rollout:
    rows = len(unmask_step)
    prompts = PromptBatch(
        [{}] * rows, np.ones((rows, 2), np.int64), np.full(rows, 2, np.int32), np.arange(rows, dtype=np.uint64),
        np.arange(rows, dtype=np.int64),
    )  # fmt: skip
    made = Rollout.of(prompts, np.ones(unmask_step.shape, np.int64), unmask_step.astype(np.int32))
    return made.replaced(policy_version=np.arange(rows) + 7)


maps = hnp.arrays(np.int32, st.tuples(st.integers(0, 4), st.integers(1, 9)), elements=st.integers(Mark.UNDRAWN, 6))


@settings(deadline=None, max_examples=80)
@given(maps, st.integers(0, 10))
def test_steps_keep_the_order_of_forwards_without_gaps(forward: np.ndarray, block: int):
    found = record(forward).step_map(block)
    assert np.array_equal(found.drawn_RL, forward >= 0)
    for row, steps in enumerate(found.step_RL):
        for first in range(0, len(steps), block or len(steps)):
            part = slice(first, first + (block or len(steps)))
            drawn = forward[row, part] >= 0
            given_, got = forward[row, part][drawn], steps[part][drawn]
            assert sorted(set(got.tolist())) == list(range(len(set(given_.tolist()))))
            assert all(
                (a < b) == (x < y) for a, x in zip(given_, got, strict=True) for b, y in zip(given_, got, strict=True)
            )
            assert (steps[part][~drawn] == NO_STEP).all()
    versions = np.where(forward >= 0, (np.arange(len(forward)) + 7)[:, None], NO_STEP)
    assert np.array_equal(found.version_RL, versions)


@settings(deadline=None, max_examples=60)
@given(maps, st.integers(0, 3), st.integers(0, 4))
def test_every_drawn_token_is_revealed_at_exactly_one_step(forward: np.ndarray, width: int, block: int):
    found = record(forward).step_map(block)
    reveals = found.reveals(width, found.steps + 2)
    assert reveals.shape == (len(forward), found.steps + 2, width + forward.shape[1])
    assert not reveals[..., :width].any()
    assert np.array_equal(reveals[..., width:].sum(1), (forward >= 0).astype(int))
    for k in range(found.steps):
        assert np.array_equal(found.masked(k), reveals[:, k:, width:].any(1))


def test_states_of_a_real_rollout_come_back():
    model = tiny(seed=1)
    prompts = encode_prompts([{"prompt": text} for text in ("1", "10", "0")], tokenizer(), uids=range(3))
    rollout = generate(model, prompts, Unmasking(LENGTH, temporal="steps:0.6"), completion_length=LENGTH)
    found = rollout.step_map()
    lists = found.lists()
    assert [len(row) for row in lists] == [LENGTH] * 3
    assert min(map(min, lists)) == 1
    for k in range(found.steps):
        hidden = np.asarray(state_at(rollout, k, model.mask_token_id))[:, -LENGTH:] == model.mask_token_id
        assert np.array_equal(hidden, found.masked(k))


def test_what_was_not_drawn_has_no_place_in_a_list():
    priors = record(np.array([[0, Mark.PRIOR, 1, Mark.OUTSIDE]]))
    with pytest.raises(InvalidValueError, match="token 1 of row 0 was not drawn"):
        priors.step_map().lists()
    assert record(np.array([[3, 0, Mark.OUTSIDE]])).step_map().lists() == [[2, 1]]


def test_bad_values_are_named():
    with pytest.raises(InvalidValueError, match="block_length: got -1"):
        record(np.array([[0]])).step_map(-1)
    with pytest.raises(InvalidValueError, match="steps: got 1, needs at least 2"):
        record(np.array([[0, 1]])).step_map().reveals(steps=1)
