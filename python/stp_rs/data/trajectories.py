"""The record of a batch of completions: what was drawn, when, by which policy, and what it earned.

Every part of the library reads and writes this one type. Its columns are numpy arrays that the record owns: the Rust
scheduler writes trajectories into them, torch shares their memory, and no canvas is stored, because `unmask_step` tells
any state of the denoising (docs/adr/0010-one-record.md).

Shapes: R rows, L completion length, P longest prompt.

Example:
    >>> from stp_rs.types import Mark
    >>> keys = np.zeros(1, np.uint64), np.zeros(1, np.int64)
    >>> prompts = PromptBatch([{}], np.array([[5, 6]]), np.array([2], np.int32), *keys)
    >>> rollout = Rollout.of(prompts, np.array([[11, 12, 13]]), np.array([[1, Mark.PRIOR, 0]], np.int32))
    >>> both = Rollout.concat([rollout, rollout.replaced(policy_version=np.array([1]))])
    >>> len(both), len(both.evict(1))
    (2, 1)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import permutation
from stp_rs.data.drawing import drawn
from stp_rs.data.prompts import PromptBatch
from stp_rs.data.steps import StepMap
from stp_rs.errors import CheckpointError, DtypeError, InvalidValueError, ShapeError
from stp_rs.types import Cost, Mark

Rows = Sequence[int] | NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False, repr=False)
class Rollout:
    """A batch of completions: tokens, how each was decoded, rewards, advantages. Methods return new records."""

    prompts: PromptBatch
    token_ids: NDArray[np.int64]
    """[R, L]."""
    unmask_step: NDArray[np.int32]
    """[R, L] forward at which a position was revealed, or a `Mark`."""
    logprob: NDArray[np.float32]
    """[R, L] log-probability under the law that drew the token; 0 where nothing was sampled, NaN where not recorded."""
    nfe: NDArray[np.int32]
    """[R] forwards of the row (a shared first forward counts for every row that used it)."""
    stop_reason: NDArray[np.uint8]
    """[R] a `StopReason`."""
    policy_version: NDArray[np.int64]
    """[R] optimiser steps of the policy that drew the row."""
    exact: bool = True
    """Whether the sum of `logprob` is the trajectory's log-likelihood (the choice of positions read the state only)."""
    stats: Mapping[str, int] = field(default_factory=dict)
    """Counters: forwards (canvases computed), calls, nfe, head_rows (logits read), tokens, padding among them, nan."""
    completions: Sequence[str] = ()
    """Texts, once decoded."""
    rewards: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """Reward function -> its rewards [R], NaN where it did not apply."""
    reward: NDArray[np.float32] | None = None
    """[R] their sum."""
    advantage: NDArray[np.float32] | None = None
    """[R]."""
    entropy: NDArray[np.float32] | None = None
    """[R, L] nats of the untempered law at the forward that drew the token, 0 elsewhere; kept where asked for."""
    token_advantage: NDArray[np.float32] | None = None
    """[R, L] advantages of tokens, in place of their completion's; 0 where no loss reads them."""
    old_estimate: NDArray[np.float32] | None = None
    """[R, J, L] estimates under the policy that drew the row, by mask set; kept where batches are trained on again."""

    @staticmethod
    def of(prompts: PromptBatch, token_ids: NDArray[np.int64], unmask_step: NDArray[np.int32]) -> "Rollout":
        """Return the record of completions from another source; columns that it does not have are 0, log-probs NaN."""
        rows = Rollout.empty(prompts, token_ids.shape[1])
        logprob = np.full(token_ids.shape, np.nan, dtype=np.float32)
        return replace(rows, token_ids=token_ids, unmask_step=unmask_step, logprob=logprob)

    @staticmethod
    def empty(prompts: PromptBatch, length: int, *, exact: bool = True) -> "Rollout":
        """Return a record of zeros for completions of `length` tokens, to be written into."""
        rows = len(prompts)
        return Rollout(
            prompts=prompts,
            token_ids=np.zeros((rows, length), dtype=np.int64),
            unmask_step=np.zeros((rows, length), dtype=np.int32),
            logprob=np.zeros((rows, length), dtype=np.float32),
            nfe=np.zeros(rows, dtype=np.int32),
            stop_reason=np.zeros(rows, dtype=np.uint8),
            policy_version=np.zeros(rows, dtype=np.int64),
            exact=exact,
        )

    def __repr__(self) -> str:
        """Return the first completions in text: which forward revealed each token."""
        return drawn(self)

    def __len__(self) -> int:
        """Return R, the number of completions."""
        return len(self.prompts)

    @property
    def prompt_ids(self) -> NDArray[np.int64]:
        """Token ids of the prompts, [R, P], right-padded."""
        return self.prompts.prompt_ids

    @property
    def prompt_length(self) -> NDArray[np.int32]:
        """Tokens of each prompt, [R]."""
        return self.prompts.prompt_length

    @property
    def uid(self) -> NDArray[np.uint64]:
        """The 64-bit key of each row's random numbers, [R]."""
        return self.prompts.uid

    @property
    def group(self) -> NDArray[np.int64]:
        """The number of each row's group, [R]: completions of one prompt share it."""
        return self.prompts.group

    @property
    def cost(self) -> Cost:
        """The cost of the rollout: forwards, tokens and head rows."""
        return Cost(self.stats["forwards"], self.stats["tokens"], self.stats["head_rows"])

    def earned(self) -> NDArray[np.float32]:
        """Return the rewards [R].

        Raises:
            InvalidValueError: there are none yet.
        """
        return _known("reward", self.reward)

    def weights(self) -> NDArray[np.float32]:
        """Return the advantages [R].

        Raises:
            InvalidValueError: there are none yet.
        """
        return _known("advantage", self.advantage)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of the completions by name, without a copy; rewards of a function as `rewards/NAME`."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        named = {name: column for name, column in found.items() if isinstance(column, np.ndarray)}
        return named | {f"rewards/{name}": column for name, column in self.rewards.items()}

    def replaced(self, **changed: Any) -> "Rollout":
        """Return the record with some columns replaced; the number of rows stays.

        Raises:
            ShapeError: a column has another number of rows.
        """
        for name, value in changed.items():
            if isinstance(value, np.ndarray) and len(value) != len(self):
                raise ShapeError(f"{name}: got {len(value)} rows, needs {len(self)}, one for each completion")
        return replace(self, **changed)

    def _with(self, prompts: PromptBatch, columns: Mapping[str, NDArray[Any]], texts: Sequence[str]) -> "Rollout":
        rewards = {name: columns[f"rewards/{name}"] for name in self.rewards}
        own: dict[str, Any] = {name: column for name, column in columns.items() if not name.startswith("rewards/")}
        return replace(self, prompts=prompts, rewards=rewards, completions=texts, **own)

    def select(self, rows: Rows, out: Mapping[str, NDArray[Any]] | None = None) -> "Rollout":
        """Return some rows, in the order given; they may repeat. Counters stay those of the whole rollout.

        Args:
            rows: their numbers.
            out: arrays of yours by column name, as views of pinned tensors: these columns are written there and
                are the record's.

        Raises:
            ShapeError, DtypeError: an array does not fit its column.
            IndexError: there is no such row.
        """
        index, given = np.asarray(rows, dtype=np.int64), out or {}
        prompts = self.prompts.select(index.tolist())
        texts = [self.completions[i] for i in index] if self.completions else ()
        taken = {name: _take(name, column, index, given.get(name)) for name, column in self.columns().items()}
        return self._with(prompts, taken, texts)

    @staticmethod
    def concat(parts: Sequence["Rollout"]) -> "Rollout":
        """Return the rows of several records as one. Counters of records that share them are counted once.

        Raises:
            InvalidValueError: no record, or records with other columns than the first.
        """
        if not parts or any(part.columns().keys() != parts[0].columns().keys() for part in parts):
            raise InvalidValueError(
                f"concat: got {len(parts)} records with columns {[sorted(p.columns()) for p in parts]}, needs at least "
                "one, and the same columns in all"
            )
        columns = {name: np.concatenate([part.columns()[name] for part in parts]) for name in parts[0].columns()}
        prompts = PromptBatch.concat([part.prompts for part in parts])
        whole = parts[0]._with(prompts, columns, [text for part in parts for text in part.completions])
        sources = {id(part.stats): part.stats for part in parts}.values()
        stats = {name: sum(s.get(name, 0) for s in sources) for name in dict.fromkeys(n for s in sources for n in s)}
        return replace(whole, exact=all(part.exact for part in parts), stats=stats)

    def replace_rows(self, rows: Rows, others: "Rollout") -> "Rollout":
        """Return the record with `others` in place of `rows`, in the same groups; counters are the sum of both."""
        order = np.arange(len(self))
        order[np.asarray(rows, dtype=np.int64)] = len(self) + np.arange(len(others))
        merged = Rollout.concat([self, others]).select(order)
        return replace(merged, prompts=replace(merged.prompts, group=self.group))

    def minibatch(self, rows: Rows, out: Mapping[str, NDArray[Any]] | None = None) -> "Rollout":
        """Return some rows as `select` does, with prompts cut to the longest of them."""
        taken = self.select(rows, out)
        ids_RP = np.ascontiguousarray(taken.prompt_ids[:, : int(taken.prompt_length.max(initial=0))])
        return replace(taken, prompts=replace(taken.prompts, prompt_ids=ids_RP))

    def minibatches(self, size: int, *, seed: int, epoch: int) -> "Iterator[Rollout]":
        """Return an iterator over every row exactly once, in an order keyed by (seed, epoch).

        The order comes from Philox: a resumed run sees the same batches, and no global random state moves. The last
        batch holds what is left.

        Raises:
            InvalidValueError: the size is below 1.
        """
        if size < 1:
            raise InvalidValueError(f"batch_size: got {size}, needs an integer of at least 1")
        order = permutation(seed, epoch, len(self))
        return (self.minibatch(order[at : at + size]) for at in range(0, len(order), size))

    def evict(self, older_than: int) -> "Rollout":
        """Return the rows that a policy of version `older_than` or newer drew."""
        return self.select(np.flatnonzero(self.policy_version >= older_than))

    def step_map(self, block_length: int = 0) -> StepMap:
        """Return which forward revealed each token, with the policy's version, for other trainers (docs/step_map.md).

        Forwards count from 0 without gaps: within each block of `block_length` tokens, or in the whole row where it
        is 0. A token that a later forward revealed has the larger step.

        Raises:
            InvalidValueError: a negative block length.
        """
        if block_length < 0:
            raise InvalidValueError(f"block_length: got {block_length}, needs 0 or a number of tokens")
        length_R = (self.unmask_step != Mark.OUTSIDE).sum(1, dtype=np.int32)
        return StepMap.of(self.unmask_step, self.policy_version, length_R, block_length)

    def save(self, path: Path) -> None:
        """Write everything to a safetensors file; dataset rows and texts as JSON in its header."""
        from safetensors.numpy import save_file

        notes = {"rows": list(self.prompts.rows), "completions": list(self.completions), "exact": self.exact}
        prompts = {f.name: getattr(self.prompts, f.name) for f in fields(PromptBatch) if f.name != "rows"}
        arrays = {name: np.ascontiguousarray(column) for name, column in {**prompts, **self.columns()}.items()}
        save_file(arrays, path, {"record": json.dumps({**notes, "stats": dict(self.stats)})})

    @staticmethod
    def load(path: Path) -> "Rollout":
        """Return what `save` wrote.

        Raises:
            CheckpointError: the file cannot be read.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
                notes = json.loads(file.metadata()["record"])
            names = [f.name for f in fields(PromptBatch) if f.name != "rows"]
            prompts = PromptBatch(notes["rows"], **{name: arrays.pop(name) for name in names})
            rewards = {name: arrays.pop(name) for name in sorted(arrays) if name.startswith("rewards/")}
            named = {name.removeprefix("rewards/"): column for name, column in rewards.items()}
            rest = {"exact": notes["exact"], "stats": notes["stats"], "completions": notes["completions"]}
            return Rollout(prompts, **arrays, **rest, rewards=named)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read as a record of trajectories: {error}") from error


def _take(name: str, column: NDArray[Any], index: NDArray[np.int64], out: NDArray[Any] | None) -> NDArray[Any]:
    if out is None:
        return column[index]
    shape = (len(index), *column.shape[1:])
    if out.shape != shape:
        raise ShapeError(f"{name}: got shape {out.shape}, needs {shape}")
    if out.dtype != column.dtype:
        raise DtypeError(f"{name}: got dtype {out.dtype}, needs {column.dtype}")
    return np.take(column, index, axis=0, out=out, mode="wrap")


def _known(name: str, column: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if column is None:
        raise InvalidValueError(f"{name}: the record has none yet; set it with replaced({name}=...)")
    return column
