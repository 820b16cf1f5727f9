"""The arrays layer, through the buffer: what Python may hand to Rust, and what it hears when it may not."""

import copy
import pickle
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import errors
from stp_rs.rollout.buffer import TrajectoryBuffer, minibatches
from tests.oracles.buffer import columns, random_rows, same_arrays

L = 6
ROWS = np.arange(2, dtype=np.int32)
WIDE = ["token_ids", "unmask_step", "logprob"]
PUSHED = sorted(columns([], L))
OUTPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "prompt_ids": ("int64", (2, 8)),
    "prompt_length": ("int32", (2,)),
    "token_ids": ("int64", (2, L)),
    "unmask_step": ("int32", (2, L)),
    "prior_mask": ("uint8", (2, L)),
    "logprob": ("float32", (2, L)),
    "stop_reason": ("uint8", (2,)),
    "reward": ("float32", (2,)),
    "advantage": ("float32", (2,)),
    "uid": ("uint64", (2,)),
    "group": ("int64", (2,)),
    "policy_version": ("int64", (2,)),
}


def two() -> dict[str, Any]:
    """Returns the arrays of a legal push of two rows, with prompts."""
    rows = [{**row, "prompt_ids": [1, 2, 3]} for row in random_rows(2, L, seed=1)]
    return columns(rows, L)


def filled(n: int = 4, *, capacity: int = 1000) -> TrajectoryBuffer:
    buffer = TrajectoryBuffer(L, capacity)
    buffer.push(**columns(random_rows(n, L, seed=3), L))
    rows = np.arange(n, dtype=np.int32)
    buffer.set_rewards(rows, np.ones(n, np.float32))
    buffer.set_advantages(rows, np.ones(n, np.float32))
    return buffer


def refused(buffer: TrajectoryBuffer, error: type[Exception], match: str, **changed: Any) -> None:
    """Checks that a push with some columns replaced raises, and leaves the buffer as it was."""
    before = buffer.to_arrays()
    arrays: Any = {**two(), **changed}
    with pytest.raises(error, match=match):
        buffer.push(**arrays)
    assert same_arrays(before, buffer.to_arrays())


@pytest.mark.parametrize("name", PUSHED)
def test_a_push_of_the_wrong_dtype_names_argument_got_need_and_fix(name: str) -> None:
    right = two()[name]
    wrong = "float64" if right.dtype != "float64" else "float32"
    text = rf"^{name}: got dtype {wrong}, needs {right.dtype}; use {name}\.astype\(\"{right.dtype}\"\)$"
    refused(filled(), errors.DtypeError, text, **{name: right.astype(wrong)})
    swapped = right.astype(right.dtype.newbyteorder())
    if right.dtype.itemsize > 1:
        refused(filled(), errors.DtypeError, f"^{name}: got dtype", **{name: swapped})


@pytest.mark.parametrize("name", PUSHED)
def test_a_push_of_the_wrong_shape_or_of_no_array_is_refused(name: str) -> None:
    right = two()[name]
    buffer = filled()
    refused(buffer, errors.DtypeError, f"^{name}: got a list, needs a numpy array", **{name: right.tolist()})
    refused(buffer, errors.ShapeError, "got shape", **{name: right[:1]})
    refused(buffer, errors.StpError, "dimensions|shape", **{name: right[None]})
    refused(buffer, errors.StpError, "dimensions|shape", **{name: right.reshape(-1)[0:1].reshape(())})


@pytest.mark.parametrize("name", WIDE)
def test_a_push_needs_rows_of_the_completion_length(name: str) -> None:
    long = np.zeros((2, L + 1), columns([], L)[name].dtype)
    refused(filled(), errors.ShapeError, rf"{name}: got shape \[2, 7\], needs \[2, 6\]", **{name: long})


@pytest.mark.parametrize("name", PUSHED)
def test_strided_and_reversed_arrays_are_refused(name: str) -> None:
    right = two()[name]
    spread = np.repeat(right, 2, axis=0)[::2]
    assert np.array_equal(spread, right)
    refused(filled(), errors.LayoutError, f"^{name}: .*ascontiguousarray", **{name: spread})
    refused(filled(), errors.LayoutError, f"^{name}: .*ascontiguousarray", **{name: right[::-1]})
    if right.ndim == 2:
        refused(filled(), errors.LayoutError, f"^{name}: .*", **{name: np.asfortranarray(right)})


def test_names_that_the_call_does_not_know_or_does_not_get() -> None:
    buffer = filled()
    refused(buffer, errors.InvalidValueError, "got an array named 'tokens', needs names among", tokens=ROWS)
    arrays: Any = two()
    del arrays["uid"]
    with pytest.raises(errors.InvalidValueError, match="push: uid is missing"):
        buffer.push(**arrays)
    wrong: Any = {"capacity": ROWS}
    with pytest.raises(errors.InvalidValueError, match="'capacity'"):
        buffer.minibatch(ROWS, **wrong)


@pytest.mark.parametrize("name", sorted(OUTPUTS))
def test_outputs_must_be_writable_contiguous_and_of_their_dtype_and_shape(name: str) -> None:
    buffer = filled()
    dtype, shape = OUTPUTS[name]

    def read(out: Any) -> None:
        buffer.minibatch(ROWS, **{name: out})

    read(np.zeros(shape, dtype))
    frozen = np.zeros(shape, dtype)
    frozen.flags.writeable = False
    with pytest.raises(errors.AliasError, match=f"^{name}: the array is read-only"):
        read(frozen)
    with pytest.raises(errors.LayoutError, match=f"^{name}: "):
        read(np.zeros((shape[0] * 2, *shape[1:]), dtype)[::2])
    with pytest.raises(errors.DtypeError, match=f"^{name}: got dtype complex128"):
        read(np.zeros(shape, "complex128"))
    with pytest.raises(errors.ShapeError, match=f"^{name}: got shape"):
        read(np.zeros((3, *shape[1:]), dtype))
    with pytest.raises(errors.DtypeError, match=f"^{name}: got a Tensor"):
        read(torch.zeros(2))


def test_one_array_is_never_written_twice_nor_written_while_read() -> None:
    buffer = filled()
    shared = np.zeros(2, np.int64)
    with pytest.raises(errors.AliasError, match="used twice"):
        buffer.minibatch(ROWS, group=shared, policy_version=shared)
    longer = np.zeros(3, np.int64)
    with pytest.raises(errors.AliasError, match="used twice"):
        buffer.minibatch(ROWS, group=longer[:2], policy_version=longer[1:])
    rows = ROWS.copy()
    with pytest.raises(errors.AliasError):
        buffer.minibatch(rows, prompt_length=rows)
    assert rows.tolist() == ROWS.tolist()
    halves = np.zeros(4, np.int64)
    buffer.minibatch(ROWS, group=halves[:2], policy_version=halves[2:])


def test_arrays_that_are_only_read_may_be_frozen_and_shared() -> None:
    arrays: Any = two()
    arrays["policy_version"] = arrays["group"]
    for array in arrays.values():
        array.flags.writeable = False
    buffer = filled()
    assert buffer.push(**arrays) == 4
    frozen = ROWS.copy()
    frozen.flags.writeable = False
    buffer.minibatch(frozen, group=np.zeros(2, np.int64))


def test_empty_batches_are_legal() -> None:
    buffer = TrajectoryBuffer(L, 1)
    nothing: Any = columns([], L)
    assert buffer.push(**nothing) == 0
    buffer.minibatch(ROWS[:0], token_ids=np.zeros((0, L), np.int64), prompt_ids=np.zeros((0, 0), np.int64))
    buffer.set_rewards(ROWS[:0], np.zeros(0, np.float32))
    buffer.replay(ROWS[:0], ROWS[:0], 9, np.zeros((0, L), np.int64))
    assert (buffer.evict(0), len(buffer), buffer.nbytes) == (0, 0, 0)
    assert same_arrays(buffer.to_arrays(), pickle.loads(pickle.dumps(buffer)).to_arrays())


def test_sizes_at_the_edge() -> None:
    largest = 2**31 - 1
    assert TrajectoryBuffer(largest, largest).nbytes == 0
    for length, capacity in [(0, 1), (1, 0), (-1, 1), (1, -1), (2**31, 1), (1, 2**63 - 1)]:
        with pytest.raises(errors.InvalidValueError, match=r"completion_length|capacity"):
            TrajectoryBuffer(length, capacity)
    full = filled(1000)
    refused(full, errors.StateError, "evict")
    assert full.evict(1) == 1000
    assert full.push(**columns(random_rows(1000, L, seed=1), L)) == 0
    wide: Any = two()
    wide["prompt_ids"] = np.full((2, 100_000), -1, np.int64)
    wide["prompt_length"] = np.zeros(2, np.int32)
    roomy = filled()
    roomy.push(**wide)
    assert roomy.max_prompt_length <= 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rewards_and_advantages_are_finite(value: float) -> None:
    buffer = filled()
    before = buffer.to_arrays()
    for name in ("reward", "advantage"):
        with pytest.raises(errors.InvalidValueError, match=rf"^{name}: got -?(NaN|inf) at row 1, needs finite"):
            getattr(buffer, f"set_{name}s")(ROWS, np.array([0.5, value], np.float32))
    assert same_arrays(before, buffer.to_arrays())


def test_numbers_outside_their_domain_name_row_and_position() -> None:
    buffer = filled()

    def at(name: str, value: float, where: tuple[int, ...]) -> Any:
        array = two()[name]
        array[where] = value
        return {name: array}

    bad = errors.InvalidValueError
    refused(buffer, bad, "token_ids: got -1 at row 1, position 2", **at("token_ids", -1, (1, 2)))
    refused(buffer, bad, "token_ids: got 4294967296", **at("token_ids", 2**32, (0, 0)))
    refused(buffer, bad, "unmask_step: got -4 at row 0, position 5", **at("unmask_step", -4, (0, 5)))
    refused(buffer, bad, "unmask_step: got 32768", **at("unmask_step", 2**15, (0, 5)))
    refused(buffer, bad, "logprob: got NaN", **at("logprob", np.nan, (1, 0)))
    refused(buffer, bad, "take the logarithm", **at("logprob", 0.25, (1, 0)))
    refused(buffer, bad, "prompt_length: got -1 at row 1", **at("prompt_length", -1, (1,)))
    refused(buffer, bad, "prompt_length: got 99 at row 0", **at("prompt_length", 99, (0,)))
    steps = np.full((2, L), -1, np.int32)
    drawn = np.full((2, L), -0.5, np.float32)
    refused(buffer, bad, "no law drew", unmask_step=steps, logprob=drawn)
    prompt = np.array([[5, -1], [5, -1]])
    length = np.array([1, 2], np.int32)
    refused(buffer, bad, "prompt_ids: got -1 at row 1", prompt_ids=prompt, prompt_length=length)


@pytest.mark.parametrize("row", [-1, 4, 2**31 - 1, -(2**31)])
def test_rows_outside_the_buffer_are_refused_everywhere(row: int) -> None:
    buffer, rows = filled(), np.array([0, row], np.int32)
    out = np.zeros((2, L), np.int64)
    calls: list[Callable[[], None]] = [
        lambda: buffer.minibatch(rows, token_ids=out),
        lambda: buffer.set_rewards(rows, np.ones(2, np.float32)),
        lambda: buffer.set_advantages(rows, np.ones(2, np.float32)),
        lambda: buffer.replay(rows, ROWS, 9, out),
        lambda: buffer.state_at(row, 0, 9, out[0]),
    ]
    for call in calls:
        with pytest.raises(errors.InvalidValueError, match=f"rows: got {row} at row"):
            call()


def test_checkpoints_are_refused_unless_whole_and_consistent() -> None:
    arrays = filled().to_arrays()
    assert same_arrays(arrays, TrajectoryBuffer.from_arrays(arrays).to_arrays())
    for name in arrays:
        with pytest.raises(errors.InvalidValueError, match=f"from_arrays: {name} is missing"):
            TrajectoryBuffer.from_arrays({k: v for k, v in arrays.items() if k != name})
    with pytest.raises(errors.StateError, match="capacity"):
        TrajectoryBuffer.from_arrays({**arrays, "capacity": np.array([3])})
    with pytest.raises(errors.InvalidValueError, match="reward: got inf"):
        TrajectoryBuffer.from_arrays({**arrays, "reward": np.full(4, np.inf, np.float32)})
    with pytest.raises(errors.InvalidValueError, match="'extra'"):
        TrajectoryBuffer.from_arrays({**arrays, "extra": ROWS})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_and_copy_give_an_equal_buffer_of_its_own(protocol: int) -> None:
    buffer = filled()
    again = pickle.loads(pickle.dumps(buffer, protocol))
    for other in (again, copy.copy(buffer), copy.deepcopy(buffer)):
        assert (other.capacity, other.completion_length) == (1000, L)
        assert same_arrays(buffer.to_arrays(), other.to_arrays())
    again.clear()
    assert len(buffer) == 4


def test_errors_are_stp_errors_and_standard_ones_and_survive_pickling() -> None:
    standard = (ValueError, TypeError, RuntimeError, ArithmeticError)
    classes = [c for c in vars(errors).values() if isinstance(c, type) and c is not errors.StpError]
    assert errors.ShapeError in classes
    for error in classes:
        assert issubclass(error, errors.StpError)
        assert issubclass(error, standard)
    with pytest.raises(errors.StpError) as caught:
        filled().set_rewards(ROWS, np.ones(3, np.float32))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([ROWS, ROWS - 5, np.zeros(()), np.zeros((2, L), np.int64), np.zeros((3, 0), np.int32)]),
    st.sampled_from([np.ones(2, np.float32), np.array([None, "a"]), np.zeros(2, bool), np.zeros(2, "V4")]),
)


@given(
    call=st.sampled_from(["set_rewards", "set_advantages", "replay", "state_at", "evict", "minibatch"]),
    args=st.lists(junk, max_size=5),
    named=st.dictionaries(st.sampled_from(sorted(OUTPUTS)), junk, max_size=3),
)
@settings(max_examples=150, deadline=None)
def test_no_argument_makes_the_core_panic(call: str, args: list[Any], named: dict[str, Any]) -> None:
    buffer = filled()
    for work in (
        lambda: getattr(buffer, call)(*args, **(named if call == "minibatch" else {})),
        lambda: buffer.push(**{**two(), **named}),
        lambda: TrajectoryBuffer.from_arrays({**buffer.to_arrays(), **named}),
        lambda: TrajectoryBuffer(*args),
    ):
        try:
            work()
        except (errors.StpError, TypeError, OverflowError) as error:
            assert not isinstance(error, errors.InternalError)  # noqa: PT017
    assert len(buffer.to_arrays()["uid"]) == len(buffer)


def test_no_global_random_state_moves() -> None:
    states: Callable[[], tuple[Any, ...]] = lambda: (  # noqa: E731
        random.getstate(),
        str(np.random.get_state()),
        torch.get_rng_state().tolist(),
    )
    before = states()
    buffer = filled(20)
    for batch in minibatches(buffer, 3, seed=1, epoch=1):
        batch.tensors()
    pickle.loads(pickle.dumps(buffer)).evict(1)
    assert states() == before


def test_eight_threads_push_and_read_whole_rows() -> None:
    threads, pushes = 8, 60
    buffer = TrajectoryBuffer(L, threads * pushes * 2)
    failures: list[BaseException] = []

    def work(me: int) -> None:
        try:
            arrays: Any = columns(random_rows(2, L, seed=me, version=me), L)
            arrays["token_ids"][:] = me
            arrays["group"][:] = me
            tokens, group = np.zeros((2, L), np.int64), np.zeros(2, np.int64)
            for _ in range(pushes):
                first = buffer.push(**arrays)
                rows = np.array([first // 2, first], np.int32)
                buffer.minibatch(rows, token_ids=tokens, group=group)
                assert (tokens == group[:, None]).all()
                assert group[1] == me
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert np.bincount(buffer.to_arrays()["group"]).tolist() == [2 * pushes] * threads
