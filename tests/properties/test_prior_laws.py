"""What every prior keeps: its tokens stand, an empty one changes nothing, a schedule ends at 0, counts are counts."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import PriorSet, Unmasking
from stp_rs.data.prompts import PromptBatch, encode_prompts
from stp_rs.errors import PriorConflictError
from stp_rs.priors import Anneal, Copy, Frequency, Hint, Length, Prior, Template, Vocabulary, compose_priors
from stp_rs.priors import lifecycle as hooks
from stp_rs.rollout.generate import Rollout, generate
from stp_rs.rollout.params import SamplingParams
from stp_rs.train.anchors import OfflineGeneration
from stp_rs.types import Mark
from tests.fixtures import Tabular, tokenizer
from tests.oracles import priors as oracle
from tests.unit.test_prior_sources import rolled

LENGTH = 6
ids = st.integers(4, 9)


def prompts_of(texts: list[str]) -> PromptBatch:
    rows = [{"prompt": text, "solution": f"[{text * 2}]"[:LENGTH]} for text in texts]
    return encode_prompts(rows, tokenizer(), uids=range(len(texts)))


def sources(model: Tabular, prompts: PromptBatch, seed: int) -> dict[str, Prior]:
    """Return one prior of each kind."""
    offline = OfflineGeneration(0.5, "random", seed=seed, per="sample")
    offline.build(model, prompts, tokenizer(), Unmasking(2), completion_length=LENGTH)
    frequency = Frequency(tokenizer(), share=0.5, minimum=1, seed=seed, keep=0.7)
    frequency.observe(prompts, play(model, prompts, seed, None), np.zeros(len(prompts), np.float32))
    return {
        "template": Template({0: "[", 4: "]"}, tokenizer()),
        "copy": Copy(lambda row: {1: row["prompt"][0]}, tokenizer()),
        "length": Length(tokenizer(), budget=5),
        "hint": Hint(lambda row: row["solution"], tokenizer(), 0.5, seed=seed, per="sample"),
        "frequency": frequency,
        "offline": offline,
        "vocabulary": Vocabulary(lambda _: None, tokenizer()),
    }


def play(model: Tabular, prompts: PromptBatch, seed: int, prior: PriorSet | None, temporal: str = "none") -> Rollout:
    unmasking, law = Unmasking(LENGTH, temporal=temporal), SamplingParams(1.0)
    return generate(model, prompts, unmasking, completion_length=LENGTH, sampling=law, prior=prior, seed=seed)


texts = st.lists(st.text("0123", min_size=1, max_size=3), min_size=1, max_size=3)
chosen = st.sets(st.sampled_from(["template", "copy", "length", "hint", "frequency", "offline", "vocabulary"]))


@settings(max_examples=25)
@given(texts, chosen, st.integers(0, 2**32), st.sampled_from(["none", "steps:0.6", "confidence:0.3"]))
def test_what_priors_fix_stands_through_a_rollout(found: list[str], names: set[str], seed: int, temporal: str):
    model, prompts = Tabular(vocab=10, width=12, seed=3), prompts_of(found).repeat(2, step=1)
    priors = [prior for name, prior in sources(model, prompts, seed).items() if name in names]
    fixed = compose_priors(priors, prompts, LENGTH)
    assert compose_priors(priors, prompts, LENGTH) == fixed, "asking does not change the answer"
    want = np.empty((len(prompts), LENGTH), np.int64)
    fixed.fill(want)
    rollout = play(model, prompts, seed, fixed, temporal)
    assert ((rollout.unmask_step == Mark.PRIOR) == (want >= 0)).all()
    assert (rollout.token_ids[want >= 0] == want[want >= 0]).all()
    assert not rollout.logprob[want >= 0].any()
    free = play(model, prompts, seed, None, temporal)
    if temporal != "confidence:0.3":  # an adaptive rule reads the canvas
        assert (rollout.nfe <= free.nfe).all(), "anchors never add a step"


@settings(max_examples=25)
@given(texts, st.integers(0, 2**32))
def test_priors_that_fix_nothing_are_the_baseline_bit_for_bit(found: list[str], seed: int):
    model, prompts = Tabular(vocab=10, width=12, seed=4), prompts_of(found).repeat(2, step=1)
    reference = Hint(lambda row: row["solution"], tokenizer(), 1.0, anneal=Anneal("cosine", 0.5))
    offline = OfflineGeneration(1.0, anneal=Anneal("linear", 0.25))
    offline.build(model, prompts, tokenizer(), Unmasking(2), completion_length=LENGTH)
    frequency = Frequency(tokenizer(), minimum=1, share=0.1, anneal=Anneal("linear", 0.5))
    nothing: list[Prior] = [
        *(reference, offline, frequency, Template({}, tokenizer()), Length(tokenizer(), budget=LENGTH)),
        *(Length(tokenizer(), quantile=0.5), Vocabulary(lambda _: None, tokenizer())),
        Hint(lambda _: None, tokenizer()),
    ]
    plain = play(model, prompts, seed, None)
    frequency.observe(prompts, plain, np.zeros(len(prompts), np.float32))
    assert compose_priors(nothing, prompts, LENGTH).num_anchors > 0
    hooks.begin_step(nothing, 1, 2)
    assert compose_priors(nothing, prompts, LENGTH) == PriorSet.empty(len(prompts))
    same = play(model, prompts, seed, compose_priors(nothing, prompts, LENGTH))
    for name in ("token_ids", "unmask_step", "logprob", "nfe", "stop_reason"):
        assert getattr(same, name).tobytes() == getattr(plain, name).tobytes(), name


@given(st.sampled_from(["linear", "cosine"]), st.floats(0.01, 1.0), st.lists(st.floats(0, 1), min_size=2))
def test_a_schedule_falls_from_one_to_exactly_zero(kind: Any, until: float, progress: list[float]):
    anneal = Anneal(kind, until)
    assert anneal.factor(0.0) == 1.0
    assert anneal.factor(until) == 0.0
    assert anneal.factor(1.0) == 0.0
    factors = [anneal.factor(p) for p in sorted(progress)]
    assert factors == sorted(factors, reverse=True)
    assert all(0.0 <= f <= 1.0 for f in factors)
    assert abs(anneal.factor(until / 2) - 0.5) < 1e-12


batches = st.lists(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.sampled_from([4, 5, 6]), min_size=4, max_size=4), st.integers(0, 15)),
        min_size=1,
        max_size=6,
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60)
@given(batches, st.sampled_from([0.3, 0.5, 2 / 3, 0.75, 1.0]), st.integers(1, 4))
def test_frequencies_are_the_oracles(rounds: list[Any], share: float, minimum: int):
    prior = Frequency(tokenizer(), share=share, minimum=minimum)
    texts = ["0", "1", "2"]
    history: dict[int, list[tuple[list[int], list[int]]]] = {0: [], 1: [], 2: []}
    for rows in rounds:
        prompts = prompts_of([texts[which] for which, _, _ in rows])
        rollout = rolled(prompts, [tokens for _, tokens, _ in rows])
        for row, (which, tokens, fixed) in enumerate(rows):
            steps = [-1 if fixed >> p & 1 else p for p in range(4)]
            rollout.unmask_step[row] = steps
            history[which].append((tokens, steps))
        hooks.observe([prior], rollout, np.zeros(len(rows), np.float32))
    got = np.empty((3, 4), np.int64)
    prior(prompts_of(texts), 4).fill(got)
    assert got.tolist() == [oracle.frequency(history[i], 4, share, minimum) for i in range(3)]
    again = Frequency(tokenizer(), share=share, minimum=minimum)
    again.load_state_dict(prior.state_dict())
    assert again(prompts_of(texts), 4) == prior(prompts_of(texts), 4)


@settings(max_examples=60)
@given(st.lists(st.integers(0, LENGTH), min_size=1, max_size=20), st.sampled_from([0.25, 0.5, 0.9, 1.0]))
def test_a_quantile_budget_is_the_oracles(lengths: list[int], share: float):
    prior, prompts = Length(tokenizer(), quantile=share, minimum=1), prompts_of(["0"] * len(lengths))
    tokens = [[4] * n + [2] * (LENGTH - n) for n in lengths]
    prior.observe(prompts, rolled(prompts, tokens), np.zeros(len(lengths), np.float32))
    budget = oracle.quantile_budget(lengths, share)
    assert [p for p, _, _ in prior(prompts, LENGTH).row(0)] == list(range(budget, LENGTH))


class Dense:
    """A prior that is given as it is."""

    def __init__(self, tokens: list[list[int]], soft: bool) -> None:
        self.tokens, self.soft = np.array(tokens, np.int64), soft

    def __call__(self, prompts: PromptBatch, completion_length: int) -> PriorSet:
        return PriorSet.from_dense(self.tokens)


tables = st.lists(st.lists(st.sampled_from([-1, -1, 4, 5]), min_size=3, max_size=3), min_size=2, max_size=2)


@settings(max_examples=100)
@given(st.lists(st.tuples(tables, st.booleans()), min_size=1, max_size=4))
def test_guesses_give_way_to_what_is_certain(given_tables: list[tuple[list[list[int]], bool]]):
    priors = [Dense(table, soft) for table, soft in given_tables]
    want = oracle.compose([t for t, soft in given_tables if not soft], [t for t, soft in given_tables if soft])
    prompts = prompts_of(["0", "1"])
    if want is None:
        with pytest.raises(PriorConflictError):
            compose_priors(priors, prompts, 3)
        return
    got = np.empty((2, 3), np.int64)
    compose_priors(priors, prompts, 3).fill(got)
    assert got.tolist() == want
