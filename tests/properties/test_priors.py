"""The laws of spatial priors: composition is union, conflicts are errors, anchors are what the selector says."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stp_rs._core import PriorSet, choose_anchors
from stp_rs.errors import InvalidValueError, PriorConflictError, ShapeError
from tests.oracles import rollout as oracle

SELECTORS = ("top_confidence", "random", "prefix", "span")


def dense(prior: PriorSet, length: int) -> np.ndarray:
    out = np.full((len(prior), length), 99, np.int64)
    prior.fill(out)
    return out


batches = st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(
        arrays(np.int64, shape[:2], elements=st.sampled_from([-1, -1, -1, 7, 8])), min_size=shape[2], max_size=shape[2]
    )
)


@settings(deadline=None)
@given(batches)
def test_composition_is_the_union_or_a_conflict(priors: list[np.ndarray]):
    expected = oracle.compose(priors)
    combined = PriorSet.empty(len(priors[0]))
    try:
        for prior in priors:
            combined = combined.compose(PriorSet.from_dense(prior))
    except PriorConflictError:
        assert expected is None
        return
    assert expected is not None
    assert dense(combined, priors[0].shape[1]).tolist() == expected.tolist()
    assert combined.num_anchors == (expected >= 0).sum()
    assert combined.compose(combined) == combined
    assert combined.compose(PriorSet.empty(len(combined))) == combined


@settings(deadline=None)
@given(batches, st.data())
def test_rows_are_picked_in_any_order_with_repeats(priors: list[np.ndarray], data: st.DataObject):
    rows = data.draw(st.lists(st.integers(0, len(priors[0]) - 1), max_size=8)) if len(priors[0]) else []
    chosen = PriorSet.from_dense(priors[0]).select(rows)
    assert dense(chosen, priors[0].shape[1]).tolist() == [priors[0][r].tolist() for r in rows]


@settings(deadline=None)
@given(batches, st.integers(0, 2**32))
def test_anchors_can_be_left_out_by_position(priors: list[np.ndarray], seed: int):
    keep = np.random.default_rng(seed).integers(0, 3, priors[0].shape, dtype=np.uint8)
    kept = PriorSet.from_dense(priors[0], "copy").restrict(keep)
    assert dense(kept, priors[0].shape[1]).tolist() == np.where(keep > 0, priors[0], -1).tolist()
    assert {source for row in range(len(kept)) for _, _, source in kept.row(row)} <= {"copy"}
    with pytest.raises(ShapeError, match="keep"):
        kept.restrict(np.ones((len(kept) + 1, 2), np.uint8))


def test_the_first_source_keeps_its_name_and_a_conflict_says_where():
    template = PriorSet.from_dense(np.array([[5, -1, 6]]), "template")
    copied = PriorSet.from_dense(np.array([[5, 4, -1]]), "copy")
    assert template.compose(copied).row(0) == [(0, 5, "template"), (1, 4, "copy"), (2, 6, "template")]
    with pytest.raises(PriorConflictError, match=r"row 0.*2.*6.*9"):
        template.compose(PriorSet.from_dense(np.array([[-1, -1, 9]])))
    with pytest.raises(ShapeError, match="rows"):
        template.compose(PriorSet.empty(2))
    with pytest.raises(InvalidValueError, match="needs one of custom"):
        PriorSet.from_dense(np.array([[1]]), "guess")


scores = st.one_of(st.sampled_from([-3.0, -1.0, -1.0, -0.0, 0.0]), st.sampled_from([np.nan, -np.inf]))


cells_ = st.integers(0, 24).flatmap(
    lambda n: st.lists(st.tuples(scores, st.sampled_from([0, 1, 1])), min_size=n, max_size=n)
)


@pytest.mark.parametrize("selector", SELECTORS)
@settings(deadline=None, max_examples=60)
@example(0.5, [(-0.0, 1), (0.0, 1)], 0, 0)
@given(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.05, 0.5, 1.0])),
    cells_,
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)
def test_anchors_are_the_oracles(selector: str, share: float, cells: list[tuple[float, int]], seed: int, uid: int):
    confidence = np.array([[c for c, _ in cells]], np.float32).reshape(1, -1)
    eligible = np.array([[e for _, e in cells]], np.uint8).reshape(1, -1)
    keep = np.full_like(eligible, 9)
    choose_anchors(
        selector,
        share,
        confidence=confidence,
        eligible=eligible,
        seed=seed,
        uids=np.array([uid], np.uint64),
        keep=keep,
    )
    stream = oracle.Stream(seed, uid, oracle.PRIOR_LANE)
    assert keep[0].tolist() == oracle.choose_anchors(
        selector, share, confidence[0].tolist(), eligible[0].tolist(), stream
    )
    assert not (keep[0] & ~eligible[0] & 1).any(), "only eligible positions"


def test_random_anchors_depend_on_the_row_and_its_key_alone():
    eligible, confidence = np.ones((3, 40), np.uint8), np.zeros((3, 40), np.float32)

    def draw(uids: list[int], seed: int = 1) -> list[list[int]]:
        rows = len(uids)
        keep = np.zeros((rows, 40), np.uint8)
        choose_anchors(
            "random",
            0.5,
            confidence=confidence[:rows],
            eligible=eligible[:rows],
            seed=seed,
            uids=np.array(uids, np.uint64),
            keep=keep,
        )
        return keep.tolist()

    a, b, c = draw([1, 2, 3])
    assert draw([3, 1]) == [c, a]
    assert len({tuple(x) for x in (a, b, c, draw([1], seed=2)[0])}) == 4
