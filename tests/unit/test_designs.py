"""The Python face of the designs: arguments, errors and examples worked by hand."""

from pathlib import Path

import numpy as np
import pytest

from stp_rs import errors
from stp_rs._core import Design, prompt_mask


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
    assert not Design("coupled", 3, truncate=(0.2, 0.8)).unbiased


# (target, unbiased, published, per token, reads the plan)
WHAT_THEY_ARE = {
    "mean_field": ("one_step", False, True, False, False),
    "bernoulli": ("full_elbo", True, True, False, False),
    "uniform_count": ("plan_elbo", True, True, False, True),
    "systematic": ("plan_elbo", True, True, False, True),
    "quadrature": ("plan_elbo", False, True, False, True),
    "coupled": ("full_elbo", True, True, False, False),
    "unigrpo": ("published", False, True, True, True),
    "stp_paper": ("published", False, True, True, False),
    "trajectory": ("trajectory", True, True, False, True),
    "step_merge": ("trajectory", False, True, False, True),
    "state": ("states", False, False, True, True),
    "canvas": ("states", False, False, True, True),
    "decision": ("trajectory", True, False, False, True),
    "top_states": ("states", False, True, True, True),
    "autoregressive": ("autoregressive", True, True, False, False),
    "block_random": ("published", False, True, True, False),
    "cover": ("plan_elbo", True, False, False, True),
    "spread": ("plan_elbo", True, False, False, True),
    "pairs": ("plan_elbo", True, False, False, True),
    "sink": ("plan_elbo", True, False, False, True),
    "balanced": ("plan_elbo", True, False, False, True),
    "ordered": ("plan_elbo", True, False, False, True),
}


def test_the_list_of_designs_is_the_documented_one():
    names = dict(Design.names())
    assert names.keys() == WHAT_THEY_ARE.keys()
    assert all(names.values())
    for name, want in WHAT_THEY_ARE.items():
        d = Design(name, block_length=4)
        assert (d.target, d.unbiased, d.published, d.per_token, d.reads_plan) == want, name
    page = (Path(__file__).parents[2] / "docs" / "designs.md").read_text(encoding="utf-8")
    rows = {line.strip("|* ").split("`")[1] for line in page.splitlines() if line.startswith(("| `", "| **`"))}
    assert rows >= names.keys()


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
    plan = np.arange(12, 0, -1, dtype=np.int32)[None]
    wide = (np.ones((1, 12), np.uint8), plan, np.zeros((1, 12), np.int32))
    with pytest.raises(errors.InvalidValueError, match="paths"):
        design.law(*wide, limit=10)


def test_one_token_has_one_mask():
    mask, weight, _ = call(Design("cover", 2), np.array([[0, 1]], np.uint8), np.array([[1]], np.int32))
    assert mask.tolist() == [[0, 1], [0, 1]]
    assert weight.tolist() == [[0, 0.5], [0, 0.5]]


def test_balanced_names_the_smallest_legal_change():
    eligible = np.ones((1, 8), np.uint8)
    counts = np.array([[8, 5, 3, 1]], np.int32)
    with pytest.raises(errors.DesignError, match=r"at least 4: .* l\* = 5, or use num_mc = 5"):
        Design("balanced", 2).passes(eligible, counts)
    assert Design("balanced", 5).passes(eligible, counts).tolist() == [5]
    assert Design("balanced", 2).passes(eligible, np.array([[8, 5]], np.int32)).tolist() == [2]


def test_passes_of_designs_that_set_them_themselves():
    eligible, counts = np.ones((1, 8), np.uint8), np.array([[8, 5, 3, 1, 0]], np.int32)
    passes = {name: Design(name, 2).passes(eligible, counts).tolist() for name in ("mean_field", "ordered")}
    assert passes == {"mean_field": [1], "ordered": [4]}
    assert Design("autoregressive").passes(eligible, counts).tolist() == [8]
    for num_mc, want in ((0, 4), (3, 3), (9, 4)):
        assert Design("trajectory", num_mc).passes(eligible, counts).tolist() == [want]
    assert Design("balanced", 20).passes(eligible, counts).tolist() == [8]


def test_designs_that_ignore_the_plan_take_any():
    eligible = np.array([[1, 1, 0, 1]], np.uint8)
    for counts in (np.zeros((1, 0), np.int32), np.array([[9, 9]], np.int32)):
        assert Design("coupled", 2).passes(eligible, counts).tolist() == [2]


def test_prompt_masks_are_keyed_and_spare_padding():
    prompt = np.ones((2, 400), np.uint8)
    prompt[0, :100] = 0
    row = np.array([0, 0, 1], np.int32)
    uids = np.array([4, 9], np.uint64)
    masks = [np.full((3, 400), 7, np.uint8) for _ in range(3)]
    for mask, iteration in zip(masks, (0, 0, 1), strict=True):
        prompt_mask(prompt, 0.15, 3, uids, iteration, row, mask)
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()
    assert (masks[0][0] != masks[0][1]).any()
    assert masks[0][:2, :100].sum() == 0
    assert 0.1 < masks[0][2].mean() < 0.2
    alone = np.empty((1, 400), np.uint8)
    prompt_mask(prompt[1:], 0.15, 3, uids[1:], 0, np.zeros(1, np.int32), alone)
    assert (alone[0] == masks[0][2]).all()
    with pytest.raises(errors.InvalidValueError, match="ratio"):
        prompt_mask(prompt, 1.5, 3, uids, 0, row, masks[0])
    with pytest.raises(errors.ShapeError, match="uids"):
        prompt_mask(prompt, 0.5, 3, uids[:1], 0, row, masks[0])
