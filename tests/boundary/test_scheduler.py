"""The scheduler, unmaskings, designs and priors at the boundary: what they refuse; nothing ends the process."""

import copy
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from stp_rs import Design, PriorSet, Unmasking, _core, errors

SLOTS, ROWS, PROMPT, LENGTH = 4, 3, 2, 5
SUBMITTED: dict[str, Any] = {
    "uids": np.arange(ROWS, dtype=np.uint64),
    "prompt_ids": np.full((ROWS, PROMPT), 5, np.int64),
    "prompt_lengths": np.full(ROWS, PROMPT, np.int32),
    "completion_lengths": np.full(ROWS, LENGTH, np.int32),
}
CALL = {"ids": "int64", "lengths": "int32", "candidates": "int32", "uniforms": "float32"}
RESULTS = {"token_ids": "int64", "unmask_step": "int32", "logprob": "float32", "nfe": "int32", "stop": "uint8"}


def made(*, submit: bool = True) -> _core.RolloutScheduler:
    scheduler = _core.RolloutScheduler(mask_token_id=1, pad_token_id=0, slots=SLOTS, seed=0)
    if submit:
        scheduler.submit(**SUBMITTED, unmasking=Unmasking(LENGTH))
    return scheduler


def call_arrays() -> dict[str, Any]:
    size = SLOTS * (PROMPT + LENGTH)
    return {name: np.zeros(SLOTS if name == "lengths" else size, dtype) for name, dtype in CALL.items()}


def result_arrays() -> dict[str, Any]:
    return {n: np.zeros((ROWS, LENGTH) if n in list(RESULTS)[:3] else ROWS, d) for n, d in RESULTS.items()}


def finished() -> _core.RolloutScheduler:
    scheduler, arrays = made(), call_arrays()
    while True:
        *_, count, _reads = scheduler.next_step(**arrays)
        if count == 0:
            return scheduler
        scheduler.commit(np.full((count, 7), 3, np.float32))


@pytest.mark.parametrize("name", SUBMITTED)
def test_submissions_of_the_wrong_kind_are_refused_and_change_nothing(name: str) -> None:
    right, scheduler = SUBMITTED[name], made()

    def refused(error: type[Exception], value: Any) -> None:
        arrays = {**SUBMITTED, name: value}
        with pytest.raises(error, match=name):
            scheduler.submit(**arrays, unmasking=Unmasking(LENGTH))
        assert len(scheduler) == ROWS

    refused(errors.DtypeError, right.astype("float64"))
    refused(errors.DtypeError, right.tolist())
    refused(errors.LayoutError, np.repeat(right, 2, axis=0)[::2])
    if name != "uids":
        refused(errors.ShapeError, right[:1])


@pytest.mark.parametrize("value", [-1, 99])
def test_lengths_outside_their_arrays_are_refused(value: int) -> None:
    wrong = np.array([PROMPT, value, PROMPT], np.int32)
    with pytest.raises(errors.InvalidValueError, match="lengths"):
        made().submit(**{**SUBMITTED, "prompt_lengths": wrong}, unmasking=Unmasking(LENGTH))


@pytest.mark.parametrize("name", CALL)
def test_the_arrays_of_a_call_are_checked_before_anything_is_written(name: str) -> None:
    scheduler = made()
    arrays = call_arrays()
    frozen = arrays[name].copy()
    frozen.flags.writeable = False
    wrong: list[tuple[type[Exception], Any]] = [
        (errors.DtypeError, arrays[name].astype("complex64")),
        (errors.LayoutError, np.zeros(2 * len(arrays[name]), arrays[name].dtype)[::2]),
        (errors.AliasError, frozen),
        (errors.ShapeError, arrays[name][:1]),
    ]
    for error, value in wrong:
        with pytest.raises(error, match=name):
            scheduler.next_step(**{**arrays, name: value})
    rows, width, count, _ = scheduler.next_step(**arrays)
    assert (rows, width, count) == (1, PROMPT + LENGTH, ROWS * LENGTH), "equal rows share their first forward"


def test_one_array_is_not_written_as_two() -> None:
    scheduler, arrays = made(), call_arrays()
    with pytest.raises(errors.AliasError, match="used twice"):
        scheduler.next_step(**{**arrays, "candidates": arrays["lengths"]})


@pytest.mark.parametrize("name", RESULTS)
def test_the_arrays_of_results_are_checked(name: str) -> None:
    scheduler, arrays = finished(), result_arrays()
    for error, value in (
        (errors.DtypeError, arrays[name].astype("complex64")),
        (errors.ShapeError, arrays[name][:1]),
        (errors.LayoutError, np.repeat(arrays[name], 2, axis=0)[::2]),
    ):
        with pytest.raises(error, match=name):
            scheduler.results(**{**arrays, name: value})
    scheduler.results(**arrays)
    assert (arrays["token_ids"] == 3).all()


def test_numbers_of_the_wrong_kind_are_refused_and_the_step_stays_pending() -> None:
    scheduler = made()
    *_, count, _reads = scheduler.next_step(**call_arrays())
    wrong: list[tuple[type[Exception], Any]] = [
        (errors.DtypeError, np.zeros((count, 7))),
        (errors.ShapeError, np.zeros((count, 6), np.float32)),
        (errors.ShapeError, np.zeros((count - 1, 7), np.float32)),
        (errors.LayoutError, np.zeros((count, 14), np.float32)[:, ::2]),
        (errors.InvalidValueError, np.full((count, 7), np.nan, np.float32)),
    ]
    for error, packed in wrong:
        with pytest.raises(error, match="packed"):
            scheduler.commit(packed)
    scheduler.commit(np.full((count, 7), 3, np.float32))


def test_nothing_submitted_and_nothing_to_decode_need_no_forward() -> None:
    empty = made(submit=False)
    assert empty.next_step(**call_arrays())[0] == 0
    zero = {name: array[:0] for name, array in SUBMITTED.items()}
    empty.submit(**zero, unmasking=Unmasking(LENGTH))
    assert (len(empty), empty.capacity(), empty.unfinished) == (0, (0, 0), 0)
    scheduler = made(submit=False)
    lengths = np.zeros(ROWS, np.int32)
    scheduler.submit(**{**SUBMITTED, "completion_lengths": lengths}, unmasking=Unmasking(LENGTH))
    assert scheduler.next_step(**call_arrays())[0] == 0


def test_sizes_that_no_memory_holds_are_errors_and_not_the_end_of_the_process() -> None:
    huge = 2**40
    for call, match in (
        (lambda: _core.plan_counts(huge, huge), "at most 1048576"),
        (lambda: _core.plan_counts(5, huge, "dream"), "at most 1048576"),
        (lambda: Unmasking(huge), "diffusion_steps"),
        (lambda: PriorSet.empty(huge), "rows"),
        (lambda: PriorSet.empty(2).row(2), "row: got 2"),
        (lambda: PriorSet.empty(2).select([2]), "2"),
    ):
        with pytest.raises(errors.InvalidValueError, match=match):
            call()
    long = np.full(ROWS, 2**31 - 1, np.int32)
    with pytest.raises(errors.InvalidValueError, match="completion_length: got 2147483647, needs at most 32767"):
        made().submit(**{**SUBMITTED, "completion_lengths": long}, unmasking=Unmasking(LENGTH))
    assert _core.RolloutScheduler(mask_token_id=1, pad_token_id=0, slots=2**62, seed=0).capacity() == (0, 0)


def test_samplers_and_designs_are_pickled_and_copied() -> None:
    unmasking = Unmasking(
        9, block_length=4, quota="dream", selection="threshold:0.5:2", temporal="steps:0.5", eos="last"
    )
    free = np.ones(8, np.uint8)
    free[2] = 0
    plain = Unmasking(4, block_length=4, max_nfe=3)
    for again in (pickle.loads(pickle.dumps(unmasking)), copy.copy(unmasking), copy.deepcopy(unmasking)):
        assert repr(again) == repr(unmasking)
    assert pickle.loads(pickle.dumps(plain)).plan(free) == plain.plan(free)
    design = Design("bernoulli", 3, truncate=(0.1, 0.9))
    again = pickle.loads(pickle.dumps(design))
    assert again.__getnewargs_ex__() == design.__getnewargs_ex__()
    assert (again.name, again.num_mc) == ("bernoulli", 3)
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(made())


def test_threads_that_share_a_scheduler_get_errors_and_no_broken_rows() -> None:
    """Each call is whole: a thread meets a pending step, or numbers that are not its own, and tries again."""
    scheduler, failures = made(), []

    def work() -> None:
        arrays = call_arrays()
        try:
            while scheduler.unfinished:
                try:
                    *_, count, _reads = scheduler.next_step(**arrays)
                    scheduler.commit(np.full((count, 7), 3, np.float32))
                except errors.StateError:
                    continue
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    arrays = result_arrays()
    scheduler.results(**arrays)
    assert (arrays["token_ids"] == 3).all()
    assert (np.sort(arrays["unmask_step"], axis=1) == np.arange(LENGTH)).all()
