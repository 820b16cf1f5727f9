"""The sources that learn, hint or constrain: Length, Hint, Frequency, Vocabulary, and a refreshed policy prior."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import PriorSet, Unmasking
from stp_rs.data.prompts import PromptBatch, encode_prompts
from stp_rs.errors import CheckpointError, InvalidValueError, PriorConflictError
from stp_rs.models import character_tokenizer
from stp_rs.priors import (
    END,
    Anneal,
    Frequency,
    Hint,
    Length,
    Prior,
    Template,
    Vocabulary,
    allowed_tokens,
    compose_priors,
    solution_length,
    tag_span,
)
from stp_rs.priors import lifecycle as hooks
from stp_rs.rollout.generate import Rollout, generate
from stp_rs.rollout.params import GREEDY
from stp_rs.train.anchors import OfflineGeneration
from stp_rs.types import Cost
from tests.fixtures import Tabular, tokenizer

EOS, ZERO, ONE, TWO, OPEN, CLOSE = 2, 4, 5, 6, 8, 9
LENGTH = 6


def batch(*texts: str, **columns: Sequence[Any]) -> PromptBatch:
    rows = [{"prompt": t, **{k: v[i] for k, v in columns.items()}} for i, t in enumerate(texts)]
    return encode_prompts(rows, tokenizer(), uids=range(len(texts)))


def dense(prior: PriorSet, length: int = LENGTH) -> list[list[int]]:
    ids = np.empty((len(prior), length), np.int64)
    prior.fill(ids)
    return ids.tolist()


def rolled(prompts: PromptBatch, ids: Sequence[Sequence[int]], fixed: Mapping[int, int] | None = None) -> Rollout:
    """Return a rollout with given tokens; positions in `fixed` came from a prior."""
    steps = np.zeros((len(ids), len(ids[0])), np.int32)
    for position in fixed or {}:
        steps[:, position] = -1
    return Rollout.of(prompts, np.array(ids, np.int64), steps)


def seen(prior: Any, prompts: PromptBatch, ids: Sequence[Sequence[int]], fixed: Any = None) -> None:
    hooks.observe([prior], rolled(prompts, ids, fixed), np.zeros(len(ids), np.float32))


# --- Length ---


def test_a_known_budget_ends_every_row():
    prior = Length(tokenizer(), budget=4)
    assert dense(prior(batch("0", "1"), LENGTH)) == [[-1, -1, -1, -1, EOS, EOS]] * 2
    assert prior(batch("0"), LENGTH).row(0)[0] == (4, EOS, "length")
    assert dense(Length(tokenizer(), budget=0)(batch("0"), LENGTH)) == [[EOS] * LENGTH]
    assert dense(Length(tokenizer(), budget=9)(batch("0"), LENGTH)) == [[-1] * LENGTH]


def test_a_budget_by_row_is_the_references_length():
    prompts = batch("0", "1", "2", solution=["[12]", None, "0"])
    prior = Length(tokenizer(), budget=solution_length(lambda row: row["solution"], tokenizer()), slack=1)
    assert [sum(token == EOS for token in row) for row in dense(prior(prompts, LENGTH))] == [1, 0, 4]


def test_a_quantile_waits_and_then_cuts_where_that_share_fits():
    prior, prompts = Length(tokenizer(), quantile=0.75, minimum=4), batch("0", "0", "0", "0")
    assert prior(prompts, LENGTH).num_anchors == 0
    ends = [[ZERO] * n + [EOS] * (LENGTH - n) for n in (1, 2, 3, 6)]
    seen(prior, prompts, [*ends[:3], ends[0]])
    assert [t == EOS for t in dense(prior(prompts, LENGTH))[0]] == [False] * 2 + [True] * 4, "3 of 4 fit into 2"
    for _ in range(5):  # cutting at a quantile leaves it where it is
        cut = [[*row[:2], *[EOS] * 4] for row in ends]
        seen(prior, prompts, cut)
    assert sum(t == EOS for t in dense(prior(prompts, LENGTH))[0]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got budget None and quantile None, needs exactly one"),
        ({"budget": 1, "quantile": 0.5}, "needs exactly one"),
        ({"quantile": 1.5}, "quantile: got 1.5"),
        ({"budget": -1}, "needs both at least 0"),
    ],
)
def test_a_length_without_one_budget_says_so(options: dict[str, Any], message: str):
    with pytest.raises(InvalidValueError, match=message):
        Length(tokenizer(), **options)


# --- Hint ---


def hint(**options: Any) -> Hint:
    return Hint(lambda row: row["solution"], tokenizer(), **options)


def test_a_hint_is_a_share_of_the_references_own_tokens():
    prompts = batch("0", "1", "2", solution=["[012]", None, "31"])
    assert dense(hint(share=1.0)(prompts, LENGTH)) == [
        [OPEN, ZERO, ONE, TWO, CLOSE, -1],
        [-1] * LENGTH,
        [7, ONE, -1, -1, -1, -1],
    ]
    assert dense(hint(share=0.4, selector="prefix")(prompts, LENGTH))[0] == [OPEN, ZERO, -1, -1, -1, -1]
    assert len(dense(hint(share=1.0)(prompts, 2), 2)[0]) == 2, "a reference longer than the canvas is cut"
    assert hint()(prompts, LENGTH).row(2)[0][2] == "hint"


def test_the_answer_is_no_hint_where_it_is_protected():
    prompts = batch("0", solution=["0[12]3"])
    assert dense(hint(share=1.0, answer_span=tag_span("[", "]"))(prompts, LENGTH)) == [[ZERO, OPEN, -1, -1, CLOSE, 7]]


def test_hints_for_failed_groups_are_not_given_to_others():
    prompts, prior = batch("0", solution=["012"]), hint(when="all_wrong")
    assert prior(prompts, LENGTH).num_anchors == 0
    assert prior.hints(prompts, LENGTH).num_anchors == 2, "half of 3, rounded to the nearest"


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_hints_shrink_to_exactly_nothing(kind: Any):
    prompts, prior = batch("0", solution=["012301"]), hint(share=1.0, anneal=Anneal(kind, 0.5))
    counts = []
    for step in range(10):
        hooks.begin_step([prior], step, 10)
        counts.append(prior(prompts, LENGTH).num_anchors)
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 6
    assert all(counts[:5])
    assert not any(counts[5:])


def test_a_group_shares_its_draw_or_each_sample_has_its_own():
    prompts = batch("0", "1", solution=["012301"] * 2).repeat(4, step=3)
    shared, own = dense(hint(per="group")(prompts, LENGTH)), dense(hint(per="sample")(prompts, LENGTH))
    assert shared[:4] == [shared[0]] * 4
    assert shared[4:] == [shared[4]] * 4
    later = batch("0", solution=["012301"]).repeat(1, step=9)
    assert dense(hint()(later, LENGTH)) == [shared[0]], "a prompt's draw is the same at every step"
    assert len({tuple(row) for row in own}) > 2
    assert dense(hint(per="sample")(prompts, LENGTH)) == own
    assert dense(hint(per="sample", seed=1)(prompts, LENGTH)) != own


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selector": "top_confidence"}, "needs one of random, prefix, span"),
        ({"when": "sometimes"}, "when: got 'sometimes'"),
        ({"per": "batch"}, "per: got 'batch', needs group or sample"),
        ({"share": 2.0}, "share: got 2.0"),
    ],
)
def test_a_reference_that_cannot_be_says_so(options: dict[str, Any], message: str):
    with pytest.raises(InvalidValueError, match=message):
        hint(**options)


@pytest.mark.parametrize("text", ["linear:0", "cosine:2", "steps:0.5", "linear:x"])
def test_an_annealing_that_cannot_be_says_so(text: str):
    with pytest.raises(InvalidValueError, match="anneal: got"):
        Anneal.parse(text)


def test_annealings_are_read_from_text():
    assert Anneal.parse("none") == Anneal()
    assert Anneal.parse("linear:0.6") == Anneal("linear", 0.6)
    assert Anneal.parse("cosine") == Anneal("cosine", 1.0)


# --- Frequency ---


def test_what_a_prompts_rollouts_agree_on_is_fixed_for_that_prompt():
    prior = Frequency(tokenizer(), share=0.75, minimum=4)
    prompts = batch("0").repeat(4)
    seen(prior, prompts, [[ONE, ONE, 7, EOS, EOS, EOS], *[[ONE, n, TWO, EOS, EOS, EOS] for n in (4, 5, 6)]])
    assert dense(prior(batch("0", "1"), LENGTH)) == [[ONE, -1, TWO, EOS, EOS, EOS], [-1] * LENGTH]
    assert prior(batch("0"), LENGTH).row(0)[0] == (0, ONE, "frequency")
    assert prior(batch("0"), 2).num_anchors == 1, "a shorter canvas reads what lies on it"


def test_what_a_prior_fixed_has_no_vote():
    prior, prompts = Frequency(tokenizer(), minimum=1), batch("0", "0")
    seen(prior, prompts, [[ONE] * LENGTH] * 2, fixed={0: ONE, 5: ONE})
    assert dense(prior(prompts, LENGTH))[0] == [-1, ONE, ONE, ONE, ONE, -1]


def test_fewer_draws_than_the_minimum_fix_nothing():
    prior, prompts = Frequency(tokenizer(), minimum=3), batch("0", "0")
    seen(prior, prompts, [[ONE] * LENGTH] * 2)
    assert prior(prompts, LENGTH).num_anchors == 0
    with pytest.raises(InvalidValueError, match="frequency: got share 0"):
        Frequency(tokenizer(), share=0.0)


def test_memory_of_frequencies_is_bounded_and_what_agrees_stays():
    """A thousand tokens at every position, and one that half of the completions drew: as in a long run."""
    prior, prompts = Frequency(tokenizer(), share=0.4, minimum=8), batch("0").repeat(64)
    generator = np.random.default_rng(0)
    sizes = []
    for _ in range(60):
        tokens = generator.integers(100, 1100, (64, LENGTH))
        tokens[::2, 2] = ONE
        seen(prior, prompts, tokens.tolist())
        sizes.append(sum(array.nbytes for array in prior.state_dict().arrays.values()))
    assert max(sizes) <= 100 * LENGTH + 100, "16 bytes a drawn token would be 368,640"
    assert dense(prior(batch("0"), LENGTH)) == [[-1, -1, ONE, -1, -1, -1]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=40), min_size=1, max_size=8))
def test_a_bounded_count_is_never_too_high_and_a_ninth_too_low(rounds: list[list[int]]):
    prior, drawn = Frequency(tokenizer(), minimum=1), Counter[int]()
    for tokens in rounds:
        drawn.update(tokens)
        seen(prior, batch(*["0"] * len(tokens)), [[t] + [EOS] * (LENGTH - 1) for t in tokens])
    arrays = prior.state_dict().arrays
    kept = {int(c): int(n) for c, n in zip(arrays["codes"], arrays["counts"], strict=True) if c < 1 << 32}
    total = sum(drawn.values())
    assert arrays["seen_L"][0] == total
    assert len(kept) <= 8
    for token, count in drawn.items():
        assert count - total / 9 <= kept.get(token, 0) <= count
    if len(drawn) <= 8:
        assert kept == dict(drawn), "with few tokens the counts are exact"


def test_the_prompts_that_were_decoded_last_are_remembered():
    prior = Frequency(tokenizer(), minimum=1, prompts=2)
    for text in ("0", "1", "0", "2"):
        seen(prior, batch(text), [[ONE] * LENGTH])
    remembered = [prior(batch(text), LENGTH).num_anchors > 0 for text in ("0", "1", "2")]
    assert remembered == [True, False, True]
    again = Frequency(tokenizer(), minimum=1, prompts=2)
    again.load_state_dict(prior.state_dict())
    for known in (prior, again):
        seen(known, batch("3"), [[ONE] * LENGTH])
        assert [known(batch(t), LENGTH).num_anchors > 0 for t in ("0", "2", "3")] == [False, True, True]
    empty = Frequency(tokenizer())
    empty.load_state_dict(Frequency(tokenizer()).state_dict())
    assert empty(batch("0"), LENGTH).num_anchors == 0
    with pytest.raises(InvalidValueError, match="and prompts 0"):
        Frequency(tokenizer(), prompts=0)


# --- Vocabulary ---


def test_allowed_tokens_are_a_table_of_the_canvas():
    prior = Vocabulary(lambda p: ["0", "1"] if p < 2 else None if p == 2 else [END], tokenizer())
    table = prior.allowed(batch("0"), 4)
    assert table.shape == (4, len(tokenizer()))
    assert [np.flatnonzero(row).tolist() for row in table[[0, 1, 3]]] == [[ZERO, ONE], [ZERO, ONE], [EOS]]
    assert table[2].all()
    assert prior(batch("0", "1"), 4) == PriorSet.empty(2)
    wide = Vocabulary(lambda _: ["0"], tokenizer(), vocab_size=64).allowed(batch("0"), 2)
    assert wide.shape == (2, 64)


def test_a_row_may_have_its_own_tokens():
    prompts = batch("0", "1", digit=["2", "3"])
    prior = Vocabulary(lambda _: ["0"], tokenizer(), for_row=lambda row: {1: [row["digit"]]})
    table = prior.allowed(prompts, 2)
    assert table.int().argmax(-1).tolist() == [[ZERO, TWO], [ZERO, 7]]
    assert (table.sum(-1) == 1).all()
    both = allowed_tokens([prior, Vocabulary(lambda p: ["0", "2"][p : p + 1], tokenizer())], prompts, 2)
    assert both is not None
    assert both.any(-1).tolist() == [[True, True], [True, False]], "all vocabularies must allow a token"
    with pytest.raises(InvalidValueError, match="vocabulary position: got 7"):
        Vocabulary(lambda _: None, tokenizer(), for_row=lambda _: {7: ["0"]}).allowed(prompts, 2)
    with pytest.raises(InvalidValueError, match="got no text at position 0"):
        Vocabulary(lambda _: [], tokenizer()).allowed(prompts, 2)


def test_a_certain_token_that_is_not_allowed_is_a_conflict_and_a_guess_is_left_out():
    digits = Vocabulary(lambda _: ["0", "1", "2"], tokenizer())
    prompts = batch("0", solution=["01[2"])
    with pytest.raises(PriorConflictError, match=r"row 0: position 1 is fixed to token 8 by template.*not.*allow"):
        compose_priors([digits, Template({1: "["}, tokenizer())], prompts, LENGTH)
    found = compose_priors([hint(share=1.0), digits], prompts, LENGTH)
    assert dense(found) == [[ZERO, ONE, -1, TWO, -1, -1]]


def test_certain_priors_come_first_and_guesses_fill_what_is_free():
    prompts = batch("0", solution=["012"])
    found = compose_priors([hint(share=1.0), Template({0: "["}, tokenizer())], prompts, LENGTH)
    assert found.row(0) == [(0, OPEN, "template"), (1, ONE, "hint"), (2, TWO, "hint")]


# --- OfflineGeneration ---


def offline(**options: Any) -> tuple[OfflineGeneration, Tabular, PromptBatch]:
    model, prompts = Tabular(vocab=10, width=12, seed=11), batch("0", "31", "2", "1")
    prior = OfflineGeneration(**{"keep": 0.5, **options})
    prior.build(model, prompts, tokenizer(), Unmasking(3), completion_length=LENGTH)
    return prior, model, prompts


def middle(_text: str) -> tuple[int, int]:
    return 2, 5


@pytest.mark.parametrize(("selector", "protect"), [("random", False), ("random", True), ("top_confidence", False)])
def test_the_papers_ablation_is_a_selector_and_whether_the_answer_is_protected(selector: str, protect: bool):
    prior, model, prompts = offline(selector=selector, protect_answer=protect, answer_span=middle, keep=1.0)
    greedy = generate(model, prompts, Unmasking(3), completion_length=LENGTH, sampling=GREEDY).token_ids
    texts = [[tokenizer().decode([i], skip_special_tokens=True) for i in row] for row in greedy.tolist()]
    anchors = np.array(dense(prior(prompts, LENGTH)))
    for row, pieces in enumerate(texts):
        ends = np.cumsum([len(p) for p in pieces])
        inside = (ends - [len(p) for p in pieces] < 5) & (ends > 2)
        if EOS not in greedy[row]:
            assert ((anchors[row] < 0) == (inside if protect else np.zeros(LENGTH, bool))).all()
    assert ((anchors < 0) | (anchors == greedy)).all()


def test_not_answer_is_random_and_never_the_answer():
    one, _, prompts = offline(selector="not_answer", answer_span=middle, protect_answer=False, keep=0.4)
    other, _, _ = offline(selector="random", answer_span=middle, protect_answer=True, keep=0.4)
    assert one(prompts, LENGTH) == other(prompts, LENGTH)
    with pytest.raises(InvalidValueError, match="not_answer without an answer_span"):
        OfflineGeneration(selector="not_answer")


def test_samples_draw_their_own_anchors_where_asked():
    group, _, prompts = offline(selector="random", per="group")
    repeated = prompts.repeat(6)
    rows = dense(group(repeated, LENGTH))
    assert all(rows[i] == rows[i - i % 6] for i in range(len(rows)))
    sample, _, _ = offline(selector="random", per="sample")
    assert len({tuple(row) for row in dense(sample(repeated, LENGTH))[:6]}) > 1


def test_anchors_are_annealed():
    prior, _, prompts = offline(keep=1.0, anneal=Anneal("linear", 0.5))
    counts = []
    for step in (0, 2, 4, 5, 9):
        hooks.begin_step([prior], step, 10)
        counts.append(prior(prompts, LENGTH).num_anchors // 4)
    assert counts == [6, 4, 1, 0, 0]


def test_completions_are_made_under_the_priors_beside_them():
    model, prompts = Tabular(vocab=10, width=12, seed=11), batch("0", "31")
    given: list[Prior] = [
        Template({0: "["}, tokenizer()),
        Vocabulary(lambda p: ["["] if p == 0 else ["0", "1"], tokenizer()),
    ]
    prior = OfflineGeneration(keep=1.0)
    prior.build(model, prompts, tokenizer(), Unmasking(3), completion_length=LENGTH, given=given)
    found = np.array(dense(prior(prompts, LENGTH)))
    assert (found[:, 0] == -1).all(), "what is fixed needs no anchor"
    assert np.isin(found[:, 1:], [ZERO, ONE]).all()


def test_a_completion_depends_on_its_prompt_and_not_on_its_batch():
    model, chance = Tabular(vocab=10, width=12, seed=11), Unmasking(3, confidence="random")
    found = []
    for texts in (("0", "31", "2"), ("2", "0")):
        prior = OfflineGeneration(keep=1.0)
        prior.build(model, batch(*texts), tokenizer(), chance, completion_length=LENGTH)
        found.append(dense(prior(batch("2", "0"), LENGTH)))
    assert found[0] == found[1]


def test_a_refresh_makes_completions_anew_when_their_prompt_comes_up():
    prior, model, prompts = offline(keep=1.0, refresh=4)
    first, hashes = dense(prior(prompts, LENGTH)), dict(prior.hashes)
    model.module.own.data[:] = Tabular(vocab=10, width=12, seed=5).own.data
    hooks.begin_step([prior], 3, 20)
    assert hooks.prepare([prior], prompts, LENGTH) == Cost(), "the period is not over"
    assert dense(prior(prompts, LENGTH)) == first
    hooks.begin_step([prior], 6, 20)
    one = prompts.select([1, 1])
    greedy = generate(model, prompts, Unmasking(3), completion_length=LENGTH, sampling=GREEDY).token_ids
    cost = hooks.prepare([prior], one, LENGTH)
    assert dense(prior(one, LENGTH)) == [greedy[1].tolist()] * 2
    assert cost.forwards == 3 + 1, "a group's completion is made once"
    assert cost.tokens == cost.forwards * (int(one.prompt_length[0]) + LENGTH)
    assert cost.head_rows > LENGTH
    assert prior.hashes["policy"] != hashes["policy"]
    stored = prior.state_dict().arrays["version"]
    assert sorted(stored.tolist()) == [0, 0, 0, 6]
    model.module.own.data[:] = 0
    hooks.begin_step([prior], 7, 20)
    assert hooks.prepare([prior], one, LENGTH) == Cost()
    assert dense(prior(one, LENGTH)) == [greedy[1].tolist()] * 2, "once per period"
    lost = OfflineGeneration(refresh=1)
    hooks.begin_step([lost], 1, 2)
    with pytest.raises(InvalidValueError, match="refresh needs a policy; call build or follow"):
        hooks.prepare([lost], prompts, LENGTH)


# --- states ---


def test_states_go_on_where_they_were_and_belong_to_a_tokenizer():
    prompts = batch("0", "1", "0")
    ids = [[ONE, TWO, EOS, EOS, EOS, EOS], [TWO] * LENGTH, [ONE] * LENGTH]

    def made() -> list[Prior]:
        return [Template({0: "["}, tokenizer()), Frequency(tokenizer(), minimum=1), Length(tokenizer(), quantile=0.5)]

    first, again = made(), made()
    for prior in first:
        seen(prior, prompts, ids)
    states = hooks.take_states(first)
    assert sorted(states) == ["1-Frequency", "2-Length"]
    hooks.load_states(again, states)
    for left, right in zip(first, again, strict=True):
        seen(left, prompts, ids)
        seen(right, prompts, ids)
        assert left(prompts, LENGTH) == right(prompts, LENGTH)
    with pytest.raises(
        CheckpointError, match="the checkpoint holds the state of 1-Frequency, 2-Length, the run has none"
    ):
        hooks.load_states(first[:1], states)
    other = character_tokenizer("abc")
    with pytest.raises(CheckpointError, match="frequency: was made with another tokenizer"):
        hooks.load_states([first[0], Frequency(other), Length(other, quantile=0.5)], states)
    with pytest.raises(CheckpointError, match="length: was made with another tokenizer"):
        Length(other, quantile=0.5).load_state_dict(states["2-Length"])
