"""The law that tokens are drawn from, and the plan that a configuration asks for.

Shapes: N candidates, V vocabulary, R rows, L completion length.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stp_rs._core import Unmasking
from stp_rs.errors import InvalidValueError

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig


@dataclass(frozen=True)
class SamplingParams:
    """The sampling law: allowed tokens, logits / temperature, top-k, top-p, min-p. Temperature 0 is greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    """Least probability of a token, as a share of the most likely one's."""
    allowed: Tensor | None = field(default=None, compare=False, repr=False)
    """Bool [V], [L, V] per completion position, or [R, L, V]: the other tokens are impossible, both for sampling and
    in every number of a candidate. None allows all."""

    @property
    def cuts(self) -> bool:
        """Whether some tokens that are allowed are never drawn."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0


GREEDY = SamplingParams(temperature=0.0)


def check_allowed(law: SamplingParams, mask_token_id: int, device: torch.device) -> SamplingParams:
    """Return the law with its allowed tokens on a device and the mask token taken out of them.

    Raises:
        InvalidValueError: not bool, or a place where no token is left.
    """
    there = placed(law.allowed, device)
    if there is None:
        return law
    allowed = there.clone()
    allowed[..., mask_token_id] = False
    if not bool(allowed.any(-1).all()):
        raise InvalidValueError("allowed: got a place without any token, needs at least one besides the mask token")
    return replace(law, allowed=allowed)


def placed(allowed: Tensor | None, device: torch.device) -> Tensor | None:
    """Return allowed tokens on a device.

    Raises:
        InvalidValueError: not bool of one to three dimensions.
    """
    if allowed is not None and (allowed.dtype != torch.bool or allowed.dim() not in (1, 2, 3)):
        raise InvalidValueError(
            f"allowed: got {allowed.dtype} {list(allowed.shape)}, needs bool [V], [L, V] or [R, L, V]"
        )
    return None if allowed is None else allowed.to(device)


def restricted(allowed: Tensor | None, rows: NDArray[np.integer]) -> Tensor | None:
    """Return the allowed tokens of some rows of a batch: a table that all rows share stays as it is."""
    if allowed is None or allowed.dim() < 3:
        return allowed
    return allowed[torch.from_numpy(rows.astype(np.int64)).to(allowed.device)]


def allowed_rows(law: SamplingParams, places_N: Tensor, length: int) -> Tensor | None:
    """Return the allowed tokens [V] or [N, V] of candidates at `places_N`, row times L plus completion position."""
    allowed = law.allowed
    if allowed is None or allowed.dim() == 1:
        return allowed
    return allowed[places_N % length] if allowed.dim() == 2 else allowed.flatten(0, 1)[places_N]


def make_unmasking(config: "STPConfig", *, prune: bool = True) -> Unmasking:
    """Return the unmasking of a configuration; `prune=False` leaves temporal pruning and truncation out."""
    return Unmasking(
        config.diffusion_steps or max(1, config.max_completion_length),
        block_length=config.block_length or 0,
        quota=config.stp_quota,
        selection=config.stp_selection,
        confidence=config.stp_confidence,
        temporal=config.stp_temporal if prune else "none",
        max_nfe=(config.stp_max_nfe or 0) if prune else 0,
        eos=config.stp_eos if prune or config.stp_eos != "truncate" else "none",
    )


def draws_otherwise(config: "STPConfig") -> bool:
    """Return whether rollouts are drawn from another law than the policy's, whose log-probs they record."""
    return config.stp_rollout_cache != "none" or config.stp_rollout_precision != "same"


def sampling_law(config: "STPConfig") -> SamplingParams:
    """Return the training-time sampling law of a configuration."""
    return SamplingParams(config.temperature, config.top_k, config.top_p, config.min_p or 0.0)
