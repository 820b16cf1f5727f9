"""Kills and disk faults over runs of a very small policy: nothing saved is lost, and what comes out is the same run.

A warm process forks a child for every attempt at a run. The child is killed at a random moment, or its disk fails at a
random operation: no space, an input/output error, or files that may not grow (by a limit of the system, so that files
written outside of Python fail too). Then the run goes on in the next child. After each fault the newest checkpoint must
be readable and not older than before; at the end, weights and metrics must be those of a run that nobody disturbed, and
nothing may be left over.

    python -m tests.reliability.kills --kills 700 --faults 400
"""

import argparse
import contextlib
import errno
import hashlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

UPDATES = 3
KILLED, FAILED = "kill -9", "disk fault"


def train(folder: Path) -> None:
    """Make the run, or go on with it."""
    from transformers.utils.logging import disable_progress_bar

    from tests.fixtures import trainer

    disable_progress_bar()
    made = trainer(folder, stp_rollouts=UPDATES, num_iterations=1, save_strategy="steps", save_steps=1, logging_steps=1)
    made.train(resume_from_checkpoint="auto")


def state_of(folder: Path) -> tuple[str, list[dict[str, float]]]:
    """Return what a run leaves: a hash of its weights, and its metrics."""
    from stp_rs.train.metrics import read_metrics

    weights = (folder / f"checkpoint-{UPDATES}" / "model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest(), read_metrics(folder / "metrics.jsonl")


def newest_step(folder: Path) -> int:
    """Return the step of the newest intact checkpoint, 0 where there is none; a damaged one raises."""
    from stp_rs.train.checkpoint import newest_checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = newest_checkpoint(folder) if folder.is_dir() else None
    return 0 if found is None else found.step


# --- a disk that fails ---

CALLS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("fsync", "replace", "mkdir", "rmdir", "unlink", "open", "scandir")),
    (io, "open"),
)


class FailingDisk:
    """Makes the file operation number `at` fail, and those after it too where the fault `stays`."""

    def __init__(self, at: int, code: int, *, stays: bool) -> None:
        self.left, self.code, self.stays = at, code, stays

    def install(self) -> None:
        """Put itself before the file operations of this process."""
        for owner, name in CALLS:
            setattr(owner, name, self._before(getattr(owner, name)))

    def _before(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            writes = original is not io_open or any(letter in _mode(args, kwargs) for letter in "wax+")
            if writes:
                self.left -= 1
                if self.left == 0 or (self.stays and self.left < 0):
                    raise OSError(self.code, os.strerror(self.code), str(args[0]) if args else None)
            return original(*args, **kwargs)

        return call


io_open = io.open


def _mode(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return str(args[1] if len(args) > 1 else kwargs.get("mode", "r"))


def fail_disk(draw: random.Random, operations: int) -> str:
    """Make the disk of this process fail at one of so many operations, or at some size of a file; return how."""
    if draw.random() < 0.4:
        most = int(draw.choice((0, 10, 100, 1000, 5000, 20_000)) * (0.5 + draw.random()))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return f"files of at most {most} bytes"
    code = draw.choice((errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS))
    at = draw.randint(1, operations)
    FailingDisk(at, code, stays=draw.random() < 0.5).install()
    return f"{os.strerror(code)} at operation {at}"


# --- attempts ---

DONE, TYPED, UNTYPED = 0, 2, 3


def operations_of(folder: Path) -> int:
    """Return the file operations of a whole run, counted in a child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        disk = FailingDisk(1 << 30, errno.EIO, stays=False)
        disk.install()
        train(folder)
        os.write(write, str((1 << 30) - disk.left).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return int(pipe.read())


def attempt(folder: Path, kind: str, seed: int, after: float, operations: int) -> tuple[str, str]:
    """Make one attempt in a child; return how it ended (done, killed, typed error, untyped error) and what it said."""
    said = folder.parent / "said"
    said.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _child(folder, kind, seed, said, operations)
    if kind == KILLED:
        deadline = time.monotonic() + after
        while time.monotonic() < deadline:
            if os.waitpid(child, os.WNOHANG)[0]:
                return "done", ""
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = said.read_text(encoding="utf-8") if said.exists() else ""
    return {DONE: "done", TYPED: "typed error", -signal.SIGKILL: "killed"}.get(code, "untyped error"), text


def _child(folder: Path, kind: str, seed: int, said: Path, operations: int) -> None:
    code = UNTYPED
    handle = os.open(said, os.O_WRONLY | os.O_CREAT)
    try:
        from stp_rs.errors import StpError

        warnings.simplefilter("ignore")
        how = fail_disk(random.Random(seed), operations) if kind == FAILED else ""
        try:
            train(folder)
            code = DONE
        except (StpError, OSError):
            code = TYPED
        except BaseException:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            os.write(handle, (how + "\n" + traceback.format_exc()).encode()[-4000:])
    finally:
        os._exit(code)


def run(kills: int, faults: int, *, seed: int = 0, keep: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Disturb runs until there were so many kills and faults; return what happened how often, and what is wrong."""
    draw, counts, wrong = random.Random(seed), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="stp rs ") as room:
        whole = Path(room) / "whole"
        train(whole)
        expected, operations = state_of(whole), operations_of(Path(room) / "counted")
        started = time.monotonic()
        attempt(Path(room) / "timed", "", 0, 0.0, operations)
        duration = time.monotonic() - started
        number = 0
        while kills > 0 or faults > 0:
            number += 1
            folder, disturbed, ended, newest = Path(room) / f"run-{number}", 0, "", 0
            while ended != "done":
                kind = draw.choice([k for k, left in ((KILLED, kills), (FAILED, faults)) if left > 0] or [""])
                kind = "" if disturbed >= 12 else kind  # a run that ends, after so many faults
                ended, text = attempt(folder, kind, draw.getrandbits(32), draw.random() * duration, operations)
                if ended in ("killed", "typed error", "untyped error"):
                    disturbed += 1
                    counts[kind or "none"] += 1
                    kills, faults = kills - (kind == KILLED), faults - (kind == FAILED)
                counts[ended] += 1
                duration *= 0.9 if ended == "done" and kind == KILLED else 1.0  # it was too late
                duration *= 1.02 if ended == "killed" else 1.0
                if ended == "untyped error" or (ended == "typed error" and not kind):
                    wrong.append(f"run {number}, seed {seed}: {ended} after {kind or 'nothing'}: {text[-1500:]}")
                    if not kind:
                        break
                try:
                    step = newest_step(folder)
                except Exception as error:
                    wrong.append(f"run {number}, seed {seed}: after {kind}: {error!r}")
                    break
                if step < newest:
                    wrong.append(f"run {number}, seed {seed}: checkpoint {newest} was lost, {step} is the newest")
                newest = step
            if ended == "done":
                counts["runs finished"] += 1
                wrong += _compared(folder, expected, f"run {number}, seed {seed}, after {disturbed} faults")
            if wrong and keep is not None:
                shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    return counts, wrong


def _compared(folder: Path, expected: tuple[str, list[dict[str, float]]], name: str) -> list[str]:
    weights, metrics = state_of(folder)
    left = sorted(p.name for p in folder.rglob("*") if p.name.endswith((".part", ".old")) or p.name == "writable")
    found = []
    if weights != expected[0]:
        found.append(f"{name}: other weights")
    if metrics != expected[1]:
        found.append(f"{name}: other metrics")
    if left:
        found.append(f"{name}: left over: {left}")
    return found


def main() -> int:
    """Run a command line; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=700)
    parser.add_argument("--faults", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for copies of runs that went wrong")
    args = parser.parse_args()
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()):
        counts, wrong = run(args.kills, args.faults, seed=args.seed, keep=args.keep)
    print(f"{counts[KILLED]} kills, {counts[FAILED]} disk faults in {time.monotonic() - started:.0f} s: {dict(counts)}")
    print(f"{len(wrong)} wrong")
    print(*wrong[:20], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
