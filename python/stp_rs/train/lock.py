"""The folder of a run: one run at a time, writable, and without what killed runs left behind."""

import contextlib
import errno
import json
import os
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from stp_rs.distributed import is_main, on_main
from stp_rs.errors import CheckpointError, ConfigError, OutOfMemoryError, StorageError, memory_asked
from stp_rs.train.checkpoint import newest_checkpoint, write_json

LOCK = ".run.lock"
"""Locked by the run; the lock dies with its process, the file stays."""
OWNER = ".run.json"
"""Who holds the lock, for whoever is refused."""
PATIENCE = 2.0
"""Seconds to wait for a lock: a killed run's worker processes take a moment to go."""
LOWER = (
    "stp_max_tokens, stp_slots (rollouts), stp_forward_batch_size, per_device_train_batch_size (updates), or set "
    "gradient_checkpointing"
)
"""Which options lower the memory of a run."""
_UNLOCKABLE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE, errno.EMFILE, errno.ENFILE}


@dataclass
class _Held:
    lock: FileLock
    thread: int
    process: int
    depth: int = 0


_HELD: dict[Path, _Held] = {}
_GUARD = threading.RLock()


@contextlib.contextmanager
def run_folder(run: Path) -> Iterator[None]:
    """Hold the folder of a run for a block: made where it is not there, locked, cleared of what killed runs left.

    The thread that holds it may enter again.

    Raises:
        ConfigError: the folder cannot be written, or another run is in it; the message says which.
        StorageError: the block ended because the disk is full, broken or read-only, or the process has no file handle
            left; the newest checkpoint is named.
        OutOfMemoryError: it ended because memory did.
    """
    key = on_main(partial(_hold, run))
    try:
        with _newest_named(run):
            yield
    finally:
        if is_main():
            _release(key)


def _hold(run: Path) -> Path:
    """Return the key of a folder that is now held; the main process holds it for all."""
    key = _take(run)
    try:
        if _HELD[key].depth == 1:
            clear_leftovers(run)
    except BaseException:
        _release(key)
        raise
    return key


def clear_leftovers(run: Path) -> None:
    """Remove what killed runs left in a folder that is held, and in the folders in it (warm-up, kept rollouts).

    Only the run that holds the folder writes checkpoints, so those that are half written are nobody's. Any other file
    that is half written may be that of a command that is at it (a report), and stays while its process lives.
    """
    for folder in (run, *(path for path in run.iterdir() if path.is_dir() and not path.is_symlink())):
        for old in folder.glob("checkpoint-*.old"):
            if old.with_suffix("").exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.replace(old.with_suffix(""))
        for leftover in folder.glob(".*.part"):
            if leftover.is_dir() and leftover.name.startswith(".checkpoint-"):
                shutil.rmtree(leftover, ignore_errors=True)
            elif leftover.is_file() and not _lives(leftover.name.split(".")[-2]):
                leftover.unlink(missing_ok=True)


def _take(run: Path) -> Path:
    try:
        run.mkdir(parents=True, exist_ok=True)
        key = run.resolve()
        with _GUARD:
            held = _HELD.get(key)
            if held is not None and held.process != os.getpid():
                held = None  # of the process that this one was forked from
            if held is not None and held.thread != threading.get_ident():
                raise ConfigError(_refusal(run, f"another thread of this process ({os.getpid()})"))
            if held is None:
                held = _HELD[key] = _Held(_locked(run), threading.get_ident(), os.getpid())
            held.depth += 1
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"output_dir: {run} cannot be written ({reason}); needs a folder of yours") from error
    return key


def _locked(run: Path) -> FileLock:
    lock = FileLock(run / LOCK, timeout=PATIENCE, thread_local=False)
    try:
        lock.acquire()
    except Timeout as refused:
        raise ConfigError(_refusal(run, _owner(run))) from refused
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
        warnings.warn(f"{run}: is on a file system without locks; keep a second run out of it", stacklevel=4)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(run / OWNER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    except BaseException:
        lock.release()
        raise
    return lock


def _release(key: Path) -> None:
    with _GUARD:
        held = _HELD[key]
        if held.process != os.getpid():
            return
        held.depth -= 1
        if held.depth == 0:
            with contextlib.suppress(OSError):
                (key / OWNER).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                held.lock.release()
            del _HELD[key]


def _owner(run: Path) -> str:
    try:
        owner = json.loads((run / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _refusal(run: Path, owner: str) -> str:
    return f"output_dir: {run} is in use by {owner}; wait for that run, stop it, or choose another output_dir"


def _lives(pid: str) -> bool:
    """Return whether a process of this machine has a number; one that is no number is none."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()


@contextlib.contextmanager
def _newest_named(run: Path) -> Iterator[None]:
    """Turn an error of the disk, or of memory, into one that names the newest checkpoint."""
    try:
        yield
    except (StorageError, OutOfMemoryError):
        raise
    except (MemoryError, RuntimeError) as error:
        asked = memory_asked(error)
        if asked is None:
            raise
        raise OutOfMemoryError(f"out of memory: {asked}; lower {LOWER}; {_newest(run)}") from error
    except OSError as error:
        inside = run.resolve() in Path(str(error.filename or "")).resolve().parents
        if not inside and error.errno not in _DISK:
            raise
        raise StorageError(f"{error.filename or run}: {error.strerror or error}; {_newest(run)}") from error


def _newest(run: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            newest = newest_checkpoint(run)
        except (CheckpointError, OSError):
            newest = None
    if newest is None:
        return f"{run} has no checkpoint to go on from"
    return f"the run can go on from {newest.path}"
