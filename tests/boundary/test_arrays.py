"""The arrays layer: what Python may hand to Rust, and what it hears when it may not."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import errors
from stp_rs._core import scored_counts
from stp_rs.types import Mark

STEPS = np.array([[0, 1, Mark.PRIOR], [0, 0, Mark.OUTSIDE]], np.int32)


def call(steps: Any = STEPS, out: Any = None) -> Any:
    out = np.zeros((2, 3), np.int32) if out is None else out
    scored_counts(steps, out, score_prior=False, diffusion_steps=3)
    return out


def test_the_right_arrays_are_read_and_written() -> None:
    assert call().tolist() == [[2, 1, 0], [2, 0, 0]]


def test_dtype_shape_and_layout_name_argument_got_need_and_fix() -> None:
    text = r'^unmask_step: got dtype float64, needs int32; use unmask_step\.astype\("int32"\)$'
    with pytest.raises(errors.DtypeError, match=text):
        call(STEPS.astype(np.float64))
    with pytest.raises(errors.DtypeError, match="unmask_step: got dtype"):
        call(STEPS.astype(STEPS.dtype.newbyteorder()))
    with pytest.raises(errors.DtypeError, match="got a list, needs a numpy array"):
        call(STEPS.tolist())
    with pytest.raises(errors.ShapeError, match=r"out: got shape \[3, 3\], needs \[2, 3\]"):
        call(out=np.zeros((3, 3), np.int32))
    for strided in (np.zeros((2, 6), np.int32)[:, ::2], np.zeros((3, 2), np.int32).T, STEPS[:, ::-1]):
        with pytest.raises(errors.LayoutError, match="not C-contiguous"):
            call(strided)


def test_outputs_are_writable_and_never_an_input_of_the_same_call() -> None:
    frozen = np.zeros((2, 3), np.int32)
    frozen.flags.writeable = False
    with pytest.raises(errors.AliasError, match="out: the array is read-only"):
        call(out=frozen)
    assert call(frozen).tolist() == [[3, 0, 0]] * 2, "what is only read may be frozen"
    own = STEPS.copy()
    with pytest.raises(errors.AliasError):
        call(own, own)
    assert (own == STEPS).all()


junk = st.one_of(
    st.none(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([STEPS, STEPS[:, :0], np.zeros(()), np.zeros((2, 3), np.int64), np.array([None, "a"])]),
    st.sampled_from([np.zeros((2, 3), bool), np.zeros((2, 3), "V4")]),
)


@given(junk, junk)
@settings(max_examples=150, deadline=None)
def test_no_argument_makes_the_core_panic(steps: Any, out: Any) -> None:
    try:
        call(steps, out)
    except (errors.StpError, TypeError, OverflowError) as error:
        assert not isinstance(error, errors.InternalError)  # noqa: PT017


def test_errors_are_stp_errors_and_standard_ones_and_survive_pickling() -> None:
    standard = (ValueError, TypeError, RuntimeError, ArithmeticError, OSError)
    exceptions = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    classes = [c for c in exceptions if c is not errors.StpError]
    assert errors.ShapeError in classes
    for error in classes:
        assert issubclass(error, errors.StpError)
        assert issubclass(error, standard)
    with pytest.raises(errors.StpError) as caught:
        call(STEPS.tolist())
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_no_global_random_state_moves() -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = states()
    call()
    assert states() == before
