"""Weighted masks: drawn from a design for the plan of each completion, before the model scores them.

Shapes: R rows, P passes (canvases), L completion length, W prompt columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import Design, prompt_mask, scored_counts
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import ConfigError, InvalidValueError
from stp_rs.types import Mark

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig


@dataclass(frozen=True)
class Masks:
    """The corrupted canvases (passes) of a batch and the weight of every masked token."""

    mask_PL: NDArray[np.uint8]
    weight_PL: NDArray[np.float32]
    """Zero outside the mask; a masked position may have weight zero (it hides, but is not scored)."""
    row_P: NDArray[np.int32]
    """The row a pass belongs to."""
    scored_RL: NDArray[np.uint8]
    """Positions that the likelihood is about (free ones, or all with `score_prior`)."""
    length_R: NDArray[np.int32]
    """Completion tokens of each row; what lies beyond is padding."""
    prompt_PW: NDArray[np.uint8] | None = None
    """1 where a prompt token is masked too, [P, W] over the batch's prompt columns; None where none is."""


def make_design(args: "STPConfig", num_mc: int | None = None) -> Design:
    """Return the configured design, of another number of passes where one is given.

    Raises:
        ConfigError: `stp_truncate` is no range.
        DesignError: the options do not fit the design.
    """
    truncate = None
    if args.stp_truncate:
        try:
            low, high = (float(part) for part in args.stp_truncate.split(":"))
        except ValueError:
            raise ConfigError(f"stp_truncate: got {args.stp_truncate!r}, needs LOW:HIGH, as 0.2:0.8") from None
        truncate = (low, high)
    eighth = max(1, math.ceil(args.max_completion_length / 8))
    return Design(
        args.stp_design,
        args.num_mc if num_mc is None else num_mc,
        num_iterations=args.num_iterations,
        block_length=args.stp_mask_block or args.block_length or eighth,
        truncate=truncate,
        divide_weights=args.stp_divide_weights,
    )


def scores_prior(design: Design, score_prior: bool) -> bool:
    """Return whether prior tokens are scored: as configured, but never by designs of visited states."""
    return score_prior and design.target not in ("trajectory", "states")


DOUBT_FLOOR = 0.05
"""Least mass of a token under `doubt`: no state is drawn so rarely that its weight dominates an update."""


_LEAST_ENTROPY = 1e-9
"""Nats of a token that was certain: a mass is positive."""


def state_mass(kind: str, completions: Rollout) -> NDArray[np.float32] | None:
    """Return what each token adds to the mass of the state that revealed it, f32 [R, L], or None for one each.

    States are drawn in proportion to the sum: to the tokens revealed there (`reveals`), alike (`uniform`), to the
    probability that the policy left to other tokens (`doubt`: 1 - p), to the exponential of the mean surprisal
    (`surprisal`: RLDF, arXiv 2605.25638, at temperature 1), or to the mean entropy of the tokens revealed there
    (`entropy`: EGSPO, arXiv 2603.12554).

    Raises:
        InvalidValueError: the completions hold no recorded log-probs, which `doubt` and `surprisal` read, or no
            entropies.
    """
    if kind == "reveals":
        return None
    step_RL = completions.unmask_step
    revealed_RL = step_RL >= 0
    state_RL = np.where(revealed_RL, step_RL, 0) + np.arange(len(step_RL))[:, None] * (int(step_RL.max(initial=0)) + 1)

    def of_state(value_RL: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.bincount(state_RL.ravel(), (value_RL * revealed_RL).ravel())
        return np.asarray(total[state_RL], dtype=np.float64)

    mass_RL = 1.0 / np.maximum(of_state(np.ones(step_RL.shape)), 1.0)
    if kind == "entropy":
        if completions.entropy is None:
            raise InvalidValueError(
                "entropy: got none recorded, which stp_states entropy reads; see Batching(entropies)"
            )
        mass_RL *= np.maximum(completions.entropy, _LEAST_ENTROPY)
    elif kind != "uniform":
        if np.isnan(completions.logprob[revealed_RL]).any():
            raise InvalidValueError(f"logprob: got none recorded, which stp_states {kind} reads")
        logprob_RL = completions.logprob.astype(np.float64)
        if kind == "doubt":
            mass_RL = np.maximum(-np.expm1(logprob_RL), DOUBT_FLOOR)
        else:  # at most e^30: what is rarer is drawn as if it were not
            mass_RL *= np.exp(np.minimum(-of_state(logprob_RL) * mass_RL, 30.0))
    return np.asarray(mass_RL, dtype=np.float32)


def draw_masks(
    design: Design,
    completions: Rollout,
    *,
    seed: int,
    iteration: int = 0,
    score_prior: bool = False,
    diffusion_steps: int = 1,
    states: str = "reveals",
) -> Masks:
    """Return a design's masks for each row's own plan, keyed by (seed, uid, iteration).

    Args:
        design: the law of masks and weights.
        completions: their `unmask_step` gives each row's realised plan.
        seed: key of the run.
        iteration: index of the inner iteration (optimiser update), never of the micro-batch.
        score_prior: score prior tokens too, on the even plan of the whole completion at `diffusion_steps` (whatever the
            rollout's quota and blocks), with the row's own temporal merge.
        diffusion_steps: steps of the unpruned plan; read with `score_prior` only.
        states: what `state`, `canvas` and `decision` draw states in proportion to; see `state_mass`.
    """
    unmask_step_RL = np.ascontiguousarray(completions.unmask_step)
    uids_R = np.ascontiguousarray(completions.uid)
    counts_RT = np.empty_like(unmask_step_RL)
    scored_counts(unmask_step_RL, counts_RT, score_prior=score_prior, diffusion_steps=diffusion_steps)
    scored_RL = scored_tokens(unmask_step_RL, score_prior).astype(np.uint8)
    passes = int(np.sum(design.passes(scored_RL, counts_RT)))
    masks = Masks(
        mask_PL=np.empty((passes, unmask_step_RL.shape[1]), dtype=np.uint8),
        weight_PL=np.empty((passes, unmask_step_RL.shape[1]), dtype=np.float32),
        row_P=np.empty(passes, dtype=np.int32),
        scored_RL=scored_RL,
        length_R=canvas_lengths(unmask_step_RL),
    )
    design.draw(
        scored_RL,
        counts_RT,
        unmask_step_RL,
        seed,
        uids_R,
        iteration,
        masks.mask_PL,
        masks.weight_PL,
        masks.row_P,
        mass=state_mass(states, completions),
    )
    hide_undrawn(masks.mask_PL, unmask_step_RL, masks.row_P)
    return masks


def scored_tokens(unmask_step_RL: NDArray[np.int32], score_prior: bool) -> NDArray[np.bool_]:
    """Return [R, L], true at tokens that a likelihood is about: those drawn, and with `score_prior` the prior's."""
    scored: NDArray[np.bool_] = unmask_step_RL >= (Mark.PRIOR if score_prior else 0)
    return scored


def canvas_lengths(unmask_step_RL: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return [R]: the completion tokens of each canvas; what lies beyond is padding."""
    lengths: NDArray[np.int32] = (unmask_step_RL != Mark.OUTSIDE).sum(1, dtype=np.int32)
    return lengths


def hide_undrawn(mask_PL: NDArray[np.uint8], unmask_step_RL: NDArray[np.int32], row_P: NDArray[np.int32]) -> None:
    """Mask positions that were filled and not drawn, in every pass: no drawn token ever saw them."""
    mask_PL[(unmask_step_RL == Mark.UNDRAWN)[row_P]] = 1


def mask_prompts(masks: Masks, completions: Rollout, ratio: float, *, seed: int, iteration: int = 0) -> Masks:
    """Return the masks with each prompt token masked too with probability `ratio`, afresh in every pass.

    Diffu-GRPO (arXiv 2504.12216): 0.15. Keyed by (seed, uid, iteration, pass), as the masks of the completion.
    """
    if ratio == 0.0:
        return masks
    width = completions.prompt_ids.shape[1]
    prompt_RW = (np.arange(width) < completions.prompt_length[:, None]).astype(np.uint8)
    prompt_PW = np.empty((len(masks.row_P), width), dtype=np.uint8)
    uids_R = np.ascontiguousarray(completions.uid)
    prompt_mask(prompt_RW, ratio, seed, uids_R, iteration, masks.row_P, prompt_PW)
    return replace(masks, prompt_PW=prompt_PW)


def without_blame(masks: Masks, unmask_step_RL: NDArray[np.int32], advantage_R: NDArray[np.float32]) -> Masks:
    """Return the masks with weight 0 on prior tokens of completions with a negative advantage.

    What hides the tokens and what a mean is over stay as they are: the free tokens keep their part of the estimate and
    of the gradient; the prior tokens' estimate is 0 under every policy, their ratio 1.
    """
    blamed_RL = (unmask_step_RL == Mark.PRIOR) & (advantage_R < 0)[:, None]
    return replace(masks, weight_PL=np.where(blamed_RL[masks.row_P], np.float32(0.0), masks.weight_PL))


def without_unlikely(
    masks: Masks, logprob_PL: NDArray[np.float32], unmask_step_RL: NDArray[np.int32], least: float
) -> Masks:
    """Return the masks of visited states without the tokens less likely than `least`, which later contexts decided.

    RLDF's clipped clean state (arXiv 2605.25638). What the state itself revealed stays, and a pass its total weight.

    Args:
        masks: passes at states of a rollout.
        logprob_PL: log-probs of their scored tokens under the policy that made the rollout.
        unmask_step_RL: the rollout's.
        least: a probability.
    """
    step_PL = np.where(masks.weight_PL > 0, unmask_step_RL[masks.row_P], np.iinfo(np.int32).max)
    stays_PL = (logprob_PL >= math.log(least)) | (step_PL == step_PL.min(1, keepdims=True))
    weight_PL = np.where(stays_PL, masks.weight_PL, np.float32(0))
    scale_P1 = masks.weight_PL.sum(1, keepdims=True) / np.maximum(weight_PL.sum(1, keepdims=True), 1e-30)
    return replace(masks, weight_PL=(weight_PL * scale_P1).astype(np.float32))


def take_passes(masks: Masks, part: slice | NDArray[np.integer]) -> Masks:
    """Return some of the passes; rows stay as they are numbered."""
    return replace(
        masks,
        mask_PL=masks.mask_PL[part],
        weight_PL=masks.weight_PL[part],
        row_P=masks.row_P[part],
        prompt_PW=None if masks.prompt_PW is None else masks.prompt_PW[part],
    )


MAX_TOKENS = 12
"""Most scored tokens whose 2^n masks are enumerated."""


def mask_bits(n: int) -> NDArray[np.int64]:
    """Return all masks of n positions, [2^n, n] of 0 and 1, in the order of their bits."""
    return (np.arange(1 << n)[:, None] >> np.arange(n)) & 1


def every_mask(completions: Rollout, row: int, *, score_prior: bool = False) -> tuple[Rollout, Masks]:
    """Return a row and all 2^n - 1 masks of its scored positions as passes, weight 1 on every masked token.

    Raises:
        InvalidValueError: more than 12 scored tokens.
    """
    one = completions.select([row])
    scored_L = scored_tokens(one.unmask_step, score_prior)[0]
    free = np.flatnonzero(scored_L)
    if len(free) > MAX_TOKENS:
        raise InvalidValueError(
            f"scored tokens: got {len(free)}, needs at most {MAX_TOKENS} to enumerate masks; sample them instead"
        )
    mask_PL = np.zeros(((1 << len(free)) - 1, len(scored_L)), dtype=np.uint8)
    mask_PL[:, free] = mask_bits(len(free))[1:]
    masks = Masks(
        mask_PL=mask_PL,
        weight_PL=mask_PL.astype(np.float32),
        row_P=np.zeros(len(mask_PL), dtype=np.int32),
        scored_RL=scored_L[None].astype(np.uint8),
        length_R=canvas_lengths(one.unmask_step),
    )
    hide_undrawn(masks.mask_PL, one.unmask_step, masks.row_P)
    return one, masks


def reveals(counts: Sequence[int]) -> NDArray[np.int64]:
    """Return c_s = l_s - l_{s+1} of a plan's mask counts."""
    return -np.diff([*counts, 0])
