"""Runs of a comparison, one process each, some at a time; what is finished is not done again."""

import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from stp_rs.cli.run import complete, make_task
from stp_rs.config import TaskConfig
from stp_rs.errors import StpError
from stp_rs.train.folder import write_config
from studies.compare.plan import Job, run_identity
from studies.compare.worker import RESULT, shared_warm_up

Record = dict[str, Any]
"""A run in the JSON: variant, preset, task, seed, options, folder, and what its result.json holds."""


class Processes:
    """Worker processes in flight, so that all can be stopped."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._lock = threading.Lock()  # between a decision to start a process and its being listed

    def run(self, job: Job) -> Record:
        """Return the record of a job, from its folder or by doing it.

        Raises:
            StpError: the run failed; the message is its error's last line.
        """
        check_folder(job)
        if not (job.folder / RESULT).is_file():
            self._work(job)
        return read_record(job)

    def warm_up(self, job: Job) -> None:
        """Make the policy that a job starts from, which others may share.

        Raises:
            StpError: it failed.
        """
        self._work(job, "--warm-up")

    def _work(self, job: Job, *flags: str) -> None:
        check_folder(job)
        write_config(job.config, job.folder)
        threads = job.config.stp_num_threads
        environment = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ, **_import_path()}
        log = job.folder / "log.txt"
        with log.open("wb") as file, self._lock:
            if self._stopped:
                raise StpError("not started: the comparison was stopped")
            process = subprocess.Popen(
                [sys.executable, "-m", "studies.compare.worker", *flags, str(job.folder)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            self._running.add(process)
        code = process.wait()
        self._running.discard(process)
        if code != 0:
            raise StpError(last_line(log) or f"the process ended with code {code}")

    def stop(self) -> None:
        """End the workers and start no other; their checkpoints stay."""
        with self._lock:
            self._stopped = True
            for process in list(self._running):
                process.terminate()


def _import_path() -> dict[str, str]:
    """Return the environment in which a process finds this package, wherever it starts."""
    root = str(Path(__file__).resolve().parents[2])
    return {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


MARGIN = 1.1
"""A run is started within a budget if this many times its estimate is left."""


class Clock:
    """What is left of a budget of seconds, and whether a run fits: estimates are scaled by the runs that finished."""

    def __init__(self, budget_seconds: float) -> None:
        self.started, self.budget = time.monotonic(), budget_seconds or math.inf
        self._ratios: list[float] = []

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.budget - (time.monotonic() - self.started)

    def fits(self, seconds: float) -> bool:
        """Return whether something that is expected to take so long fits."""
        scale = statistics.median(self._ratios) if self._ratios else 1.0
        return MARGIN * scale * seconds <= self.left()

    def learn(self, expected: float, took: float) -> None:
        """Note how long a run took that was expected to take some seconds."""
        if expected > 0:
            self._ratios.append(took / expected)


class Queue:
    """What waits to run, in order, and the warm-ups that several of the runs start from.

    Args:
        jobs: the runs.
        clock: says what still fits.
        warm_ups: jobs of which only the warm-up is made, where no run can start.
    """

    def __init__(self, jobs: Sequence[Job], clock: Clock, warm_ups: Sequence[Job] = ()) -> None:
        self.waiting, self._later, self._clock = list(jobs), list(warm_ups), clock
        self._shared = {job.folder: shared_weights(job) for job in (*jobs, *warm_ups)}
        counts = Counter(self._shared[job.folder] for job in jobs)
        self._cold = {path for path, count in counts.items() if count > 1 and path and not path.exists()}
        self._making: set[Path | None] = set()

    def start(self) -> tuple[Job, bool] | None:
        """Return the first run that can start and finish in time, and whether only its warm-up is made now."""
        for job in self.waiting:
            path = self._shared[job.folder]
            cold = path in self._cold
            if path in self._making or not self._clock.fits(job.seconds + (job.warm_up_seconds if cold else 0.0)):
                continue
            if cold:
                self._cold.discard(path)
                self._making.add(path)
            else:
                self.waiting.remove(job)
            return job, cold
        while self._later:
            job = self._later.pop(0)
            path = self._shared[job.folder]
            if path and not path.exists() and path not in self._making:
                self._making.add(path)
                return job, True
        return None

    def warmed(self, job: Job) -> None:
        """Note that the warm-up of a job is made; one that failed is left to the runs, which say why."""
        self._making.discard(self._shared[job.folder])


def shared_weights(job: Job) -> Path | None:
    """Return where the weights are, or will be, that a run and others start from; None where it has its own."""
    if job.config.model_name_or_path or (job.folder / "warmup").exists() or (job.folder / RESULT).is_file():
        return None
    return shared_warm_up(complete(job.config, make_task(job.config)), job.folder) / "warmup"


def run_jobs(
    jobs: Sequence[Job],
    at_once: int,
    tell: Callable[[str], None],
    *,
    budget_seconds: float = 0.0,
    keep: Callable[[list[Record]], None] = lambda _: None,
    warm_ups: Sequence[Job] = (),
) -> tuple[list[Record], list[Record], list[str]]:
    """Return the records of the runs that finished, in the order of `jobs`, errors of others, and what had no time.

    A warm-up that several runs start from is made by itself before them; meanwhile runs that need another go on.

    Args:
        jobs: what to run, in this order; a finished run is read, an unfinished one goes on from its newest checkpoint.
        at_once: processes at a time.
        tell: gets a line per run.
        budget_seconds: no run is started that cannot finish in it by its estimate, and what runs at its end is stopped;
            0 is no bound.
        keep: gets the records so far after every run.
        warm_ups: jobs whose warm-ups are made where a process is idle: those of a later call.
    """
    clock, processes = Clock(budget_seconds), Processes()
    queue, old = Queue(jobs, clock, warm_ups), {job.folder for job in jobs if (job.folder / RESULT).is_file()}
    running: dict[Future[Any], tuple[Job, bool, float]] = {}
    records: dict[Path, Record] = {}
    failures: list[Record] = []
    late: list[str] = []
    with ThreadPoolExecutor(max_workers=max(1, at_once)) as pool:
        try:
            while True:
                while len(running) < at_once and (found := queue.start()):
                    job, cold = found
                    work = pool.submit(processes.warm_up if cold else processes.run, job)
                    running[work] = (job, cold, time.monotonic())
                if not running:
                    break
                timeout = max(0.0, clock.left()) if budget_seconds else None
                finished = wait(running, timeout, FIRST_COMPLETED).done
                if not finished:
                    processes.stop()
                    finished = wait(running).done
                for work in finished:
                    job, cold, began = running.pop(work)
                    if cold:
                        queue.warmed(job)
                        clock.learn(job.warm_up_seconds, time.monotonic() - began)
                    elif clock.left() <= 0 and work.exception() is not None:
                        late.append(job.name)
                    else:
                        done = len(records) + len(failures) + 1
                        where = f"[{done}/{len(jobs)}] {job.name}: "
                        try:
                            records[job.folder] = work.result() or {}
                        except (StpError, OSError, ValueError) as error:
                            text = " ".join(str(error).split())
                            failures.append({"variant": job.variant.name, "seed": job.config.seed, "error": text})
                            tell(f"{where}FAILED: {text}")
                            continue
                        tell(where + outcome(records[job.folder]) + ("  (read)" if job.folder in old else ""))
                        if job.folder not in old:
                            clock.learn(job.seconds, time.monotonic() - began)
                        keep(_in_order(jobs, records))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
    return _in_order(jobs, records), failures, [*late, *(job.name for job in queue.waiting)]


def _in_order(jobs: Sequence[Job], records: Mapping[Path, Record]) -> list[Record]:
    return [records[job.folder] for job in jobs if job.folder in records]


def outcome(record: Record) -> str:
    """Return a run's scores and cost in a line."""
    first, last = record["curve"][0], record["curve"][-1]
    return (
        f"solved {first['solved_free']:.3f} -> {last['solved_free']:.3f} (validation, free), test "
        f"{record['test']['solved_free']:.3f} free, {record['test']['solved_prior']:.3f} with priors; "
        f"{last['cpu_seconds']:.0f} CPU s"
    )


def check_folder(job: Job) -> None:
    """Check that a job's folder is new, or holds the same run.

    Raises:
        StpError: it holds a run of other settings.
    """
    path = job.folder / "config.yaml"
    if not path.is_file():
        return
    ours, theirs = run_identity(job.config), run_identity(TaskConfig.from_yaml(path))
    changed = [name for name in ours if ours[name] != theirs[name]]
    if changed:
        raise StpError(
            f"{job.folder} holds a run of other settings ({', '.join(changed)}); delete it, restore them, give the "
            "variant a NAME= of its own, or use another --output_dir"
        )


def read_record(job: Job) -> Record:
    """Return a finished run."""
    result: Record = json.loads((job.folder / RESULT).read_text(encoding="utf-8"))
    return {
        "variant": job.variant.name,
        "preset": job.config.preset,
        "task": job.config.task,
        "seed": job.config.seed,
        "options": dict(job.variant.options),
        "folder": str(job.folder),
        **result,
    }


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")
