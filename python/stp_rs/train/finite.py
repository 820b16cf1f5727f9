"""Whether an update's numbers are finite, and where they stop being so."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stp_rs.train.estimates import Estimator, MicroBatch

LARGEST_NORM = 1e18
"""Gradients of a larger norm count as infinite: their squares are, in float32, and the optimiser would keep those."""


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold a NaN or infinity, here; one copy from each device."""
    names: dict[torch.device, list[str]] = {}
    fine: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.element_size() > 1 and tensor.device.type != "meta":
            own: Tensor = getattr(tensor, "_local_tensor", tensor)  # of one that is shared out
            names.setdefault(own.device, []).append(name)
            fine[name] = torch.isfinite(own).all()
    bad: list[str] = []
    for there in names.values():
        flags = torch.stack([fine[name] for name in there]).tolist()
        bad += [name for name, is_fine in zip(there, flags, strict=True) if not is_fine]
    return bad


@torch.no_grad()
def row_of(estimator: Estimator, parts: list[MicroBatch], losses: list[float]) -> dict[str, Any]:
    """Return which row of micro-batches with these losses is not finite, or has drifted most; nothing where all are."""
    for loss, part in zip(losses, parts, strict=True):
        estimate_RL = estimator.estimate(estimator.model, part).token_RL
        bad_R = ~torch.isfinite(estimate_RL).all(-1)
        if math.isfinite(loss) and not bad_R.any():
            continue
        gaps_R = torch.zeros_like(estimate_RL[:, 0])
        for other in (part.old, part.reference):
            if other is not None:
                gaps_R += (estimate_RL - other.token_RL).sum(-1).abs()
        row = int(torch.where(bad_R, torch.inf, gaps_R).argmax())
        largest = f"whose log-ratio is the largest, {float(gaps_R[row]):.4g}"
        what = "whose estimate is not finite" if bad_R.any() else largest
        prompt, completions = part.batch.prompts.rows[row].get("prompt"), part.batch.completions
        return {
            **{"row": row, "uid": int(part.batch.uid[row]), "prompt": prompt},
            "completion": completions[row] if completions else None,
            "where": f" (a row {what}: prompt {prompt!r:.80})",
        }
    return {}
