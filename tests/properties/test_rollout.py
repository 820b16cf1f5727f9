"""The laws of the rollout scheduler: it is the slow one-row decoder, whatever shares its batch."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs._core import PriorSet, RolloutScheduler, Unmasking
from stp_rs.types import Mark
from tests.oracles import rollout as oracle
from tests.oracles.rollout import Trajectory
from tests.oracles.schedule import QUOTAS, Options, plan

PAD, MASK, VOCAB = 0, 1, 5
STOPS = (oracle.PLAN, oracle.TEMPORAL, oracle.MAX_NFE, oracle.NOTHING)


@dataclass(frozen=True)
class Job:
    """One row to decode."""

    uid: int
    prompt: list[int]
    prior: dict[int, int]
    length: int


def numbers(canvas: Sequence[int], index: int, uniform: float) -> list[float]:
    """Return scores that read the whole canvas, with ties, zero probabilities and now and then a NaN."""
    crc = zlib.crc32(bytes([*(c % 256 for c in canvas), index]))
    pick = [(crc >> shift) % 8 for shift in (0, 3, 6, 9, 12, 15)]
    top1 = math.log([0.3, 0.5, 0.5, 0.72, 0.72, 0.93, 0.96, 0.999][pick[0]])
    top2 = top1 - [0.0, 0.4, 0.8, 1.2, 1.7, 2.4, 3.1, 5.0][pick[1]]
    entropy = [0.01, 0.05, 0.05, 0.2, 0.4, 0.8, 1.1, 1.4][pick[2]]
    sampled = top1 - [0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 3.0, 7.0][pick[3]]
    scores = [2 + int(uniform * 3), -0.5 * pick[4] - uniform, top1, top2, entropy, sampled, 2 + pick[5] % 3]
    if crc % 89 == 0:
        scores[3] = -math.inf
    if crc % 97 == 0:
        scores[2:6] = [math.nan] * 4
    return [float(np.float32(x)) for x in scores]


def drive(jobs: Sequence[Job], options: Options, *, slots: int, seed: int, share_first: bool) -> tuple:
    """Return (trajectories, stats, plans) of the Rust scheduler, with the numbers above in place of a model."""
    unmasking = Unmasking(**vars(options))
    scheduler = RolloutScheduler(mask_token_id=MASK, pad_token_id=PAD, slots=slots, seed=seed, share_first=share_first)
    for job in jobs:  # one by one: lengths differ
        dense = np.full((1, max(job.length, 1)), -1, np.int64)
        for position, token in job.prior.items():
            dense[0, position] = token
        prompt = np.array([[*job.prompt, PAD]], np.int64)
        lengths = np.array([len(job.prompt)], np.int32), np.array([job.length], np.int32)
        scheduler.submit(np.array([job.uid], np.uint64), prompt, *lengths, unmasking, PriorSet.from_dense(dense))
    tokens, positions = scheduler.capacity()
    ids, lengths = np.empty(tokens, np.int64), np.empty(slots, np.int32)
    at, uniforms = np.empty(positions, np.int32), np.empty(positions, np.float32)
    calls = 0
    while True:
        rows, width, count, reads = scheduler.next_step(ids, lengths, at, uniforms)
        if rows == 0:
            break
        calls += 1
        assert rows <= slots
        canvas = ids[: rows * width].reshape(rows, width)
        packed = np.empty((count, 7), np.float32)
        for i in range(count):
            row, column = divmod(int(at[i]), width)
            assert canvas[row, column] == MASK
            assert (canvas[row, lengths[row] :] == PAD).all()
            packed[i] = numbers(canvas[row, : lengths[row]].tolist(), column, float(uniforms[i]))
        for column, read in zip((3, 4, 6), reads, strict=True):
            if not read:  # top2, entropy, argmax: whatever they hold changes nothing
                packed[:, column] = np.arange(count) * 7 % 5 - 2
        scheduler.commit(packed)
        assert calls <= sum(job.length for job in jobs), "every forward reveals at least one token"
    width = max((job.length for job in jobs), default=0)
    shape = (len(jobs), width)
    tokens, steps, logprob = np.empty(shape, np.int64), np.empty(shape, np.int32), np.empty(shape, np.float32)
    nfe, stop = np.empty(len(jobs), np.int32), np.empty(len(jobs), np.uint8)
    scheduler.results(tokens, steps, logprob, nfe, stop)
    out = []
    for i, job in enumerate(jobs):
        assert (steps[i, job.length :] == -2).all()
        assert (tokens[i, job.length :] == PAD).all()
        cut = [column[i, : job.length].tolist() for column in (tokens, steps, logprob)]
        out.append(Trajectory(*cut, int(nfe[i]), int(stop[i])))
    return out, scheduler.stats(), unmasking


READ_A_PROBABILITY = ("prob", "sampled_prob", "drawn_prob")
SELECTIONS = [
    *[
        ("top_k", kind)
        for kind in ("prob", "sampled_prob", "drawn_prob", "margin", "entropy", "random", "leftmost", "gumbel")
    ],
    *[(rule, kind) for rule in ("threshold:0.7", "threshold:0.4:2", "factor:0.6") for kind in READ_A_PROBABILITY],
    ("entropy_bound:0.315", "entropy"),
]
# bounds that no sum of the numbers above hits: single and double precision would disagree about it
TEMPORAL = [
    *["none", "fill_ratio:0.5", "fill_ratio:0.95", "steps:0.3", "steps:0.7", "steps:1", "confidence:0.6"],
    *["margin:4.0371:0.7133", "margin:1.0137:0.0071", "entropy:0.885", "stable:1", "stable:2"],
]


@st.composite
def options(draw: st.DrawFn, **fixed: object) -> Options:
    """Draw any valid combination of unmasking options."""
    selection, kind = draw(st.sampled_from(SELECTIONS))
    drawn = Options(
        diffusion_steps=draw(st.integers(1, 12)),
        block_length=draw(st.sampled_from([0, 0, 1, 3, 4, 50])),
        quota=draw(st.sampled_from(QUOTAS)),
        selection=selection,
        confidence=kind,
        temporal=draw(st.sampled_from(TEMPORAL)),
        max_nfe=draw(st.sampled_from([0, 0, 0, 1, 3])),
    )
    return replace(drawn, **fixed)


@st.composite
def jobs(draw: st.DrawFn) -> list[Job]:
    """Draw ragged rows with priors; some share prompt and prior, as the samples of a group do."""
    made: list[Job] = []
    for uid in range(draw(st.integers(0, 6))):
        if made and draw(st.booleans()):
            made.append(replace(made[-1], uid=uid))
            continue
        length = draw(st.integers(0, 9))
        prior = draw(st.dictionaries(st.integers(0, length - 1), st.integers(2, VOCAB - 1))) if length else {}
        made.append(Job(uid, draw(st.lists(st.integers(2, 9), max_size=4)), prior, length))
    return made


EACH = [{"temporal": rule} for rule in TEMPORAL] + [{"selection": s, "confidence": c} for s, c in SELECTIONS]


@pytest.mark.parametrize("fixed", EACH, ids=lambda fixed: "-".join(fixed.values()))
@settings(deadline=None, max_examples=15)
@given(jobs(), options(), st.integers(1, 7), st.integers(0, 2**64 - 1), st.booleans())
def test_the_scheduler_is_the_slow_decoder_in_any_batch_and_any_slots(fixed, rows, chosen, slots, seed, share_first):
    chosen = replace(chosen, **fixed)
    got, stats, _ = drive(rows, chosen, slots=slots, seed=seed, share_first=share_first)
    for job, trajectory in zip(rows, got, strict=True):
        alone = oracle.decode(
            job.uid, job.prompt, job.prior, job.length, chosen, numbers, seed=seed, mask_token_id=MASK
        )
        assert trajectory == alone
    assert stats["nfe"] == sum(t.nfe for t in got)
    assert stats["forwards"] <= stats["nfe"]
    if not share_first:
        assert stats["forwards"] == stats["nfe"]


@settings(deadline=None, max_examples=100)
@given(jobs(), options(), st.integers(0, 2**64 - 1))
def test_prior_positions_never_change_and_no_mask_is_left(rows, chosen, seed):
    got, _, _ = drive(rows, chosen, slots=4, seed=seed, share_first=True)
    for job, row in zip(rows, got, strict=True):
        fixed = {p for p, step in enumerate(row.unmask_step) if step == Mark.PRIOR}
        assert fixed == set(job.prior)
        assert all(row.token_ids[p] == token for p, token in job.prior.items())
        assert all(row.logprob[p] == 0 for p in job.prior)
        assert MASK not in row.token_ids
        assert row.stop in STOPS
        revealed = [step for step in row.unmask_step if step >= 0]
        assert set(revealed) == set(range(row.nfe)), "every forward reveals something, every token has one"


@settings(deadline=None, max_examples=100)
@given(jobs(), options(selection="top_k", confidence="random"), st.integers(0, 2**32))
def test_a_row_follows_the_plan_that_was_predicted(rows, chosen, seed):
    got, stats, unmasking = drive(rows, chosen, slots=3, seed=seed, share_first=False)
    free = [[int(p not in job.prior) for p in range(job.length)] for job in rows]
    predicted = [unmasking.plan(np.array(f, np.uint8)) for f in free]
    assert predicted == [plan(f, chosen) for f in free]
    if chosen.temporal.split(":")[0] in ("none", "fill_ratio", "steps"):
        realised = [[sum(s >= k for s in row.unmask_step) for k in range(row.nfe)] for row in got]
        assert realised == predicted
        assert stats["forwards"] == sum(map(len, predicted))


@settings(deadline=None, max_examples=60)
@given(jobs(), options(temporal="none", max_nfe=0), st.sampled_from(TEMPORAL), st.integers(0, 2**32))
def test_temporal_pruning_changes_nothing_before_its_last_forward(rows, chosen, rule, seed):
    whole, _, _ = drive(rows, chosen, slots=4, seed=seed, share_first=True)
    pruned, _, _ = drive(rows, replace(chosen, temporal=rule), slots=4, seed=seed, share_first=True)
    for full, cut in zip(whole, pruned, strict=True):
        last = cut.nfe - 1
        assert cut.nfe <= full.nfe
        for p, step in enumerate(cut.unmask_step):
            if step < last:
                assert (step, cut.token_ids[p], cut.logprob[p]) == (
                    full.unmask_step[p],
                    full.token_ids[p],
                    full.logprob[p],
                )
            else:
                assert full.unmask_step[p] >= last
        if cut.nfe == full.nfe:
            assert cut.token_ids == full.token_ids


@settings(deadline=None, max_examples=60)
@given(jobs(), options(), st.integers(0, 2**32))
def test_a_group_shares_its_first_forward_and_nothing_else(rows, chosen, seed):
    apart, without, _ = drive(rows, chosen, slots=9, seed=seed, share_first=False)
    shared, stats, _ = drive(rows, chosen, slots=9, seed=seed, share_first=True)
    assert shared == apart
    running = [(job.prompt, job.length, job.prior) for job, row in zip(rows, apart, strict=True) if row.nfe]
    repeats = sum(a == b for a, b in pairwise(running))
    assert stats["forwards"] == without["forwards"] - repeats
    assert stats["nfe"] == without["nfe"]
