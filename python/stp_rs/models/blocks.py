"""Block-causal attention: its masks, the doubled canvas of a likelihood, and an exact cache of committed blocks.

A block sees itself and the blocks before it, so what is before the current block never changes: its keys and values are
kept. Nothing is approximated.

Shapes: B canvases, S canvas width, Q tokens of a call, K tokens kept and of the call, C tokens kept.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from stp_rs.models.prefix import Prefix


def state_mask(width: int, size: int, device: torch.device) -> Tensor:
    """Return the attention mask of one canvas, bool [S, S]: a token sees its own block and those before it."""
    block_S = torch.arange(width, device=device) // size
    return block_S[:, None] >= block_S


def pair_mask(noisy_S: Tensor, clean_S: Tensor, size: int) -> Tensor:
    """Return the attention mask of a doubled canvas [noisy | clean], bool [Q, Q], from the positions of its two halves.

    A noisy token sees its own noisy block and the clean blocks before it; a clean one its own clean block and those
    before it (arXiv 2503.09573).
    """
    noisy_Q, clean_Q = noisy_S // size, clean_S // size
    upper = torch.cat([noisy_Q[:, None] == noisy_Q, noisy_Q[:, None] > clean_Q], dim=1)
    lower = torch.cat([torch.zeros_like(clean_Q[:, None] == noisy_Q), clean_Q[:, None] >= clean_Q], dim=1)
    return torch.cat([upper, lower])


def with_padding(mask_QK: Tensor, position_K: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Return the mask of each row, bool [B or 1, Q, K]: padding is seen by itself only, which keeps it finite."""
    if lengths_B is None:
        return mask_QK[None]
    inside_B1K = (position_K < lengths_B[:, None])[:, None]
    return (mask_QK & inside_B1K) | torch.eye(len(position_K), dtype=torch.bool, device=position_K.device)


class CachedModel(Protocol):
    """A block-causal policy that can be called with a cache."""

    block_size: int

    def hidden_cached(self, ids_BQ: Tensor, position_BQ: Tensor, seen_BQK: Tensor, prefix: "Prefix") -> Tensor:
        """Return hidden states [B, Q, H] of tokens at positions that see the prefix and each other as said."""
        ...


@dataclass
class BlockCache:
    """Committed blocks of the rows of a rollout: `hidden_block` runs the current block of each, and no token before it.

    A row's blocks are committed when its next block begins; a group's prompt is computed once.
    """

    model: CachedModel
    length_of: dict[int, int] = field(default_factory=dict)
    """Tokens that are kept of each row."""
    tokens: int = 0
    """Tokens that went through the model, padding included."""
    padding: int = 0
    calls: int = 0
    _kept: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Keys and values [heads, C, D] by row and layer."""
    _prompts: dict[bytes, int] = field(default_factory=dict)

    def hidden_block(
        self, ids_BS: Tensor, host_BS: NDArray[np.int64], lengths_B: NDArray[np.int32], rows_B: Any, starts_B: Any
    ) -> Tensor:
        """Return hidden states [B, Q, H] of the current block of each canvas, after committing what precedes it.

        Args:
            ids_BS: right-padded canvases on the device.
            host_BS: the same on the host.
            lengths_B: tokens of each before padding.
            rows_B: the row of the rollout that each is.
            starts_B: where its current block starts.
        """
        rows, starts = [int(r) for r in rows_B], [int(s) for s in starts_B]
        for gone in self._kept.keys() - set(rows):
            del self._kept[gone], self.length_of[gone]
        self._prompts = {prefix: row for prefix, row in self._prompts.items() if row in self._kept}
        self._commit(ids_BS, host_BS, rows, starts)
        ends = [min(start + self.model.block_size, int(n)) for start, n in zip(starts, lengths_B, strict=True)]
        return self._run(ids_BS, rows, starts, ends)[0]

    def _commit(self, ids_BS: Tensor, host_BS: NDArray[np.int64], rows: list[int], starts: list[int]) -> None:
        """Keep the keys and values of all tokens before each row's current block."""
        prefixes = [host_BS[b, :start].tobytes() for b, start in enumerate(starts)]
        fresh: dict[bytes, int] = {}  # by themselves: few blocks and long prompts in one call would be mostly padding
        for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
            if start and row not in self._kept and prefixes[b] not in self._prompts:
                fresh.setdefault(prefixes[b], b)
        self._keep(ids_BS, list(fresh.values()), rows, starts)
        self._prompts |= {prefix: rows[b] for prefix, b in fresh.items()}
        for b, (row, start) in enumerate(zip(rows, starts, strict=True)):
            if start and row not in self._kept:
                kept = self._kept[self._prompts[prefixes[b]]]
                self._kept[row], self.length_of[row] = [(k[:, :start], v[:, :start]) for k, v in kept], start
        self._keep(ids_BS, [b for b, row in enumerate(rows) if self.length_of.get(row, 0) < starts[b]], rows, starts)

    def _keep(self, ids_BS: Tensor, which: list[int], rows: list[int], starts: list[int]) -> None:
        if not which:
            return
        chosen, ends = [rows[b] for b in which], [starts[b] for b in which]
        begins = [self.length_of.get(row, 0) for row in chosen]
        _, prefix = self._run(ids_BS[which], chosen, begins, ends)
        for i, (row, begin, end) in enumerate(zip(chosen, begins, ends, strict=True)):
            added = [(k[i, :, : end - begin], v[i, :, : end - begin]) for _, (k, v) in sorted(prefix.added.items())]
            if begin:
                before = self._kept[row]
                added = [
                    (torch.cat([a, k], 1), torch.cat([b, v], 1)) for (a, b), (k, v) in zip(before, added, strict=True)
                ]
            self._kept[row], self.length_of[row] = added, end

    def _run(self, ids_BS: Tensor, rows: list[int], begins: list[int], ends: list[int]) -> tuple[Tensor, "Prefix"]:
        """Run tokens begin to end of each row behind what is kept of it; return their hidden states and the cache."""
        from stp_rs.models.prefix import Prefix

        device, size = ids_BS.device, self.model.block_size
        width = max(end - begin for begin, end in zip(begins, ends, strict=True))
        kept = [self.length_of.get(row, 0) for row in rows]
        longest = max(kept)
        begin_B1, end_B1, kept_B1 = (torch.tensor(v, device=device)[:, None] for v in (begins, ends, kept))
        position_BQ = begin_B1 + torch.arange(width, device=device)
        ids_BQ = ids_BS.gather(1, position_BQ.clamp(max=ids_BS.shape[1] - 1))
        seen_BQC = (torch.arange(longest, device=device) < kept_B1)[:, None].expand(-1, width, -1)
        block_BQ = position_BQ // size
        inside_BQQ = (block_BQ[:, :, None] >= block_BQ[:, None]) & (position_BQ < end_B1)[:, None]
        inside_BQQ = inside_BQQ | torch.eye(width, dtype=torch.bool, device=device)
        prefix = Prefix(self._padded(rows, longest), longest)
        hidden = self.model.hidden_cached(ids_BQ, position_BQ, torch.cat([seen_BQC, inside_BQQ], -1), prefix)
        self.tokens += ids_BQ.numel()
        self.padding += ids_BQ.numel() - sum(ends) + sum(begins)
        self.calls += 1
        return hidden, prefix

    def _padded(self, rows: list[int], longest: int) -> list[tuple[Tensor, Tensor]]:
        """Return what is kept of rows, by layer, as keys and values [B, heads, C, D]."""
        if not longest:
            return []
        empty = next(iter(self._kept.values()))
        parts = [self._kept.get(row) or [(k[:, :0], v[:, :0]) for k, v in empty] for row in rows]

        def stacked(layer: int, which: int) -> Tensor:
            each = [part[layer][which] for part in parts]
            return torch.stack([torch.nn.functional.pad(t, (0, 0, 0, longest - t.shape[1])) for t in each])

        return [(stacked(layer, 0), stacked(layer, 1)) for layer in range(len(empty))]
