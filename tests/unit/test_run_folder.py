"""The folder of a run: one run in it, no leftovers of killed ones, and one line where the disk gives out."""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from stp_rs import train
from stp_rs.cli.terminal import guarded
from stp_rs.errors import ConfigError, OutOfMemoryError, StorageError
from stp_rs.train import checkpoint, lock
from stp_rs.train.callbacks import MetricsFile
from stp_rs.train.lock import LOCK, OWNER, clear_leftovers, run_folder
from tests.fixtures import trainer

ROOT = Path(__file__).resolve().parents[2]
TWO = {"stp_rollouts": 2, "num_iterations": 1, "save_strategy": "steps", "save_steps": 1}
HOLD = """
import sys, time
from pathlib import Path
from stp_rs.train.lock import run_folder
with run_folder(Path(sys.argv[1])):
    print("held", flush=True)
    {then}
"""


@contextlib.contextmanager
def holder(run: Path, then: str = "time.sleep(600)") -> Iterator[subprocess.Popen[str]]:
    """Give a process that holds a folder; it is killed at the end."""
    command = [sys.executable, "-c", HOLD.format(then=then), str(run)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_run_is_refused_with_the_first_ones_process_and_touches_nothing(tmp_path: Path):
    with holder(tmp_path) as process:
        half = tmp_path / f".checkpoint-3.{process.pid}.part"
        half.mkdir()
        seen = (
            rf"output_dir: .* is in use by process {process.pid} on {socket.gethostname()}, since .*; wait for that run"
        )
        with pytest.raises(ConfigError, match=seen):
            trainer(tmp_path, **TWO).train()
        assert half.is_dir(), "a live run is at work on it"
        assert {path.name for path in tmp_path.iterdir()} == {LOCK, OWNER, half.name}
    trainer(tmp_path, **TWO).train()
    assert not half.exists()
    assert not (tmp_path / OWNER).exists()


def test_the_lock_dies_with_its_process_though_a_child_of_it_lives(tmp_path: Path):
    fork = "import os; pid = os.fork(); print(pid, flush=True) if pid else None; time.sleep(600)"
    with holder(tmp_path, fork) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
    try:
        with run_folder(tmp_path):
            assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    finally:
        os.kill(child, signal.SIGKILL)


def test_runs_that_start_at_the_same_moment_are_one_run(tmp_path: Path):
    run = tmp_path / "new" / "folder"
    script = HOLD.format(then="time.sleep(4)")
    command = [sys.executable, "-c", script, str(run)]
    several = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    told = [process.communicate(timeout=120) for process in several]
    refused = [err for out, err in told if out != "held\n"]
    codes = sorted(process.returncode for process in several)
    assert len(refused) == sum(codes)  # each refused one failed, each other one ran
    assert len(refused) >= 1
    assert all("is in use by" in err and "Traceback" in err for err in refused)


def test_the_thread_that_holds_a_folder_may_enter_again_and_no_other(tmp_path: Path):
    refused: list[str] = []

    def other() -> None:
        try:
            with run_folder(tmp_path):
                pass
        except ConfigError as error:
            refused.append(str(error))

    with run_folder(tmp_path), run_folder(tmp_path / "."):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(refused) == 1
        assert "another thread of this process" in refused[0]
    other()
    assert len(refused) == 1


def test_a_forked_child_that_returns_frees_nothing(tmp_path: Path):
    then = "import os; child = os.fork()"  # both leave the block
    with holder(tmp_path, then) as process:
        process.wait(timeout=120)
    with run_folder(tmp_path):
        child = os.fork()
        if child == 0:
            lock._release(tmp_path.resolve())
            os._exit(0)
        os.waitpid(child, 0)
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()


def test_leftovers_of_the_dead_go_and_files_of_the_living_stay(tmp_path: Path):
    (tmp_path / "warmup").mkdir()
    dead = subprocess.Popen(["true"])
    dead.wait()
    gone = [
        tmp_path / f".checkpoint-7.{dead.pid}.part",
        tmp_path / "warmup" / f".checkpoint-0.{os.getppid()}.part",  # only the holder of the folder makes those
        tmp_path / f".report.html.{dead.pid}.part",
        tmp_path / ".config.yaml.none.part",
    ]
    stay = [tmp_path / f".report.html.{os.getppid()}.part", tmp_path / ".mine", tmp_path / "notes.part"]
    for path in (*gone, *stay):
        path.mkdir() if path.name.startswith(".checkpoint") else path.write_text("")
    with run_folder(tmp_path):
        assert not any(path.exists() for path in gone)
        assert all(path.exists() for path in stay)
    clear_leftovers(tmp_path)
    assert all(path.exists() for path in stay)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_one_line(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(lock, "write_json", refuse)
    with pytest.raises(ConfigError, match=rf"output_dir: .* cannot be written \({os.strerror(code)}\)"):
        trainer(tmp_path / "run", **TWO).train()
    monkeypatch.undo()
    trainer(tmp_path / "run", **TWO).train()  # the lock was given back


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.FileLock, "acquire", refuse)
    with pytest.warns(UserWarning, match="on a file system without locks"), run_folder(tmp_path):
        assert (tmp_path / OWNER).is_file()


# --- a disk that gives out ---

WRITERS = {
    "fsync": (os, "fsync"),
    "safetensors": (checkpoint, "write_state_dict"),
    "a file of a library in Rust": (checkpoint, "save_policy"),
    "rename": (Path, "replace"),
    "the metrics": (MetricsFile, "on_log"),
}


def fail(monkeypatch: pytest.MonkeyPatch, where: str, code: int, *, after: int) -> None:
    """Let a call fail as a full or broken disk lets it, after some that work."""
    owner, name = WRITERS[where]
    original, calls = getattr(owner, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= after:
            return original(*args, **kwargs)
        if "Rust" in where:
            raise Exception(f"cannot write: {os.strerror(code)} (os error {code})")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE])
@pytest.mark.parametrize("where", WRITERS)
def test_a_disk_that_gives_out_is_one_line_and_the_newest_checkpoint_is_named(
    where: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first = trainer(tmp_path, **{**TWO, "stp_rollouts": 1, "lr_scheduler_type": "constant"})
    first.train()
    capsys.readouterr()
    made = trainer(tmp_path, **TWO, lr_scheduler_type="constant", resume_from_checkpoint="true")
    with run_folder(tmp_path):
        fail(monkeypatch, where, code, after={"fsync": 4, "rename": 1}.get(where, 0))
        assert guarded(lambda: made.train().global_step) == 2
    monkeypatch.undo()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("stp-rs: ")
    assert os.strerror(code) in said
    assert said.endswith(f"; the run can go on from {tmp_path / 'checkpoint-1'}")
    assert not list(tmp_path.glob(".checkpoint*")), "a full disk gets its room back"
    again = trainer(tmp_path, **TWO, lr_scheduler_type="constant")
    assert again.train(resume_from_checkpoint=True).global_step == 2


FILLED = """
import resource, signal, sys
from pathlib import Path
from tests.unit.test_run_folder import trainer, TWO
from stp_rs.cli.terminal import guarded
made = trainer(Path(sys.argv[1]), **TWO)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
sys.exit(guarded(lambda: made.train().global_step))
"""


def test_a_real_limit_on_files_is_one_line_too(tmp_path: Path):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    done = subprocess.run(
        [sys.executable, "-c", FILLED, str(tmp_path)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "File too large" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith("has no checkpoint to go on from")


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), "of an unknown size"),
        (MemoryError("Unable to allocate 1.2 TiB for an array with shape (3, 4)"), "Unable to allocate 1.2 TiB"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
            "tried to allocate 99 bytes",
        ),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"), "allocate 20.00 GiB"),
    ],
)
def test_memory_that_ends_is_one_line_with_the_options_that_lower_it(
    error: Exception,
    asked: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    made = trainer(tmp_path, **TWO)
    rollout = train.trainer.generate

    def ends(*args: Any, **kwargs: Any) -> Any:
        if made.state.global_step:
            raise error
        return rollout(*args, **kwargs)

    monkeypatch.setattr(train.trainer, "generate", ends)
    with pytest.raises(OutOfMemoryError) as found:
        made.train()
    capsys.readouterr()
    assert guarded(lambda: int(made.train(resume_from_checkpoint=True).global_step)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == f"stp-rs: {found.value}"
    assert asked in said
    options = "stp_max_tokens stp_slots stp_forward_batch_size per_device_train_batch_size gradient_checkpointing"
    assert all(option in said for option in options.split())
    assert said.endswith(f"; the run can go on from {tmp_path / 'checkpoint-1'}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_run_ends_it_in_one_line_and_the_next_start_is_the_same_run(
    number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
):
    calls = 0
    earlier = signal.signal(number, signal.SIG_DFL)  # nohup's tests ignore it
    request.addfinalizer(lambda: signal.signal(number, earlier))

    def stops(completions: list[str], **_: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), number)
        return [float(len(set(text))) for text in completions]

    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    stopped = trainer(run, reward=stops, **TWO)
    assert guarded(lambda: int(stopped.train().global_step)) == 128 + number
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith(f"stp-rs: stopped by {number.name}; a run that is trained again")
    assert not [line for line in said if "Traceback" in line]
    assert signal.getsignal(number) is signal.SIG_DFL
    again, whole = trainer(run, reward=stops, **TWO), trainer(undisturbed, reward=stops, **TWO)
    assert again.train(resume_from_checkpoint=True).global_step == 2
    assert whole.train().global_step == 2
    assert calls == 2 + 1 + 2, "the first update is not made again"
    for (name, left), right in zip(again.model.state_dict().items(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_errors_of_others_keep_their_type(tmp_path: Path):
    def enter(error: OSError) -> None:
        with run_folder(tmp_path):
            raise error

    with pytest.raises(RuntimeError, match=r"^CUDA error$"), run_folder(tmp_path):
        raise RuntimeError("CUDA error")
    for error in (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), FileNotFoundError(2, "gone", "/elsewhere")):
        with pytest.raises(type(error)):
            enter(error)
    with pytest.raises(StorageError, match="has no checkpoint"):
        enter(FileNotFoundError(2, "gone", str(tmp_path / "checkpoint-1")))
