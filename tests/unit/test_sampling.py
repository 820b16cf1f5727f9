"""From logits to packed numbers: what is drawn, how often, and under which law it is recorded."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stp_rs import Unmasking
from stp_rs.data.prompts import PromptBatch
from stp_rs.errors import DivergenceError
from stp_rs.rollout.generate import generate
from stp_rs.rollout.logits import Reads, Reducer, candidate_logits, reduce_logits
from stp_rs.rollout.params import GREEDY, SamplingParams
from tests.fixtures import Tabular
from tests.oracles import sampling as oracle

TOKEN, LOGPROB, TOP1, TOP2, ENTROPY, SAMPLED, ARGMAX = range(7)
# The 1 - 1e-6 quantiles of chi-square with 5 and 4 degrees of freedom.
RARE = {5: 36.0, 4: 33.4}


def reduce(logits: list[float], uniforms: list[float] | np.ndarray, sampling: SamplingParams) -> np.ndarray:
    """Return the packed numbers of one law and many uniforms."""
    uniforms_N = torch.as_tensor(np.asarray(uniforms, np.float32))
    return reduce_logits(torch.tensor(logits).expand(len(uniforms_N), -1), uniforms_N, sampling).numpy()


def prompts(rows: int) -> PromptBatch:
    one = PromptBatch([{}], np.array([[3]]), np.array([1], np.int32), np.array([0], np.uint64), np.array([0]))
    return one.repeat(rows)


def test_a_tail_token_of_one_in_a_thousand_is_drawn_as_often():
    probability = [0.25, 0.5, 1e-3, 0.2, 0.045, 0.004]
    uniforms = np.random.default_rng(0).random(200_000)
    tokens = reduce(np.log(probability).tolist(), uniforms, SamplingParams())[:, TOKEN].astype(int)
    counts = np.bincount(tokens, minlength=6).tolist()
    assert oracle.chi_square(counts, probability) < RARE[5]
    assert abs(counts[2] - 200) < 5 * math.sqrt(200)


def test_a_rollout_draws_from_the_models_law_and_never_the_mask():
    model = Tabular(vocab=6, width=2, seed=1)
    with torch.no_grad():
        model.own[1] = torch.tensor([2.0, 9.0, 0.0, 1.0, -4.0, 0.5])  # the mask token would win
        model.coupling.zero_()
    rollout = generate(model, prompts(20_000), Unmasking(1), completion_length=1, slots=20_000)
    counts = np.bincount(rollout.token_ids[:, 0], minlength=6).tolist()
    logits = model.own[1].tolist()
    logits[model.mask_token_id] = -math.inf
    law = oracle.law(logits)
    assert counts[model.mask_token_id] == 0
    assert oracle.chi_square(counts, law) < RARE[4]
    assert np.allclose(np.exp(rollout.logprob[:, 0]), np.array(law)[rollout.token_ids[:, 0]], atol=1e-6)


logits_ = st.lists(st.sampled_from([-30.0, -4.0, -1.0, 0.0, 0.5, 0.5, 3.0, -math.inf]), min_size=2, max_size=9).filter(
    lambda xs: max(xs) > -math.inf
)
laws = st.builds(
    SamplingParams,
    st.sampled_from([0.3, 0.9, 1.0, 2.5]),
    st.sampled_from([0, 1, 2, 5, 99]),
    st.sampled_from([1.0, 0.9, 0.31]),
    st.sampled_from([0.0, 0.05, 0.4, 0.999]),
)


@settings(deadline=None, max_examples=150)
@given(logits_, st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=8), laws)
def test_tempered_and_cut_laws_are_the_slow_ones(logits: list[float], uniforms: list[float], sampling: SamplingParams):
    packed = reduce(logits, uniforms, sampling)
    expected = oracle.law(logits, sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    plain = oracle.law(logits)
    first, second = sorted(plain, reverse=True)[:2]
    for row, uniform in zip(packed, np.asarray(uniforms, np.float32).tolist(), strict=True):
        token = int(row[TOKEN])
        assert expected[token] > 0, "a token of probability zero was drawn"
        if not oracle.near_an_edge(expected, uniform):
            assert token == oracle.draw(expected, uniform)
        assert row[LOGPROB] == pytest.approx(math.log(expected[token]), abs=1e-4)
        assert row[SAMPLED] == pytest.approx(math.log(plain[token]), abs=1e-4)
        assert math.exp(row[TOP1]) == pytest.approx(first, abs=1e-5)
        assert math.exp(row[TOP2]) == pytest.approx(second, abs=1e-5)
        assert row[ENTROPY] == pytest.approx(oracle.entropy(plain), abs=1e-4)
        assert plain[int(row[ARGMAX])] == first


def test_zero_probability_is_never_drawn_at_either_end():
    edge = [2.0**-24, 1 - 2.0**-24]
    for logits in ([-math.inf, 0.0, -math.inf], [-math.inf, -math.inf, 0.0], [0.0, -math.inf, -math.inf]):
        for sampling in (SamplingParams(), SamplingParams(0.5), SamplingParams(top_p=0.5), GREEDY):
            assert set(reduce(logits, edge, sampling)[:, TOKEN]) == {logits.index(0.0)}


def test_greedy_is_the_argmax_and_records_the_untempered_law():
    logits = [0.5, 2.0, -1.0, 1.9]
    packed = reduce(logits, [0.01, 0.99], GREEDY)
    assert packed[:, TOKEN].tolist() == packed[:, ARGMAX].tolist() == [1, 1]
    assert packed[:, LOGPROB] == pytest.approx(math.log(oracle.softmax(logits)[1]), abs=1e-6)


def test_huge_logits_stay_finite():
    for logits in ([3e38, -3e38, 0.0], [1e30, 1e30, -1e30], [-1e38, -1e38, -1e38]):
        packed = reduce(logits, [0.2, 0.8], SamplingParams(0.7))
        assert np.isfinite(packed[:, [TOKEN, LOGPROB, TOP1, ENTROPY]]).all()
        expected = oracle.softmax(logits)
        assert [expected[int(t)] > 0 for t in packed[:, TOKEN]] == [True, True]


def test_half_precision_logits_are_reduced_in_single_precision():
    # bf16 cannot hold a cumulative sum near 1 to better than 0.004: the tail would never be drawn
    logits = torch.log(torch.tensor([[0.499, 0.5, 1e-3]])).bfloat16()
    allowed = candidate_logits(torch.cat([logits, logits.new_full((1, 1), 50.0)], dim=1), 3)
    assert allowed.dtype == torch.float32
    assert allowed[0, 3] == -math.inf
    packed = reduce_logits(allowed.expand(2, -1), torch.tensor([0.5, 0.9999]), SamplingParams())
    assert packed[:, TOKEN].tolist() == [1, 2]


@pytest.mark.parametrize("mask", [0, 1, 5])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(0.5, top_p=0.9), GREEDY])
def test_nan_and_infinite_logits_are_counted_and_stop_the_rollout(mask: int, bad: float, sampling: SamplingParams):
    model = Tabular(vocab=6, width=4, seed=1, mask=mask, pad=2)
    with torch.no_grad():
        model.own[2, 3] = bad
    with pytest.raises(DivergenceError, match=r"NaN or infinite logits for [1-9]\d* of"):
        generate(model, prompts(3), Unmasking(3), completion_length=3, sampling=sampling)


@pytest.mark.parametrize("vocab", [9, 5000])
@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(0.5, top_p=0.9), SamplingParams(1.0, top_k=3), GREEDY]
)
def test_a_number_is_the_same_to_the_bit_whichever_others_are_read(sampling: SamplingParams, vocab: int):
    logits = torch.randn(70, vocab, generator=torch.Generator().manual_seed(2)) * 3
    logits[5, 1:] = -math.inf
    uniforms, whole, part = torch.linspace(0.01, 0.99, 70), torch.empty(70, 7), torch.empty(70, 7)
    Reducer(sampling, 4)(logits, uniforms, whole)
    assert whole.isfinite().sum() == whole.numel() - 1, "one candidate has no second token"
    for top2, entropy, argmax in itertools.product([False, True], repeat=3):
        Reducer(sampling, 4)(logits, uniforms, part, reads=Reads(top2, entropy, argmax))
        known = argmax or top2 or sampling == GREEDY  # at no cost
        expected = whole.clone()
        for column, there in ((TOP2, top2), (ENTROPY, entropy), (ARGMAX, known)):
            if not there:
                expected[:, column] = math.nan
        assert torch.equal(part.nan_to_num(7.5), expected.nan_to_num(7.5))
