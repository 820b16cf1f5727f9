"""The Python face of the designs: arguments, errors and examples worked by hand."""

import numpy as np
import pytest

from stp_rs import errors
from stp_rs._core import Design


def call(design: Design, eligible: np.ndarray, counts: np.ndarray, **change: object) -> tuple[np.ndarray, ...]:
    """Draw into fresh arrays; `change` replaces arguments."""
    rows, length = eligible.shape
    total = int(design.passes(eligible, counts).sum())
    given = {
        "eligible": eligible,
        "unmask_counts": counts,
        "unmask_step": np.where(eligible == 1, 0, -1).astype(np.int32),
        "seed": 1,
        "uids": np.arange(rows, dtype=np.uint64),
        "iteration": 0,
        "mask": np.zeros((total, length), np.uint8),
        "weight": np.zeros((total, length), np.float32),
        "row": np.zeros(total, np.int32),
        **change,
    }
    design.draw(**given)
    return given["mask"], given["weight"], given["row"]


@pytest.fixture
def batch():
    """Three rows of length 4: all free, two free, none free."""
    eligible = np.array([[1, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], np.uint8)
    counts = np.array([[4, 3, 1], [2, 1, 0], [0, 0, 0]], np.int32)
    return eligible, counts


def test_rows_keep_their_order_and_a_row_without_free_positions_has_no_pass(batch):
    design = Design("cover", 3)
    assert design.passes(*batch).tolist() == [3, 3, 0]
    mask, weight, row = call(design, *batch)
    assert row.tolist() == [0, 0, 0, 1, 1, 1]
    assert (mask <= batch[0][row]).all()
    assert ((weight > 0) == (mask == 1)).all()
    assert np.allclose([weight[row == r].sum() for r in range(3)], [4, 2, 0])


def test_what_a_design_says_about_itself():
    cover, counts = Design("cover"), Design("uniform_count", 4)
    assert (cover.name, cover.num_mc, cover.published, cover.unbiased, cover.target) == (
        "cover", 2, False, True, "plan_elbo",
    )  # fmt: skip
    assert counts.published
    assert repr(counts) == 'Design("uniform_count", num_mc=4)'
    names = dict(Design.names())
    assert {"cover", "uniform_count", "systematic"} <= names.keys()
    assert all(names.values())


def test_wrong_arguments_are_typed_errors(batch):
    eligible, counts = batch
    design = Design("cover", 2)
    with pytest.raises(errors.InvalidValueError, match="needs one of"):
        Design("coverr")
    with pytest.raises(errors.InvalidValueError, match="num_mc"):
        Design("cover", 0)
    with pytest.raises(errors.DtypeError, match="eligible"):
        design.passes(eligible.astype(bool), counts)
    with pytest.raises(errors.ShapeError, match="unmask_counts"):
        design.passes(eligible, counts[:2])
    with pytest.raises(errors.InvalidValueError, match="0 or 1"):
        design.passes(eligible * 2, counts)
    with pytest.raises(errors.DesignError, match=r"row 0.*start at 4"):
        design.passes(eligible, counts + 1)
    with pytest.raises(errors.ShapeError, match="sum of passes"):
        call(
            design,
            *batch,
            mask=np.zeros((3, 4), np.uint8),
            weight=np.zeros((3, 4), np.float32),
            row=np.zeros(3, np.int32),
        )
    with pytest.raises(errors.ShapeError, match="row"):
        call(
            design,
            *batch,
            mask=np.zeros((9, 4), np.uint8),
            weight=np.zeros((9, 4), np.float32),
            row=np.zeros(9, np.int32),
        )
    with pytest.raises(errors.ShapeError, match="weight"):
        call(design, *batch, weight=np.zeros((2, 4), np.float32))
    with pytest.raises(errors.InvalidValueError, match="iteration"):
        call(design, *batch, iteration=70_000)
    with pytest.raises(errors.InvalidValueError, match="paths"):
        design.law(
            np.ones((1, 12), np.uint8),
            np.arange(12, 0, -1, dtype=np.int32)[None],
            np.zeros((1, 12), np.int32),
            10,
        )


def test_one_token_has_one_mask():
    mask, weight, _ = call(Design("cover", 2), np.array([[0, 1]], np.uint8), np.array([[1]], np.int32))
    assert mask.tolist() == [[0, 1], [0, 1]]
    assert weight.tolist() == [[0, 0.5], [0, 0.5]]
