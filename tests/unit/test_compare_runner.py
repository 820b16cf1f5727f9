"""The order of runs under a budget of seconds, with warm-ups that they share; no process is started."""

import threading
from pathlib import Path
from typing import Any

import pytest

from stp_rs.errors import StpError
from studies.compare import runner
from studies.compare.plan import Comparison, Job
from studies.compare.variants import parse_variants

SECONDS = {"stp": 10.0, "elbo": 40.0, "warm-up": 20.0}


def jobs(tmp_path: Path, seeds: tuple[int, ...] = (0, 1)) -> list[Job]:
    plan = Comparison(parse_variants("stp,elbo"), seeds, {"task": "sudoku"}, output_dir=str(tmp_path), seconds=SECONDS)
    return plan.jobs()


class FakeClock(runner.Clock):
    """A budget whose time the test moves."""

    now = 0.0

    def left(self) -> float:
        return self.budget - FakeClock.now

    def learn(self, expected: float, took: float) -> None:
        """The plan is right."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Processes that take what the plan says, one after another; what was started, in order."""
    started: list[str] = []
    lock = threading.Lock()
    FakeClock.now = 0.0

    def work(self: runner.Processes, job: Job, *flags: str) -> None:
        with lock:
            started.append(job.name + (" warm-up" if flags else ""))
            FakeClock.now += job.warm_up_seconds if flags else job.seconds
        if FakeClock.now > 1000:
            raise StpError("stopped")
        if flags:
            shared = runner.shared_weights(job)
            assert shared is not None
            shared.mkdir(parents=True)

    def read(job: Job) -> dict[str, Any]:
        point = {"solved_free": 0.5, "cpu_seconds": 1.0}
        return {"curve": [point, point], "test": {"solved_free": 0.5, "solved_prior": 0.5}, "name": job.name}

    monkeypatch.setattr(runner.Processes, "_work", work)
    monkeypatch.setattr(runner, "read_record", read)
    monkeypatch.setattr(runner, "Clock", FakeClock)
    return started


def test_a_warm_up_is_made_once_and_seeds_are_done_in_order(tmp_path: Path, world: list[str]):
    kept: list[int] = []
    records, failures, late = runner.run_jobs(jobs(tmp_path), 1, lambda _: None, keep=lambda r: kept.append(len(r)))
    assert world == [
        *("sudoku, stp seed 0 warm-up", "sudoku, stp seed 0", "sudoku, elbo seed 0"),
        *("sudoku, stp seed 1 warm-up", "sudoku, stp seed 1", "sudoku, elbo seed 1"),
    ]
    assert [record["name"] for record in records] == [job.name for job in jobs(tmp_path)]
    assert (failures, late, kept) == ([], [], [1, 2, 3, 4])


def test_no_run_starts_that_its_estimate_does_not_let_finish(tmp_path: Path, world: list[str]):
    records, _, late = runner.run_jobs(jobs(tmp_path), 1, lambda _: None, budget_seconds=110)
    # warm-up 20, stp 10, elbo 40 of 110: 40 are left for 20 + 10, not for 20 + 40
    assert [record["name"] for record in records] == ["sudoku, stp seed 0", "sudoku, elbo seed 0", "sudoku, stp seed 1"]
    assert late == ["sudoku, elbo seed 1"]


def test_idle_processes_make_the_warm_ups_of_a_later_call(tmp_path: Path, world: list[str]):
    runner.run_jobs(jobs(tmp_path, (0,)), 1, lambda _: None, warm_ups=jobs(tmp_path, (1, 0)))
    assert world[-1] == "sudoku, stp seed 1 warm-up"
    assert len(world) == 4
    runner.run_jobs(jobs(tmp_path, (1,)), 1, lambda _: None)
    assert len(world) == 6, "not made again"


def test_estimates_follow_the_runs_that_finished():
    clock = runner.Clock(100.0)
    assert clock.fits(90.0)
    assert not clock.fits(95.0), "a margin"
    clock.learn(10.0, 5.0)
    clock.learn(0.0, 50.0)
    assert clock.fits(150.0)
    assert runner.Clock(0.0).fits(1e9), "no budget, no bound"
