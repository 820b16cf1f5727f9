"""Rewards that raise, hang, exit, fork, print, and change the process: the run names them, and is not theirs to end."""

import asyncio
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stp_rs.errors import InvalidValueError, RewardError
from stp_rs.rollout.reward_calls import MOST_PRINTED
from stp_rs.rollout.rewards import Rewards
from stp_rs.train.metrics import read_metrics
from tests.fixtures import LENGTH, ones, trainer

TEXTS = ["good", "bad", "good too"]
ROWS = [{"prompt": str(i)} for i in range(3)]
ONCE = {"stp_rollouts": 2, "num_iterations": 1, "save_strategy": "steps", "save_steps": 2}


def weights(made: Any) -> bytes:
    return b"".join(p.detach().numpy().tobytes() for p in made.model.parameters())


def shares(texts: Sequence[str]) -> list[float]:
    return [text.count("1") / LENGTH for text in texts]


def raises(text: str) -> float:
    raise KeyError(text)


def exits(text: str) -> float:
    sys.exit(0)


def spins(text: str) -> float:
    while True:
        pass


def sleeps(text: str) -> float:
    time.sleep(3600)
    return 0.0


def returns(value: Any) -> Callable[[str], Any]:
    return lambda _text: value


class NoNumber:
    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __repr__(self) -> str:
        raise RuntimeError("nothing to show")


FAULTS: dict[str, tuple[Callable[[str], Any], str]] = {
    "raises": (raises, r"raised KeyError\('bad'\) at test_rewards_that_misbehave.py:\d+"),
    "exits": (exits, r"called sys.exit\(0\)"),
    "spins": (spins, r"did not return within reward_timeout \(0.3 s\)"),
    "sleeps": (sleeps, r"did not return within reward_timeout"),
    "nan": (returns(float("nan")), "got nan for completion 'bad', needs a finite number"),
    "infinity": (returns(float("inf")), "got inf for completion 'bad'"),
    "text": (returns("1"), "got '1' for completion 'bad'"),
    "what cannot be shown": (returns(NoNumber()), "got a NoNumber that cannot be shown for completion 'bad'"),
    "signalling NaN": (returns(Decimal("sNaN")), r"got Decimal\('sNaN'\) for completion 'bad'"),
    "complex": (returns(1j), "got 1j for completion 'bad'"),
    "list": (returns([1.0]), r"got \[1.0\] for completion 'bad'"),
}


def faulty(act: Callable[[str], Any]) -> Callable[..., list[float]]:
    def judge(completions: list[str]) -> list[float]:
        return [act(text) if text == "bad" else 1.0 for text in completions]

    return judge


@pytest.mark.parametrize("fault", FAULTS)
def test_the_function_and_the_completion_are_named(fault: str):
    act, message = FAULTS[fault]
    with pytest.raises((RewardError, InvalidValueError), match=f"reward judge: {message}") as caught:
        Rewards(faulty(act), timeout=0.3).score(TEXTS, ROWS)
    assert "completion 1 ('bad')" in str(caught.value) or "completion 'bad'" in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_where_it_is_asked_to_the_row_is_scored_none_and_the_others_are_not(fault: str):
    act, message = FAULTS[fault]
    with pytest.warns(UserWarning, match=rf"reward judge: {message}.*completion 1 \('bad'\); it is scored None"):
        scores = Rewards(
            [faulty(act), lambda completions: [1.0] * len(completions)], timeout=0.3, skip_errors=True
        ).score(TEXTS, ROWS)
    assert scores.total.tolist() == [2.0, 1.0, 2.0]
    assert np.isnan(scores.by_name["judge"]).tolist() == [False, True, False]
    assert scores.metrics == {"rewards/judge/failed": 1.0}


class Silent(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("nothing to show")


def drawn_to_its_end(completions: list[str]) -> Iterator[float]:
    yield 1.0
    raise KeyError("in the middle")


def silent(completions: list[str]) -> list[float]:
    raise Silent


UNREADABLE: dict[str, tuple[Callable[[list[str]], Any], str]] = {
    "a generator that raises": (drawn_to_its_end, r"what it returned cannot be read: KeyError\('in the middle'\)"),
    "a tensor without data": (lambda completions: torch.ones(3, device="meta"), "what it returned cannot be read"),
    "a sparse tensor": (lambda completions: torch.ones(3).to_sparse(), "what it returned cannot be read"),
    "an error that cannot be shown": (silent, "raised a Silent that cannot be shown"),
    "an object that cannot be shown": (lambda completions: NoNumber(), "got NoNumber a NoNumber that cannot be shown"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_or_shown_is_the_functions_fault(name: str):
    act, message = UNREADABLE[name]
    with pytest.raises((RewardError, InvalidValueError), match=rf"reward [\w<>]+: {message}"):
        Rewards(act).score(TEXTS, ROWS)
    with pytest.warns(UserWarning, match="it is scored None"):
        scores = Rewards([act, lambda completions: [1.0] * len(completions)], skip_errors=True).score(TEXTS, ROWS)
    assert scores.total[2] >= 1.0


NUMBERS: dict[str, Callable[[int], Any]] = {
    "numpy bools": lambda n: [np.bool_(True)] * n,
    "a tensor with a gradient": lambda n: torch.ones(n, requires_grad=True) * 1,
    "tensors with gradients": lambda n: [torch.tensor(1.0, requires_grad=True)] * n,
    "decimals": lambda n: [Decimal(1)] * n,
    "fractions": lambda n: [Fraction(1)] * n,
    "a generator": lambda n: (1 for _ in range(n)),
    "an array of objects": lambda n: np.array([1] * n, dtype=object),
    "a masked array": lambda n: np.ma.masked_array(np.ones(n), mask=[False] * n),
    "big integers of one": lambda n: [10**400 // 10**400] * n,
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_every_kind_are_numbers(kind: str):
    scores = Rewards(lambda completions: NUMBERS[kind](len(completions))).score(TEXTS, ROWS)
    assert scores.total.tolist() == [1.0, 1.0, 1.0]


def test_a_function_that_removes_the_runs_folder_ends_nothing(tmp_path: Path):
    run = tmp_path / "run"

    def removing(completions: list[str]) -> list[float]:
        shutil.rmtree(run, ignore_errors=True)
        return shares(completions)

    made = trainer(run, reward=removing, **ONCE)
    made.train()
    assert made.state.global_step == 2
    assert (run / "checkpoint-2" / "model.safetensors").is_file()


def test_timeouts_hold_off_the_main_thread_too():
    found: list[BaseException] = []

    def endless(completions: list[str]) -> list[float]:
        return [spins(text) for text in completions]

    def work() -> None:
        try:
            Rewards(endless, timeout=0.3).score(TEXTS, ROWS)
        except RewardError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(300)
    assert "did not return" in str(found[0])
    deadline = time.monotonic() + 300
    while any(t.name == "reward endless" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(t.name == "reward endless" for t in threading.enumerate()), "a loop in Python is ended"


async def waits(text: str) -> float:
    await asyncio.sleep(3600)
    return 0.0


async def exits_later(text: str) -> float:
    raise SystemExit(0)


@pytest.mark.parametrize(("act", "message"), [(waits, "did not return within"), (exits_later, r"called sys.exit\(0\)")])
def test_coroutines_too(act: Callable[[str], Any], message: str):
    async def judge(completions: list[str]) -> list[float]:
        return [await act(text) if text == "bad" else 1.0 for text in completions]

    with pytest.raises(RewardError, match=rf"reward judge: {message}.* for completion 1 \('bad'\)"):
        Rewards(judge, timeout=0.5).score(TEXTS, ROWS)
    with pytest.warns(UserWarning, match=message):
        scores = Rewards([judge], timeout=0.5, skip_errors=True).score(TEXTS, ROWS)
    assert np.isnan(scores.total).tolist() == [False, True, False]


def test_a_function_that_fails_on_a_batch_alone_says_so():
    def together(completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise OSError("too many")
        return [1.0]

    with pytest.raises(
        RewardError, match=r"raised OSError\('too many'\).* for a batch of 3, and for none of them alone"
    ):
        Rewards(together).score(TEXTS, ROWS)
    assert Rewards(together, skip_errors=True).score(TEXTS, ROWS).total.tolist() == [1.0] * 3


def test_ctrl_c_is_not_the_functions_fault():
    def stopped(completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Rewards(stopped, skip_errors=True).score(TEXTS, ROWS)


# --- in a run ---


def goes_elsewhere() -> None:
    os.chdir("/")


NOWHERE = io.StringIO()


CHANGES: dict[str, tuple[Callable[[], Any], str]] = {
    "folder": (goes_elsewhere, "the working folder"),
    "gradients": (lambda: torch.set_grad_enabled(False), "torch.set_grad_enabled"),
    "dtype": (lambda: torch.set_default_dtype(torch.float64), "torch.set_default_dtype"),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "torch.set_num_threads"),
    "strict": (lambda: torch.use_deterministic_algorithms(True), "torch.use_deterministic_algorithms"),
    "signals": (lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "signal handlers"),
    "alarm": (lambda: signal.setitimer(signal.ITIMER_REAL, 3600), "an alarm"),
    "stdout": (lambda: setattr(sys, "stdout", None), "stdout"),
    "stderr": (lambda: setattr(sys, "stderr", NOWHERE), "stderr"),
}


@pytest.mark.timeout(0)  # its alarm would be in the way of ours
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_function_changes_of_the_process_is_put_back_and_said(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    act, said = CHANGES[change]
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr, torch.get_num_threads(), Path.cwd()

    def vandal(completions: list[str], **_: Any) -> list[float]:
        act()
        return shares(completions)

    plain = trainer(Path("plain"), reward=ones, **ONCE)
    plain.train()
    made = trainer(Path("run"), reward=vandal, **ONCE)
    with pytest.warns(UserWarning, match=f"reward vandal: changed {said}; it is put back"):
        made.train()
    assert (signal.getsignal(signal.SIGINT), sys.stdout, sys.stderr, torch.get_num_threads(), Path.cwd()) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert weights(made) == weights(plain)
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == len(
        read_metrics(tmp_path / "plain" / "metrics.jsonl")
    )


def test_global_generators_are_the_functions_own(tmp_path: Path):
    """Nothing in a run reads them, so that a reward that draws goes on drawing."""
    drawn: list[float] = []

    def draws(completions: list[str], **_: Any) -> list[float]:
        torch.manual_seed(len(drawn))
        np.random.seed(7)
        drawn.append(random.random())
        return shares(completions)

    plain, made = trainer(tmp_path / "plain", **ONCE), trainer(tmp_path / "run", reward=draws, **ONCE)
    plain.train()
    made.train()
    assert weights(made) == weights(plain)
    assert len(set(drawn)) == len(drawn) == 2


def test_megabytes_of_print_are_bounded_and_said(capsys: pytest.CaptureFixture[str]):
    def chatty(completions: list[str]) -> list[float]:
        print("x" * (1 << 21))
        print("short", file=sys.stderr)
        return [1.0] * len(completions)

    with pytest.warns(UserWarning, match="reward chatty: printed 2,097,153 characters to stdout in one call"):
        Rewards(chatty).score(TEXTS, ROWS)
    shown = capsys.readouterr()
    assert len(shown.out) == MOST_PRINTED
    assert shown.err == "short\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("timeout", [None, 60.0], ids=["called", "in a thread"])
@pytest.mark.parametrize("end", ["returns", "raises", "exits"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_train_on(end: str, timeout: float | None, tmp_path: Path):
    children: list[int] = []

    def forks(completions: list[str], **_: Any) -> list[float]:
        pid = os.fork()
        if pid == 0:
            if end == "raises":
                raise ValueError("in the child")
            if end == "exits":
                sys.exit(0)
        else:
            children.append(pid)
        return shares(completions)

    plain = trainer(tmp_path / "plain", **ONCE)
    plain.train()
    made = trainer(tmp_path / "run", reward=forks, **ONCE, **({"reward_timeout": timeout} if timeout else {}))
    made.train()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [1, 1]
    assert weights(made) == weights(plain)
    steps = [line.split(",")[0] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len(set(steps)), "each step once"


def test_options_of_a_run_reach_its_rewards(tmp_path: Path):
    def judge(completions: list[str], **_: Any) -> list[float]:
        if len(completions) > 1:
            raise KeyError("batch")
        if completions[0].startswith("1"):
            spins(completions[0])
        return shares(completions)

    with pytest.raises(
        RewardError, match=r"reward judge: did not return within reward_timeout \(0.2 s\) for completion"
    ):
        trainer(tmp_path / "stop", reward=judge, **ONCE, reward_timeout=0.2).train()
    made = trainer(tmp_path / "run", reward=judge, **ONCE, reward_timeout=0.2, stp_reward_errors="skip")
    with pytest.warns(UserWarning, match="it is scored None"):
        made.train()
    assert made.state.global_step == 2
    assert any(line.get("rewards/judge/failed", 0) > 0 for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))


def test_an_exit_does_not_look_like_success(tmp_path: Path):
    made = trainer(tmp_path, reward=lambda completions, **_: sys.exit(0), **ONCE)
    with pytest.raises(RewardError, match=r"called sys.exit\(0\)"), contextlib.suppress(SystemExit):
        made.train()
    assert made.state.global_step == 0
