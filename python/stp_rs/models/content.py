"""What a tensor holds as a few bytes, made on the device where it lies: gigabytes of weights need not travel."""

import functools

import numpy as np
import torch
from torch import Tensor

_WORDS = 1 << 16
"""Words of 32 bits that one number sums: a part of what the bytes are, and what a core's cache holds."""
_AT_ONCE = {"cpu": 1}
"""Such numbers that are made in one call, at 1 MiB each while it runs; 256 on any other device."""


def content_digest(tensor: Tensor) -> bytes:
    """Return 16 bytes for each 256 KiB of a tensor and its rest, the same on every device, whatever its shape and type.

    Two sums of every word times an odd constant of its place, modulo 2^64: one changed word changes both, and other
    changes leave both as they were with a chance of about 2^-64. That finds other weights, not an adversary's.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if data.numel() % 4 or data.storage_offset() % 4 or data.data_ptr() % 4:
        data = torch.nn.functional.pad(data, (0, -data.numel() % 4))
    words = data.view(torch.int32)
    whole = words.numel() // _WORDS * _WORDS
    parts = [*words[:whole].view(-1, _WORDS).split(_AT_ONCE.get(tensor.device.type, 256)), words[None, whole:]]
    sums = [
        torch.stack([(part.long() * places[: part.shape[1]]).sum(-1) for places in _places(tensor.device)], dim=1)
        for part in parts
    ]
    return bytes(torch.cat(sums).cpu().numpy().tobytes())


@functools.lru_cache(maxsize=2)
def _places(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two odd constants for each place of a sum (SplitMix64)."""
    made = []
    for stream in (1, 2):
        mixed = (np.arange(_WORDS, dtype=np.uint64) + np.uint64(stream << 32)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        made.append(torch.from_numpy((mixed | np.uint64(1)).view(np.int64)).to(device))
    return made[0], made[1]
