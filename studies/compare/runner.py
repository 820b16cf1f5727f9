"""Runs of a comparison, one process each, some at a time; what is finished is not done again."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from stp_rs.cli.run import write_config
from stp_rs.config.sections import STPConfig
from stp_rs.errors import StpError
from studies.compare.plan import Job, run_identity
from studies.compare.worker import RESULT

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
            write_config(job.config, job.folder)
            threads = job.config.num_threads
            environment = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ, **_import_path()}
            log = job.folder / "log.txt"
            with log.open("wb") as file, self._lock:
                if self._stopped:
                    raise StpError("not started: the comparison was stopped")
                process = subprocess.Popen(
                    [sys.executable, "-m", "studies.compare.worker", str(job.folder)],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                )
                self._running.add(process)
            code = process.wait()
            self._running.discard(process)
            if code != 0:
                raise StpError(last_line(log) or f"the process ended with code {code}")
        return read_record(job)

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


def run_jobs(jobs: Sequence[Job], at_once: int, tell: Callable[[str], None]) -> tuple[list[Record], list[Record]]:
    """Return the records of the runs that finished, in the order of `jobs`, and (variant, seed, error) of the others.

    Args:
        jobs: what to run; a finished run is read, an unfinished one goes on from its newest checkpoint.
        at_once: processes at a time.
        tell: gets a line per run.
    """
    started, processes = time.monotonic(), Processes()
    old = {job.name for job in jobs if (job.folder / RESULT).is_file()}
    records: dict[str, Record] = {}
    failures: list[Record] = []
    with ThreadPoolExecutor(max_workers=max(1, at_once)) as pool:
        futures = {pool.submit(processes.run, job): job for job in jobs}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                job = futures[future]
                made = max(1, done - len(old))
                left = (time.monotonic() - started) / made * (len(jobs) - done) if done > len(old) else 0.0
                where = f"[{done}/{len(jobs)}] {job.name}: "
                try:
                    records[job.name] = future.result()
                except (StpError, OSError, ValueError) as error:
                    text = " ".join(str(error).split())
                    failures.append({"variant": job.variant.name, "seed": job.config.seed, "error": text})
                    tell(f"{where}FAILED: {text}")
                    continue
                again = "  (read)" if job.name in old else f"  {duration(left)} left" if done < len(jobs) else ""
                tell(f"{where}{outcome(records[job.name])}{again}")
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
    return [records[job.name] for job in jobs if job.name in records], failures


def outcome(record: Record) -> str:
    """Return a run's scores and cost in a line."""
    first, last = record["curve"][0], record["curve"][-1]
    return (
        f"solved {first['solved_free']:.3f} -> {last['solved_free']:.3f} (validation, free), test "
        f"{record['test']['solved_free']:.3f} free, {record['test']['solved_prior']:.3f} with priors; "
        f"{last['cpu_seconds']:.0f} CPU s"
    )


def duration(seconds: float) -> str:
    """Return seconds for a reader."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def check_folder(job: Job) -> None:
    """Check that a job's folder is new, or holds the same run.

    Raises:
        StpError: it holds a run of other settings.
    """
    path = job.folder / "config.yaml"
    if not path.is_file():
        return
    ours, theirs = run_identity(job.config), run_identity(STPConfig.from_yaml(path))
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
