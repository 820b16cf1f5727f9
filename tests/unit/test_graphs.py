"""Captured steps of small policies, with a capture that replays on the CPU: the same rollouts, whatever repeats."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import stp_rs
from stp_rs.rollout import graphs, loop
from tests.fixtures import LENGTH, ROWS, Tabular, tiny, tokenizer

VOCAB = len(tokenizer())


class Recorder:
    """Counts captures and replays; a replay computes the same work on the same buffers again."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        work()

        def replay() -> None:
            self.replays += 1
            work()

        return replay


def roll(model: Any, *, seed: int = 1, rows: Any = ROWS, **options: Any) -> stp_rs.Rollout:
    batch = stp_rs.encode_prompts(rows, tokenizer(), uids=range(len(rows))).repeat(3, step=0)
    unmasking = options.pop("unmasking", stp_rs.Unmasking(6))
    return stp_rs.generate(model, batch, unmasking, completion_length=LENGTH, seed=seed, **options)


def same(left: stp_rs.Rollout, right: stp_rs.Rollout) -> None:
    for name in ("token_ids", "unmask_step", "nfe", "stop_reason"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name
    assert np.allclose(left.logprob, right.logprob, atol=1e-5)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    replays = graphs.Replays(made)

    def replays_of(model: Any, _tokens: int) -> graphs.Replays:
        replays.begin(model.module)
        return replays

    monkeypatch.setattr(loop, "replays_of", replays_of)
    return made


EQUAL = [{"prompt": text} for text in ("01", "12", "3[", "1]")]
TABLE = torch.rand((LENGTH, VOCAB), generator=torch.Generator().manual_seed(0)) < 0.6
TABLE[:, 6] = True
LAWS = {
    "plain": stp_rs.SamplingParams(),
    "greedy": stp_rs.GREEDY,
    "top": stp_rs.SamplingParams(0.7, top_k=4, top_p=0.9),
    "words": stp_rs.SamplingParams(allowed=TABLE[0]),
    "places": stp_rs.SamplingParams(allowed=TABLE),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("rows", [EQUAL, ROWS])
@pytest.mark.parametrize("shift", [None, 1])
def test_replayed_steps_are_the_steps(law: str, rows: Any, shift: int | None, recorder: Recorder):
    model = tiny(layers=2) if shift is None else Tabular(vocab=VOCAB, width=16, seed=0, shift=1)
    steps = stp_rs.Unmasking(6, selection="threshold:0.2:2", temporal="entropy:4")
    for unmasking in (stp_rs.Unmasking(6), steps):
        options = {"rows": rows, "sampling": LAWS[law], "unmasking": unmasking}
        for seed in (1, 2, 1, 3):
            plain = roll(model, seed=seed, batching=stp_rs.Batching(graphs=False), **options)
            same(roll(model, seed=seed, **options), plain)
    assert recorder.replays > recorder.captures > 0


def test_what_repeats_is_captured_once(recorder: Recorder):
    model = tiny()
    roll(model, rows=EQUAL)
    roll(model, rows=EQUAL)
    captures = recorder.captures
    assert captures > 0
    before = recorder.replays
    for seed in range(3):
        calls = roll(model, rows=EQUAL, seed=seed, batching=stp_rs.Batching()).stats["calls"]
    assert recorder.captures == captures
    assert recorder.replays - before == 3 * calls


def test_other_tables_of_allowed_tokens_are_read(recorder: Recorder):
    model = tiny()
    for number in range(4):
        allowed = torch.zeros(VOCAB, dtype=torch.bool)
        allowed[4 + number] = True
        rollout = roll(model, rows=EQUAL, sampling=stp_rs.SamplingParams(allowed=allowed))
        assert set(rollout.token_ids.ravel().tolist()) == {4 + number}
    assert recorder.replays > 0


def test_new_tensors_of_parameters_are_captured_anew(recorder: Recorder):
    model = tiny()
    for _ in range(3):
        roll(model, rows=EQUAL)
    captures = recorder.captures
    for parameter in model.module.parameters():
        parameter.data = parameter.data.clone()
    roll(model, rows=EQUAL)
    assert recorder.captures == 2 * captures


def test_a_step_that_cannot_be_captured_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(_work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    replays = graphs.Replays(broken)
    monkeypatch.setattr(loop, "replays_of", lambda *_: replays)
    model = tiny()
    with caplog.at_level(logging.WARNING, logger="stp_rs"):
        found = [roll(model, rows=EQUAL) for _ in range(3)]
    same(found[2], roll(model, rows=EQUAL, batching=stp_rs.Batching(graphs=False)))
    assert len([r for r in caplog.records if r.name.startswith("stp_rs")]) == 1


def test_the_oldest_graph_goes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    recorder = Recorder()
    replays = graphs.Replays(recorder)

    def make() -> Any:
        return None, lambda: None

    for key in ("a", "a", "b", "b", "c", "c", "b", "c"):
        replays.step(key, make, ragged=False)
    assert recorder.captures == 3
    replays.step("a", make, ragged=False)
    assert recorder.captures == 4


def test_only_small_policies_on_a_cuda_device_are_captured(monkeypatch: pytest.MonkeyPatch):
    model = tiny()
    assert graphs.replays_of(model, 100) is None, "on the CPU nothing is launched"
    monkeypatch.setattr(graphs, "device_of", lambda _model: torch.device("cuda"))
    assert graphs.replays_of(model, 100) is graphs.replays_of(model, 100) is not None
    assert graphs.replays_of(model, 10**12) is None, "its forward is no longer bound by launches"
    assert graphs.replays_of(Tabular(vocab=9, width=4, seed=0), 100) is None, (
        "nobody said that it depends on tensors alone"
    )
    handle = model.module.register_forward_hook(lambda *_: None)
    assert graphs.replays_of(model, 100) is None
    handle.remove()
    model.hidden = model.hidden
    assert graphs.replays_of(model, 100) is None, "a replaced method would not be called"
    assert [graphs.candidates_of(n, 100, 20) for n in (1, 3, 64, 65)] == [1, 4, 64, 100]
    assert graphs.candidates_of(100, 1000, 1 << 20) == 0
