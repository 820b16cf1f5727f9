"""Several processes that make one run: which of them this is, and the few numbers that they exchange.

Every process decides the same batch, computes its own share of it, and hands the numbers to all others, so that what
follows (advantages, metrics, what priors learn) is the same everywhere. The engine is torch.distributed; with one
process nothing of it is touched. Processes come from `torchrun`, `accelerate launch`, or a group that is already there.

Shapes: R rows.
"""

import atexit
import contextlib
import gc
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from stp_rs.errors import ConfigError, DivergenceError, LostRankError, RankError

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

BUCKET = 1 << 26
"""Elements of a gradient that travel together."""

_ANSWER = 20.0
"""Seconds that processes on other machines have to answer the call that follows a failure."""


class Interrupted(RankError):
    """Another process failed in the middle of passes; what it says comes with the exchange that follows."""


def is_started() -> bool:
    """Return whether a process group is there."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """Return the number of processes of the run."""
    return dist.get_world_size() if is_started() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if is_started() else 0


def local_rank() -> int:
    """Return the number of this process among those of its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK", rank()))


def is_main() -> bool:
    """Return whether this is the process that writes logs, checkpoints and reports."""
    return rank() == 0


def start(device_type: str | None = None, *, seconds: float = 1800.0, backend: str | None = None) -> int:
    """Join the processes that a launcher started; return how many there are.

    Without a launcher, or where a group is there already, nothing is done. The group is left when the interpreter ends,
    where `stop` was not called.

    Args:
        device_type: of the policy, `cuda` or `cpu`; None: cuda where there is one.
        seconds: after which a process that does not come is given up.
        backend: of torch.distributed; None: gloo for the host, and nccl for CUDA devices.

    Raises:
        ConfigError: the launcher's environment is not complete, or its processes do not meet.
    """
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if is_started() or expected < 2:
        return world()
    lacking = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if lacking:
        raise ConfigError(
            f"WORLD_SIZE: got {expected} without {', '.join(lacking)}, needs a launcher: torchrun --nproc-per-node N "
            "-m stp_rs.cli train ..."
        )
    cuda = device_type == "cuda" if device_type else torch.cuda.is_available()
    if cuda:
        if local_rank() >= torch.cuda.device_count():
            raise ConfigError(
                f"LOCAL_RANK: got {local_rank()}, needs a CUDA device for each process and found "
                f"{torch.cuda.device_count()}; start fewer processes, or pass --use_cpu true"
            )
        torch.cuda.set_device(local_rank())
    try:
        dist.init_process_group(
            backend or ("cpu:gloo,cuda:nccl" if cuda else "gloo"), timeout=timedelta(seconds=seconds)
        )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE: {expected} processes did not meet at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {' '.join(str(error).split())[:300]}"
        ) from error
    atexit.register(_leave)
    return world()


def stop() -> None:
    """Leave the process group, at the end of a program: when every process has come here."""
    if is_started():
        gather(lambda: None)  # none leaves while another may still talk to it
        _leave()


def _leave() -> None:
    """End the threads of the process group: one that outlives the interpreter aborts the process."""
    if is_started():
        _KNOWN.clear()
        gc.collect()  # a model that is shared out holds groups, whose threads must end before the interpreter does
        dist.destroy_process_group()


# what each process does, and what all then know


def gather(make: Callable[[], T]) -> list[T]:
    """Return what `make` returns in every process, in the order of their ranks.

    It is called in each with whatever belongs to it. Where it raises in one, all raise: that one its own error, the
    others a `RankError` with its message. A `DivergenceError`, which a run can answer by going back, is one in all of
    them; where another process failed otherwise, that failure is everybody's. Values travel through the host's memory:
    numbers and records, no weights.

    Raises:
        RankError: another process failed.
        DivergenceError: another process met a NaN or infinity; `details["rank"]` is its number.
        LostRankError: another process is gone or does not come.
    """
    if world() == 1:
        return [make()]
    failure: Exception | None = None
    mine: Any = None
    try:
        mine = make()
    except Exception as error:  # whatever it is, the others must hear of it
        failure = error
    told = None if failure is None or isinstance(failure, Interrupted) else _told(failure)
    found: list[Any] = [None] * world()
    with _watched():
        dist.all_gather_object(found, (told, mine), group=_host())
    failed = [(number, told) for number, (told, _) in enumerate(found) if told is not None]
    ends = next(((number, told) for number, told in failed if told.phase is None), None)
    if failure is not None and not isinstance(failure, Interrupted):
        answered = isinstance(failure, DivergenceError)
        raised = _heard(*ends) if answered and ends is not None else failure
        raised.__dict__[_HEARD] = True
        raise raised from (None if raised is failure else failure)
    if failed:
        raise _heard(*(ends or failed[0]))
    if failure is not None:
        raise failure
    return [value for _, value in found]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Tell the other processes what is raised in a block between their exchanges, so that none waits in vain."""
    try:
        yield
    except Exception as error:
        if world() > 1 and not isinstance(error, RankError) and not is_heard(error):
            with contextlib.suppress(RankError):
                gather(partial(_raise, error))
        raise


_HEARD = "_stp_rs_heard"
"""Marks a failure of which every process has heard."""


def is_heard(error: BaseException) -> bool:
    """Return whether every process has heard of an error: it came out of an exchange, in each of them."""
    return _HEARD in error.__dict__


def same_failure(error: E, other: BaseException) -> E:
    """Return an error that is told in other words, as one of which those have heard who heard of the other."""
    if is_heard(other):
        error.__dict__[_HEARD] = True
    return error


def _raise(error: Exception) -> None:
    raise error


@dataclass(frozen=True)
class _Told:
    """What the others hear of a failure."""

    message: str
    phase: str | None = None
    """Of a `DivergenceError`: during what it turned up."""


def _told(failure: Exception) -> _Told:
    """Return what the others hear; a message that is from another process is passed on as it is."""
    if isinstance(failure, DivergenceError):
        return _Told(str(failure), str(failure.details.get("phase", "update")))
    return _Told(str(failure) if isinstance(failure, RankError) else f"{type(failure).__name__}: {failure}")


def _heard(number: int, told: _Told) -> RankError | DivergenceError:
    """Return the failure of a process as another one raises it."""
    message = told.message if told.message.startswith("rank ") else f"rank {number}: {told.message}"
    error: RankError | DivergenceError
    error = RankError(message) if told.phase is None else DivergenceError(message, rank=number, phase=told.phase)
    error.__dict__[_HEARD] = True
    return error


def agree(act: Callable[[], T]) -> T:
    """Return what `act` returns here, once it has ended well in every process; see `gather`."""
    mine: list[T] = []
    gather(lambda: mine.append(act()))
    return mine[0]


def on_main(act: Callable[[], T]) -> T:
    """Return what `act` returns in the main process, which alone calls it; the others wait for it."""
    return cast(T, gather(lambda: act() if is_main() else None)[0])


# sharing the work


def divide(cost: Sequence[float], parts: int | None = None) -> list[list[int]]:
    """Return which things each process does, so that the costs are even: the dearest first, to who has least.

    Args:
        cost: of each thing.
        parts: processes; None: all of the run.
    """
    shares: list[list[int]] = [[] for _ in range(parts or world())]
    load = [0.0] * len(shares)
    for thing in sorted(range(len(cost)), key=lambda i: (-cost[i], i)):
        least = min(range(len(shares)), key=lambda k: (load[k], k))
        shares[least].append(thing)
        load[least] += cost[thing]
    return [sorted(share) for share in shares]


def shares(group_R: NDArray[np.int64], cost_R: NDArray[Any] | None = None) -> list[NDArray[np.int64]]:
    """Return the rows of each process, ascending: whole groups, so that the costs are even.

    A process has no row where there are fewer groups than processes. Every process returns the same.

    Args:
        group_R: which group each row is of.
        cost_R: of each row, the tokens that it is expected to put through the model; None: rows cost alike.
    """
    _, index_R = np.unique(group_R, return_inverse=True)
    cost = np.bincount(index_R, np.ones(len(index_R)) if cost_R is None else cost_R)
    return [np.flatnonzero(np.isin(index_R, share)) for share in divide(cost.tolist())]


def own_rows(group_R: NDArray[np.int64], cost_R: NDArray[Any] | None = None) -> NDArray[np.int64]:
    """Return the rows of this process; see `shares`.

    In a loop of your own: `prompts.select(own_rows(prompts.group))`.
    """
    return shares(group_R, cost_R)[rank()]


# weights and gradients


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the main process."""
    if world() > 1:
        with _watched():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


@torch.no_grad()
def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by the sum of every process's, once per update, after the last backward pass.

    A process that has none adds nothing; a parameter without a gradient anywhere keeps none. The sums have the same
    bits in every process, so that the same optimiser keeps the weights equal.
    """
    if world() == 1:
        return
    every = [p for p in parameters if p.requires_grad]
    there = torch.tensor([p.grad is not None for p in every], dtype=torch.uint8)
    with _watched():
        dist.all_reduce(there, dist.ReduceOp.MAX, group=_host())
        used = [p for p, any_has in zip(every, there.tolist(), strict=True) if any_has]
        for bucket in _buckets(used):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter).clone()


def _buckets(parameters: Sequence[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    bucket: list[torch.nn.Parameter] = []
    for parameter in parameters:
        same = not bucket or (bucket[0].dtype, bucket[0].device) == (parameter.dtype, parameter.device)
        if bucket and (not same or sum(p.numel() for p in bucket) + parameter.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def least(value: int) -> int:
    """Return the least of the values of all processes."""
    if world() == 1:
        return value
    number = torch.tensor([value], dtype=torch.int64)
    with _watched():
        dist.all_reduce(number, dist.ReduceOp.MIN, group=_host())
    return int(number)


def most(value: int) -> int:
    """Return the greatest of the values of all processes."""
    return -least(-value)


# who is there


@dataclass(frozen=True)
class _Peer:
    host: str
    pid: int


_KNOWN: dict[int, tuple[Any, list[_Peer]]] = {}
"""By the identity of the default group: a group over the host's memory, and who is in it."""


def _host() -> Any:
    return _meeting()[0]


def _meeting() -> tuple[Any, list[_Peer]]:
    whole: Any = dist.group.WORLD
    if id(whole) not in _KNOWN:
        kind = str(dist.get_backend_config(whole) if hasattr(dist, "get_backend_config") else dist.get_backend(whole))
        host: Any = whole if "gloo" in kind else dist.new_group(backend="gloo")
        peers: list[Any] = [None] * world()
        dist.all_gather_object(peers, _Peer(socket.gethostname(), os.getpid()), group=host)
        _KNOWN.clear()
        _KNOWN[id(whole)] = (host, peers)
    return _KNOWN[id(whole)]


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Say in words of ours which process is missing where a collective call fails."""
    peers = _meeting()[1]
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RankError):
            raise
        raise LostRankError(_missing(peers, str(error))) from error


def _missing(peers: Sequence[_Peer], reason: str) -> str:
    """Return which processes are gone, or do not answer."""
    me = rank()
    _answer(me)
    others = [number for number in range(len(peers)) if number != me]
    deadline = time.monotonic() + _ANSWER
    while True:
        here = peers[me].host
        gone = [k for k in others if peers[k].host == here and not _is_alive(peers[k].pid)]
        silent = [k for k in others if k not in gone and not _answered(k)]
        if gone:
            names = ", ".join(f"{k} (process {peers[k].pid} on {peers[k].host})" for k in gone)
            return f"rank {names} is gone: it was killed, ran out of memory or crashed; see its own output"
        if not silent or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    why = " ".join(reason.split())[:200]
    if silent:
        names = ", ".join(f"{k} (process {peers[k].pid} on {peers[k].host})" for k in silent)
        return f"rank {names} did not come to where the others wait (ddp_timeout): {why}"
    return f"rank {me} lost the connection to the others: {why}"


def _answer(me: int) -> None:
    with contextlib.suppress(RuntimeError, ValueError):
        _store().set(f"stp_rs/failed/{me}", b"1")


def _answered(number: int) -> bool:
    try:
        return bool(_store().check([f"stp_rs/failed/{number}"]))
    except (RuntimeError, ValueError):  # the store was in that process
        return False


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _is_alive(pid: int) -> bool:
    """Return whether a process of this machine runs; one that has ended and waits for its parent does not."""
    status = Path(f"/proc/{pid}/stat")
    if status.exists():
        with contextlib.suppress(OSError, IndexError):
            return status.read_text().rpartition(")")[2].split()[0] not in "ZX"
        return False
    if Path("/proc/self/stat").exists():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
