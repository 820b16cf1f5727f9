"""The laws of the likelihood: any design's weighted masks, whatever shares their batch, are the slow loop's number."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from stp_rs import Design
from stp_rs._core import scored_counts
from stp_rs.errors import DesignError, InvalidValueError
from stp_rs.models import base as model_base
from stp_rs.objective.likelihood import token_elbo
from stp_rs.objective.masks import Masks, draw_masks
from stp_rs.types import Mark
from tests.fixtures import Tabular, tiny
from tests.oracles import loss as oracle

VOCAB, LENGTH, PROMPT = 7, 5, 4
NAMES = [name for name, _ in Design.names() if name != "block_random"]  # which needs blocks
PLANNED = st.sampled_from(["cover", "systematic", "uniform_count"])


def draw_any(name: str, num_mc: int, rows: Any, **options: Any) -> Masks:
    """Return a design's masks; rows or options that it refuses are none of these tests' business."""
    try:
        return draw_masks(Design(name, num_mc), rows, **options)
    except (DesignError, InvalidValueError):
        reject()


@st.composite
def completions(draw: st.DrawFn, vocab: int = VOCAB) -> SimpleNamespace:
    """Draw ragged prompts and completions with priors; garbage stands where nothing should be read."""
    rows = draw(st.integers(1, 4))
    prompt_length = draw(st.lists(st.integers(1, PROMPT), min_size=rows, max_size=rows))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    unmask_step = np.full((rows, LENGTH), -2, np.int32)
    for row in range(rows):
        length = draw(st.integers(0, LENGTH))
        steps = draw(st.lists(st.integers(-1, 3), min_size=length, max_size=length))
        order = {step: place for place, step in enumerate(sorted({s for s in steps if s >= 0}))}
        unmask_step[row, :length] = [order.get(s, -1) for s in steps]
    return SimpleNamespace(
        prompt_ids=generator.integers(2, vocab, (rows, PROMPT)),
        prompt_length=np.array(prompt_length, np.int32),
        token_ids=generator.integers(2, vocab, (rows, LENGTH)),
        unmask_step=unmask_step,
        uid=np.arange(rows, dtype=np.uint64),
    )


def model() -> Tabular:
    return Tabular(vocab=VOCAB, width=PROMPT + LENGTH, seed=5)


def values_and_gradients(estimate: torch.Tensor, policy: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the estimate and the gradients of an uneven function of it."""
    scale = torch.linspace(0.5, 2.0, estimate.numel()).view_as(estimate)
    parameters = list(policy.module.parameters())
    gradients = torch.autograd.grad((estimate * scale).sum(), parameters, allow_unused=True, materialize_grads=True)
    return estimate.detach(), list(gradients)


def assert_same(left: torch.Tensor, right: torch.Tensor, policy: Any, tolerance: float = 1e-5) -> None:
    """Hold two estimates to each other in value and in gradient; the right one may have none."""
    if not right.requires_grad:  # the slow loop found nothing to score
        assert not left.detach().any()
        left.sum().backward()
        assert all(p.grad is None for p in policy.module.parameters())
        return
    (a, da), (b, db) = values_and_gradients(left, policy), values_and_gradients(right, policy)
    assert torch.allclose(a, b, atol=tolerance, rtol=tolerance)
    for x, y in zip(da, db, strict=True):
        assert torch.allclose(x, y, atol=10 * tolerance, rtol=10 * tolerance)


def shares_canvases(rows: SimpleNamespace, masks: Masks) -> bool:
    """Whether two passes show the model the same."""
    shown_PL = np.where(masks.mask_PL == 1, -1, rows.token_ids[masks.row_P])
    inside_PL = np.arange(shown_PL.shape[1]) < masks.length_R[masks.row_P, None]
    canvases = [
        (tuple(rows.prompt_ids[row, : rows.prompt_length[row]]), tuple(shown[inside]))
        for row, shown, inside in zip(masks.row_P, shown_PL, inside_PL, strict=True)
    ]
    return len(set(canvases)) < len(canvases)


@pytest.mark.parametrize("design", NAMES)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    completions(),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([1.0, 0.0, 0.6]),
    st.integers(0, 5),
    st.sampled_from([0, 1]),
)
def test_the_estimate_and_its_gradient_are_the_slow_loops(
    design: str,
    rows: SimpleNamespace,
    num_mc: int,
    score_prior: bool,
    temperature: float,
    batch: int,
    shift: int,
):
    policy = model()
    policy.logit_shift = shift
    masks = draw_any(design, num_mc, rows, seed=3, score_prior=score_prior, diffusion_steps=3)
    fast = token_elbo(policy, rows, masks, temperature=temperature, forward_batch_size=batch)
    scored = int((masks.weight_PL != 0).sum())
    assert policy.head_rows == scored or (policy.head_rows < scored and shares_canvases(rows, masks)), (
        "logits of scored positions and of no others"
    )
    assert_same(fast, oracle.token_elbo(policy, rows, masks, temperature), policy)


@settings(deadline=None, max_examples=40)
@given(completions(), st.integers(1, 6), st.integers(0, 2**32), st.integers(0, 3))
def test_any_weighted_masks_are_the_slow_loop(rows: SimpleNamespace, passes: int, seed: int, batch: int):
    """Not only those of today's designs: any order of rows, negative weights, masked tokens that are not scored."""
    generator = np.random.default_rng(seed)
    row_P = generator.integers(0, len(rows.uid), passes).astype(np.int32)
    inside = rows.unmask_step != Mark.OUTSIDE
    mask_PL = (generator.random((passes, LENGTH)) < 0.6) & inside[row_P]
    weight_PL = np.where(mask_PL & (generator.random((passes, LENGTH)) < 0.7), generator.normal(size=mask_PL.shape), 0)
    masks = Masks(
        mask_PL=mask_PL.astype(np.uint8),
        weight_PL=weight_PL.astype(np.float32),
        row_P=row_P,
        scored_RL=inside.astype(np.uint8),
        length_R=inside.sum(1, dtype=np.int32),
    )
    policy = model()
    fast = token_elbo(policy, rows, masks, forward_batch_size=batch)
    assert_same(fast, oracle.token_elbo(policy, rows, masks), policy)


@settings(deadline=None, max_examples=40)
@given(completions(), PLANNED, st.integers(1, 3), st.integers(1, 9))
def test_a_chunked_head_is_the_whole_head(rows: SimpleNamespace, design: str, num_mc: int, chunk: int):
    policy = model()
    policy.module.config = SimpleNamespace(vocab_size=VOCAB)
    masks = draw_masks(Design(design, num_mc), rows, seed=3)
    whole = token_elbo(policy, rows, masks)
    largest = 0
    head = policy.head

    def watched(hidden_NH: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, len(hidden_NH))
        return head(hidden_NH)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_base, "HEAD_ELEMENTS", chunk * VOCAB)
        patch.setattr(policy, "head", watched)
        assert_same(token_elbo(policy, rows, masks), whole, policy, tolerance=1e-6)
    assert largest <= chunk


@settings(deadline=None, max_examples=40)
@given(completions(), PLANNED, st.integers(1, 3), st.booleans(), st.integers(0, 3))
def test_masks_cover_what_is_scored_and_a_row_keeps_its_own(
    rows: SimpleNamespace, design: str, num_mc: int, score_prior: bool, iteration: int
):
    def draw(given: SimpleNamespace) -> Masks:
        return draw_masks(
            Design(design, num_mc),
            given,
            seed=9,
            iteration=iteration,
            score_prior=score_prior,
            diffusion_steps=4,
        )

    masks = draw(rows)
    assert masks.scored_RL.tolist() == (rows.unmask_step >= (Mark.PRIOR if score_prior else 0)).tolist()
    assert masks.length_R.tolist() == (rows.unmask_step != Mark.OUTSIDE).sum(1).tolist()
    counts = np.zeros_like(rows.unmask_step)
    scored_counts(rows.unmask_step, counts, score_prior=score_prior, diffusion_steps=4)
    for k, row in enumerate(masks.row_P.tolist()):
        assert not (masks.mask_PL[k] & (1 - masks.scored_RL[row])).any()
        assert masks.mask_PL[k].sum() in set(counts[row].tolist()) - {0}, "only states of the row's plan"
    for row in range(len(rows.uid)):
        alone = draw(SimpleNamespace(**{name: value[row : row + 1] for name, value in vars(rows).items()}))
        assert alone.mask_PL.tolist() == masks.mask_PL[masks.row_P == row].tolist()
        assert alone.weight_PL.tolist() == masks.weight_PL[masks.row_P == row].tolist()


def test_rows_without_free_tokens_cost_nothing_and_score_zero():
    rows = SimpleNamespace(
        prompt_ids=np.full((2, 1), 3),
        prompt_length=np.ones(2, np.int32),
        token_ids=np.full((2, LENGTH), 4),
        unmask_step=np.array([[-1] * LENGTH, [-1, -1, -2, -2, -2]], np.int32),
        uid=np.arange(2, dtype=np.uint64),
    )
    policy = model()
    policy.hidden = None  # would raise
    masks = draw_masks(Design("cover", 2), rows, seed=0)
    assert len(masks.row_P) == 0
    estimate = token_elbo(policy, rows, masks)
    assert estimate.tolist() == [[0.0] * LENGTH] * 2
    estimate.sum().backward()
    with torch.no_grad():
        assert not token_elbo(policy, rows, masks).requires_grad


def test_the_tiny_policy_in_a_ragged_batch_is_the_slow_loop():
    policy = tiny(layers=2)
    policy.module.eval()
    rows = ragged()
    masks = draw_masks(Design("cover", 3), rows, seed=1, score_prior=True, diffusion_steps=2)
    fast = token_elbo(policy, rows, masks, forward_batch_size=4)
    assert_same(fast, oracle.token_elbo(policy, rows, masks), policy, tolerance=1e-4)


def ragged() -> SimpleNamespace:
    generator = np.random.default_rng(0)
    steps = np.array([[0, 1, 2, 0, 1], [-1, 0, -1, 1, -2], [0, -2, -2, -2, -2]], np.int32)
    return SimpleNamespace(
        prompt_ids=generator.integers(2, 10, (3, PROMPT)),
        prompt_length=np.array([2, 4, 1], np.int32),
        token_ids=generator.integers(2, 10, (3, LENGTH)),
        unmask_step=steps,
        uid=np.arange(3, dtype=np.uint64),
    )
