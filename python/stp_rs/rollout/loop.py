"""The loop of a rollout: the Rust scheduler says what to compute, the model computes it, the scheduler commits.

Nothing here is per row: a step is one call into Rust, one forward, one reduction, one copy of seven numbers per
candidate to the host, and one call into Rust.

Shapes: R rows, L completion length, B canvases of one call, S their width, N candidates, V vocabulary, C columns.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from stp_rs._core import RolloutScheduler
from stp_rs.errors import DivergenceError
from stp_rs.models.base import DiffusionModel, block_size_of, device_of, encode, head_rows
from stp_rs.models.blocks import BlockCache, CachedModel
from stp_rs.models.keys import CacheKind, KeyCache
from stp_rs.rollout.logits import COLUMNS, ENTROPY, Reads, Reducer
from stp_rs.rollout.params import SamplingParams, allowed_rows


@dataclass(frozen=True)
class Batching:
    """How rows are batched, and what is recorded.

    None of it changes a completion (but see `cache`, and `fill_ratio_batch`, which reads the batch).
    """

    max_tokens: int = 0
    """Most tokens of one model call, padding included; 0 means no bound but the slots."""
    length_sorted: bool = False
    """Admit long rows first and rows of one length together: less padding. Groups stay together."""
    share_first: bool = True
    """Compute the first forward of a group once."""
    cache: CacheKind = "none"
    """`prefix` or `dual`: keys and values are kept within a block, which changes completions (`stp_rs.models.keys`)."""
    entropies: bool = False
    """Record the entropy at every drawn token (`Rollout.entropy`)."""


class Cohort:
    """Rows that are decoded together: their scheduler and the buffers of one call, pinned for a CUDA device.

    Args:
        model: the policy.
        scheduler: with its rows submitted.
        law: the sampling law, from `check_allowed`.
        slots: most rows in flight.
        length: L.
        entropy_RL: where to write the entropy of every candidate, or None; what a row draws it writes last.
    """

    def __init__(
        self,
        model: DiffusionModel,
        scheduler: RolloutScheduler,
        law: SamplingParams,
        slots: int,
        length: int,
        entropy_RL: NDArray[np.float32] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self._model, self._law, self._length = model, law, length
        self._reducer = Reducer(law, model.mask_token_id)
        self._device, self._head_rows = device_of(model), head_rows(model)
        cuda = self._device.type == "cuda"
        tokens, positions = scheduler.capacity()

        def host(size: int | tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, pin_memory=cuda)

        self._ids, self._lengths = host(tokens, torch.int64), host(slots, torch.int32)
        self._at, self._uniforms = host(positions, torch.int32), host(positions, torch.float32)
        self._places = host(positions if law.allowed is not None and law.allowed.dim() > 1 else 0, torch.int32)
        self._packed = host((positions, COLUMNS), torch.float32)
        # on the CPU the reduction writes where the scheduler reads
        self._reduced = torch.empty_like(self._packed, device=self._device) if cuda else self._packed
        self._entropy = None if entropy_RL is None else entropy_RL.reshape(-1)
        self._entropy_places = np.empty(positions if entropy_RL is not None else 0, dtype=np.int32)
        self._done = torch.cuda.Event() if cuda else None
        self._views = (self._ids.numpy(), self._lengths.numpy(), self._at.numpy(), self._uniforms.numpy())
        self._places_view, self._packed_view = self._places.numpy(), self._packed.numpy()
        self._count, self._width, self._reads = 0, 0, Reads()
        self.cache = (
            BlockCache(cast(CachedModel, model)) if hasattr(model, "hidden_cached") and block_size_of(model) else None
        )
        """Committed blocks of a block-causal policy."""
        self.keys: KeyCache | None = None
        """An approximate cache of any other."""

    def launch(self) -> bool:
        """Start the next step; return False when every row is finished. Does not wait for a CUDA device."""
        rows, width, self._count, reads = self.scheduler.next_step(*self._views)
        self._width = width
        self._reads = Reads(*reads)
        if rows == 0:
            return False
        if len(self._places):
            self.scheduler.places(self._length, self._places_view)
        if self._entropy is not None:
            self._reads = self._reads._replace(entropy=True)
            self.scheduler.places(self._length, self._entropy_places)
        count, lengths_B = self._count, self._views[1][:rows]
        ids_BS = self._ids[: rows * width].view(rows, width).to(self._device, non_blocking=True)
        at_N, uniforms_N, places_N = (
            column[:count].to(self._device, non_blocking=True) for column in (self._at, self._uniforms, self._places)
        )
        if self._model.logit_shift:
            at_N = at_N - self._model.logit_shift
        if self.keys is not None:
            hidden_NH = self._kept(self.keys, ids_BS, lengths_B)
        else:
            if self.cache is None:
                hidden_BSH = encode(self._model, ids_BS, lengths_B)
            else:
                hidden_BSH, at_N = self._block(ids_BS, at_N)
            hidden_NH = hidden_BSH.flatten(0, 1).index_select(0, at_N)
        self._reduce(hidden_NH, uniforms_N, places_N)
        if self._reduced is not self._packed:
            self._packed[:count].copy_(self._reduced[:count], non_blocking=True)
        if self._done is not None:
            self._done.record()
        return True

    def _block(self, ids_BS: torch.Tensor, at_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states of the rows' current blocks, and where the candidates are in them."""
        rows, width = ids_BS.shape
        owner_B, start_B = np.empty(rows, dtype=np.int32), np.empty(rows, dtype=np.int32)
        self.scheduler.blocks(owner_B, start_B)
        host_BS = self._views[0][: rows * width].reshape(rows, width)
        cache = cast(BlockCache, self.cache)
        hidden_BQH = cache.hidden_block(ids_BS, host_BS, self._views[1][:rows], owner_B, start_B)
        canvas_N = at_N // width
        start_N = torch.from_numpy(start_B).to(self._device)[canvas_N]
        return hidden_BQH, canvas_N * hidden_BQH.shape[1] + at_N % width - start_N

    def _kept(self, keys: KeyCache, ids_BS: torch.Tensor, lengths_B: NDArray[np.int32]) -> torch.Tensor:
        """Return the hidden states of the candidates, for which an approximate cache computes no more than it must."""
        owner_B, start_B = np.empty(len(ids_BS), dtype=np.int32), np.empty(len(ids_BS), dtype=np.int32)
        self.scheduler.blocks(owner_B, start_B)
        at_N = self._views[2][: self._count].astype(np.int64) - self._model.logit_shift
        return keys.states(ids_BS, lengths_B, owner_B, at_N)

    def _reduce(self, hidden_NH: torch.Tensor, uniforms_N: torch.Tensor, places_N: torch.Tensor) -> None:
        """Write the numbers of candidates from their hidden states."""
        model, allowed = self._model, self._law.allowed
        for start in range(0, len(hidden_NH), self._head_rows):
            part = slice(start, min(start + self._head_rows, len(hidden_NH)))
            if len(places_N):
                allowed = allowed_rows(self._law, places_N[part], self._length)
            logits_NV = model.head(hidden_NH[part])
            self._reducer(logits_NV, uniforms_N[part], self._reduced[part], allowed, self._reads)

    def finish(self) -> None:
        """Wait for the step and commit its numbers.

        Raises:
            DivergenceError: the model returned NaN or infinite logits. Nothing is committed then: the token of such a
                candidate means nothing.
        """
        if self._done is not None:
            self._done.synchronize()
        packed = self._packed_view[: self._count]
        bad = int(np.isnan(packed[:, 2]).sum())
        if bad:
            first = int(np.flatnonzero(np.isnan(packed[:, 2]))[0])
            canvas = int(self._views[2][first]) // self._width * self._width
            raise DivergenceError(
                f"the model returned NaN or infinite logits for {bad} of {self._count} candidates of a forward; its "
                "weights or activations have overflowed: lower learning_rate, or check bf16 and the checkpoint",
                phase="rollout",
                canvas=self._views[0][canvas : canvas + self._width].tolist(),
            )
        if self._entropy is not None:
            self._entropy[self._entropy_places[: self._count]] = packed[:, ENTROPY]
        self.scheduler.commit(packed)


def drive(cohort: Cohort) -> None:
    """Decode every row."""
    while cohort.launch():
        cohort.finish()
