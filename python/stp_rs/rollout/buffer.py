"""The trajectory buffer, and shuffled minibatches of it for the optimiser.

`TrajectoryBuffer` is the Rust class: rollouts as a struct of arrays, 10 L + 4 P + 41 bytes for a row of L
completion and P prompt tokens. It stores no canvas: `replay` rebuilds any state of the denoising from
`token_ids` and `unmask_step`.

Shapes: N rows, L completion length, P prompt columns.

Example:
    >>> buffer = TrajectoryBuffer(completion_length=3, capacity=8)
    >>> buffer.push(
    ...     prompt_ids=np.array([[5, 6]]),
    ...     prompt_length=np.array([2], np.int32),
    ...     token_ids=np.array([[11, 12, 13]]),
    ...     unmask_step=np.array([[1, -1, 0]], np.int32),
    ...     logprob=np.array([[-0.5, 0.0, -1.5]], np.float32),
    ...     stop_reason=np.zeros(1, np.uint8),
    ...     uid=np.zeros(1, np.uint64),
    ...     group=np.zeros(1, np.int64),
    ...     policy_version=np.zeros(1, np.int64),
    ... )
    0
    >>> canvas = np.empty(3, np.int64)
    >>> buffer.state_at(row=0, step=1, mask_token_id=99, out=canvas)
    >>> canvas.tolist()
    [99, 12, 13]
    >>> buffer.set_rewards(np.array([0], np.int32), np.array([1.0], np.float32))
    >>> buffer.set_advantages(np.array([0], np.int32), np.array([0.0], np.float32))
    >>> [len(batch) for batch in minibatches(buffer, 4, seed=0, epoch=0)]
    [1]
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stp_rs._core import TrajectoryBuffer, permutation
from stp_rs.errors import InvalidValueError

if TYPE_CHECKING:
    import torch

    from stp_rs.rollout.generate import Rollout

__all__ = ["Minibatch", "TrajectoryBuffer", "fill_buffer", "gather", "minibatches"]

_HOST_ONLY = frozenset({"rows", "uid"})
"""Row numbers and random keys are arguments of Rust calls; no device computes with them."""


@dataclass(frozen=True, eq=False)
class Minibatch:
    """Rows of a buffer as numpy arrays; the first axis of each is N."""

    rows: npt.NDArray[np.int32]
    """`[N]` row numbers, valid until the buffer next evicts."""
    prompt_ids: npt.NDArray[np.int64]
    """`[N, P]` right-padded; P is the longest prompt of these rows."""
    prompt_length: npt.NDArray[np.int32]
    """`[N]`."""
    token_ids: npt.NDArray[np.int64]
    """`[N, L]`."""
    unmask_step: npt.NDArray[np.int32]
    """`[N, L]` denoising step that revealed the token, or a `Mark`."""
    prior_mask: npt.NDArray[np.uint8]
    """`[N, L]` 1 where a spatial prior fixed the token."""
    logprob: npt.NDArray[np.float32]
    """`[N, L]` in nats, under the law that drew the token; 0 where none did."""
    stop_reason: npt.NDArray[np.uint8]
    """`[N]`."""
    reward: npt.NDArray[np.float32]
    """`[N]`."""
    advantage: npt.NDArray[np.float32]
    """`[N]`."""
    uid: npt.NDArray[np.uint64]
    """`[N]` keys of the rows' random numbers."""
    group: npt.NDArray[np.int64]
    """`[N]` the same for the rows of one prompt."""
    policy_version: npt.NDArray[np.int64]
    """`[N]`."""

    def __len__(self) -> int:
        """Return N."""
        return len(self.rows)

    def tensors(self, device: "torch.device | str" = "cpu") -> "dict[str, torch.Tensor]":
        """Return the columns as tensors on a device, by name; `rows` and `uid` stay on the host.

        On the CPU the tensors share the arrays' memory.
        """
        import torch

        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _HOST_ONLY}
        return {name: torch.from_numpy(column).to(device) for name, column in columns.items()}


def fill_buffer(
    rollout: "Rollout", rewards: npt.NDArray[np.float32], advantages: npt.NDArray[np.float32], *, version: int
) -> TrajectoryBuffer:
    """Return a buffer with the rows of a rollout, their rewards and advantages."""
    buffer = TrajectoryBuffer(rollout.token_ids.shape[1], len(rollout))
    buffer.push(
        prompt_ids=rollout.prompt_ids,
        prompt_length=rollout.prompt_length,
        token_ids=rollout.token_ids,
        unmask_step=rollout.unmask_step,
        logprob=rollout.logprob,
        stop_reason=rollout.stop_reason,
        uid=rollout.uid,
        group=rollout.group,
        policy_version=np.full(len(rollout), version, dtype=np.int64),
    )
    rows = np.arange(len(rollout), dtype=np.int32)
    buffer.set_rewards(rows, rewards)
    buffer.set_advantages(rows, advantages)
    return buffer


def gather(buffer: TrajectoryBuffer, rows: npt.NDArray[np.int32], *, pad_token_id: int = 0) -> Minibatch:
    """Return the rows of a buffer, in the order given, in new arrays.

    Args:
        buffer: where the rows are.
        rows: `[N]` row numbers; they may repeat.
        pad_token_id: fills `prompt_ids` behind each prompt.

    Raises:
        InvalidValueError: a row is not in the buffer.
        StateError: a row has no reward or advantage yet.
    """
    n, length = len(rows), buffer.completion_length
    prompt_length = np.empty(n, np.int32)
    buffer.minibatch(rows, prompt_length=prompt_length)
    out: dict[str, npt.NDArray[Any]] = {
        "prompt_ids": np.empty((n, int(prompt_length.max(initial=0))), np.int64),
        "prompt_length": prompt_length,
        "token_ids": np.empty((n, length), np.int64),
        "unmask_step": np.empty((n, length), np.int32),
        "prior_mask": np.empty((n, length), np.uint8),
        "logprob": np.empty((n, length), np.float32),
        "stop_reason": np.empty(n, np.uint8),
        "reward": np.empty(n, np.float32),
        "advantage": np.empty(n, np.float32),
        "uid": np.empty(n, np.uint64),
        "group": np.empty(n, np.int64),
        "policy_version": np.empty(n, np.int64),
    }
    buffer.minibatch(rows, pad_token_id=pad_token_id, **out)
    return Minibatch(rows=rows, **out)


def minibatches(
    buffer: TrajectoryBuffer, batch_size: int, *, seed: int, epoch: int, pad_token_id: int = 0
) -> Iterator[Minibatch]:
    """Return an iterator over every row of a buffer exactly once, in an order keyed by (seed, epoch).

    The order comes from Philox, so a resumed run and any number of workers see the same batches and no global
    random state moves. The last batch holds what is left. The rows are those held when the call is made: use
    up the iterator before the next `evict`, which numbers them anew.

    Args:
        buffer: rollouts with rewards and advantages set.
        batch_size: N of every batch but the last.
        seed: the run's seed.
        epoch: counts passes over the buffer in the whole run.
        pad_token_id: fills `prompt_ids` behind each prompt.

    Raises:
        InvalidValueError: the batch size is below 1.
        StateError: a row has no reward or advantage yet.
    """
    if batch_size < 1:
        raise InvalidValueError(f"batch_size: got {batch_size}, needs an integer of at least 1")
    order = np.asarray(permutation(seed, epoch, len(buffer)), np.int32)
    starts = range(0, len(order), batch_size)
    return (gather(buffer, order[at : at + batch_size], pad_token_id=pad_token_id) for at in starts)
