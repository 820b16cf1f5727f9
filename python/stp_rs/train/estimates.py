"""What policies say of a micro-batch: its masks at every inner iteration, and the estimates under them.

What needs no gradient is computed before the first update, in as few passes as there are canvases: mask sets of several
inner iterations share a pass, equal ones are estimated once, and where they are those of the first iteration the old
estimate is the one that its gradient pass makes anyway. A completion of advantage 0 that is computed for its KL term
has no old estimate: its ratio is multiplied by 0.

Shapes: R rows, L completion length, P passes.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stp_rs._core import Design
from stp_rs.data.trajectories import Rollout
from stp_rs.models.base import DiffusionModel, device_of, upload
from stp_rs.objective.bounds import pass_estimates, sandwich, token_bounds, upper_share
from stp_rs.objective.head import Entropies
from stp_rs.objective.likelihood import mean_entropy, token_estimates
from stp_rs.objective.loss import objective_of, reads_old
from stp_rs.objective.masks import (
    Masks,
    draw_masks,
    mask_prompts,
    take_passes,
    without_blame,
    without_unlikely,
)
from stp_rs.rollout.params import draws_otherwise, sampling_law
from stp_rs.train.parts import judged
from stp_rs.types import Cost

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig

SHARED_TOKENS = 1 << 13
"""Tokens of a forward without gradient up to which mask sets of several inner iterations share it: more would fill no
device better."""


@dataclass(frozen=True)
class Estimate:
    """A policy's likelihood of a micro-batch under one mask set."""

    token_RL: Tensor
    pass_P: Tensor | None
    """Estimate of each pass alone, per token; None but for the objective `linear`."""
    entropy_RL: Tensor | None = None
    """Entropy at each token, NaN where no pass masked it; None where nobody asked."""


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch of one update, with what needs no gradient."""

    batch: Rollout
    masks: Masks
    there: "OnDevice"
    old: Estimate | None = None
    """None where the policy's new estimate is the old one: at the first inner iteration."""
    reference: Estimate | None = None
    allowed: Tensor | None = None
    """The law's possible tokens, as `token_elbo` takes them."""
    first: "MicroBatch | None" = None
    """The same rows at the first inner iteration, where the masks are equal: its new estimate is the old one."""


@dataclass(frozen=True)
class OnDevice:
    """What a loss and the estimates read of a micro-batch and its masks, on the policy's device."""

    scored_RL: Tensor
    """1 where a token is scored, float."""
    advantages_R: Tensor
    weight_RL: Tensor
    """Each token's total weight; 0 where it is in no mask."""
    row_P: Tensor
    """The row of each pass, i64."""
    weight_PL: Tensor
    """The masks' weights; empty where estimates are not made pass by pass."""
    step_RL: Tensor
    """The step that revealed each token, i64."""
    advantages_RL: Tensor
    """Advantages of tokens; empty where a completion's holds for all of its tokens."""

    @staticmethod
    def of(batch: Rollout, masks: Masks, device: torch.device, *, by_pass: bool) -> "OnDevice":
        """Return the tensors of a micro-batch: one upload."""
        total_RL = np.zeros(masks.scored_RL.shape, dtype=np.float32)
        np.add.at(total_RL, masks.row_P, masks.weight_PL)
        scored_RL, weight_PL = masks.scored_RL.astype(np.float32), masks.weight_PL if by_pass else masks.weight_PL[:0]
        own_RL = total_RL[:0] if batch.token_advantage is None else batch.token_advantage
        row_P, step_RL = masks.row_P.astype(np.int64), batch.unmask_step.astype(np.int64)
        return OnDevice(*upload(device, scored_RL, batch.weights(), total_RL, row_P, weight_PL, step_RL, own_RL))


class Estimator:
    """Makes the masks and estimates of micro-batches, as configured, and counts what that costs.

    Args:
        args: the configuration.
        model: the policy.
        reference: the KL term's reference, or None.
        design: of the masks.
        score_prior: whether tokens of priors are scored.
        diffusion_steps: steps of the unpruned plan.
    """

    def __init__(
        self,
        args: "STPConfig",
        model: DiffusionModel,
        reference: DiffusionModel | None,
        design: Design,
        diffusion_steps: int,
        *,
        score_prior: bool,
    ) -> None:
        self.args, self.model, self.reference = args, model, reference
        self.design, self.score_prior, self.diffusion_steps = design, score_prior, diffusion_steps
        self._objective, self._reads_old, self._upper = objective_of(args), reads_old(args), upper_share(args)
        self._by_pass = self._upper is not None or self._objective.reads_passes
        ratios_in_kl = args.beta > 0 and (args.stp_kl_target == "old" or args.use_bias_correction_kl)
        objective = self._objective
        self._idles = not (self._by_pass or ratios_in_kl or objective.trains_zero or objective.logs_zero)
        """Whether a ratio of a completion of advantage 0 is read by nobody."""
        self.spent: dict[str, Cost] = {}
        """What this process computed and nobody has read, by phase of the ledger."""

    @torch.no_grad()
    def planned(
        self, batch: Rollout, allowed: Tensor | None, *, referenced: bool = True, fresh: bool = True
    ) -> list[MicroBatch]:
        """Return a micro-batch at each inner iteration, with what is read of old and reference estimates.

        `fresh`: at the first one the policy still is the one that drew the rows.
        """
        sets: list[Masks] = []
        which: list[int] = []
        for j in range(self.args.num_iterations):
            masks = self.masks(batch, j, allowed)
            place = next((k for k, known in enumerate(sets) if same_passes(known, masks)), len(sets))
            which.append(place)
            if place == len(sets):
                sets.append(masks)
        device = device_of(self.model)
        parts = [
            MicroBatch(batch, masks, OnDevice.of(batch, masks, device, by_pass=self._by_pass), allowed=allowed)
            for masks in sets
        ]
        if self.reference is not None and referenced:
            estimates = self.estimates(self.reference, parts)
            parts = [replace(part, reference=known) for part, known in zip(parts, estimates, strict=True)]
        if batch.old_estimate is not None:  # known since the policy that drew the rows
            old_JRL = np.moveaxis(batch.old_estimate, 1, 0)
            known = [Estimate(old_RL, None) for old_RL in upload(device, *old_JRL)]
            return [replace(parts[place], old=old) for place, old in zip(which, known, strict=True)]
        first, later = parts[0], list(parts)
        if self._reads_old and (self.args.num_iterations > 1 or not fresh):
            if self._recorded():
                recorded = [upload(device, batch.logprob[part.masks.row_P])[0] for part in parts]
                old = [self.combine(logprob_PL, None, part) for logprob_PL, part in zip(recorded, parts, strict=True)]
                later = [replace(part, old=known) for part, known in zip(parts, old, strict=True)]
            elif not fresh:
                old = self._old(parts)
                later = [replace(part, old=known) for part, known in zip(parts, old, strict=True)]
            else:
                old = self._old(parts[1:])
                others = [replace(part, old=known) for part, known in zip(parts[1:], old, strict=True)]
                later = [replace(first, first=first), *others]
        return [first if fresh else later[0], *(later[place] for place in which[1:])]

    def masks(self, batch: Rollout, iteration: int, allowed: Tensor | None) -> Masks:
        """Return the masks of a micro-batch at an inner iteration."""
        masks = draw_masks(
            self.design,
            batch,
            seed=self.args.seed,
            iteration=iteration,
            score_prior=self.score_prior,
            diffusion_steps=self.diffusion_steps,
            states=self.args.stp_states,
        )
        ratio = self.args.stp_prompt_mask
        masks = mask_prompts(masks, batch, ratio, seed=self.args.seed, iteration=iteration)
        if self.score_prior and not self.args.stp_blame_prior:
            masks = without_blame(masks, batch.unmask_step, batch.weights())
        if self.args.stp_least_prob > 0:
            part = MicroBatch(
                batch, masks, OnDevice.of(batch, masks, device_of(self.model), by_pass=True), allowed=allowed
            )
            logprob_PL, _ = self.by_pass(self.model, part, masks, "none")
            found = logprob_PL.float().cpu().numpy()
            masks = without_unlikely(masks, found, batch.unmask_step, self.args.stp_least_prob)
        return masks

    def idle(self, batch: Rollout) -> bool:
        """Return whether some rows of a micro-batch have no old estimate: their advantage is 0, and nobody reads it."""
        return self._idles and not judged(batch).all()

    def _old(self, parts: list[MicroBatch]) -> list[Estimate]:
        """Return the old policy's estimates, 0 in the rows whose ratio nobody reads."""
        if parts and self.idle(parts[0].batch):
            judged_R = judged(parts[0].batch)
            kept = [take_passes(part.masks, np.flatnonzero(judged_R[part.masks.row_P])) for part in parts]
            parts = [replace(part, masks=masks) for part, masks in zip(parts, kept, strict=True)]
        return self.estimates(self.model, parts)

    def _recorded(self) -> bool:
        """Whether the rollout recorded the old policy's number: its own states, under the law that is scored."""
        same_law = not sampling_law(self.args).cuts and self.args.temperature > 0.0
        same_states = self.design.recorded and self.args.stp_prompt_mask == 0.0
        same_weights = self.args.stp_rollout_weights == "adapters" and not self.args.bf16
        return same_law and same_states and same_weights and not draws_otherwise(self.args)

    def estimate(self, model: DiffusionModel, part: MicroBatch, entropies: Entropies = "none") -> Estimate:
        """Return a policy's estimate of a micro-batch."""
        return self.estimates(model, [part], entropies)[0]

    def estimates(
        self, model: DiffusionModel, parts: list[MicroBatch], entropies: Entropies = "none"
    ) -> list[Estimate]:
        """Return the estimates of one micro-batch under several mask sets, whose canvases share forwards."""
        if not parts:
            return []
        if len(parts) > 1 and parts[0].allowed is not None and parts[0].allowed.dim() == 3:
            return [self.estimate(model, part, entropies) for part in parts]  # a table per row is not repeated
        batch, joined, cost = parts[0].batch, joined_masks([part.masks for part in parts]), Cost()
        estimate = partial(
            pass_estimates if self._by_pass else token_estimates,
            temperature=self.args.temperature,
            forward_batch_size=self.canvases(parts),
            allowed=parts[0].allowed,
            entropies=entropies,
            cost=cost,
        )
        rows = batch if len(parts) == 1 else batch.select(np.tile(np.arange(len(batch)), len(parts)))
        found, entropy = estimate(model, rows, joined)
        self._count(cost)
        sizes = [len(part.masks.row_P) if self._by_pass else len(batch) for part in parts]
        entropies_of = [None] * len(parts) if entropy is None else torch.split(entropy, sizes)
        triples = zip(torch.split(found, sizes), entropies_of, parts, strict=True)
        if self._by_pass:
            return [self.combine(*triple) for triple in triples]
        return [Estimate(self._per_token(total_RL, part), None, entropy_RL) for total_RL, entropy_RL, part in triples]

    def _per_token(self, total_RL: Tensor, part: MicroBatch) -> Tensor:
        if not self.design.per_token:
            return total_RL
        weight_RL = part.there.weight_RL
        return total_RL / weight_RL.masked_fill(weight_RL == 0, 1.0)

    def canvases(self, parts: list[MicroBatch]) -> int:
        """Return the canvases of a likelihood forward; 0 means all.

        Mask sets share a forward as whole sets, so that a large policy's canvases are batched as in its gradient pass.
        """
        rows, passes = len(parts[0].batch), max(len(part.masks.row_P) for part in parts)
        given = self.args.stp_forward_batch_size or (rows if self.args.stp_constant_memory else 0)
        if given or len(parts) == 1:
            return given
        width = int((parts[0].batch.prompt_length + parts[0].masks.length_R).max())
        return passes * max(1, SHARED_TOKENS // max(1, passes * width))

    def by_pass(
        self, model: DiffusionModel, part: MicroBatch, masks: Masks, entropies: Entropies
    ) -> tuple[Tensor, Tensor | None]:
        """Return log-probs [P, L] of a micro-batch's tokens in each pass, and entropies where they are asked for."""
        cost = Cost()
        estimates = pass_estimates(
            model,
            part.batch,
            masks,
            entropies=entropies,
            temperature=self.args.temperature,
            forward_batch_size=self.canvases([part]),
            allowed=part.allowed,
            cost=cost,
        )
        self._count(cost)
        return estimates

    def _count(self, cost: Cost) -> None:
        for phase in ("likelihood", *(["backward"] if torch.is_grad_enabled() else [])):
            self.spent[phase] = self.spent.get(phase, Cost()) + cost

    def combine(self, logprob_PL: Tensor, entropy_PL: Tensor | None, part: MicroBatch) -> Estimate:
        """Return the estimate that the passes' log-probs add up to."""
        batch, masks, there = part.batch, part.masks, part.there
        weight_PL = there.weight_PL if len(there.weight_PL) else upload(logprob_PL.device, masks.weight_PL)[0]
        weighted_PL = weight_PL * logprob_PL
        pass_P = entropy_RL = None
        if entropy_PL is not None:
            zero_RL = torch.zeros(masks.scored_RL.shape, device=logprob_PL.device)
            passes_RL = zero_RL.index_add(0, there.row_P, (~entropy_PL.isnan()).float())
            entropy_RL = mean_entropy(zero_RL.index_add(0, there.row_P, entropy_PL.nan_to_num(0.0)), passes_RL)
        if self._objective.reads_passes:
            passes_R = np.bincount(masks.row_P, minlength=len(batch))
            tokens_R = 1 if self.design.per_token else masks.scored_RL.sum(1).clip(min=1)
            (scale_P,) = upload(logprob_PL.device, (passes_R / tokens_R)[masks.row_P].astype(np.float32))
            pass_P = scale_P * weighted_PL.sum(-1)
        if self._upper is None:
            total_RL = logprob_PL.new_zeros(masks.scored_RL.shape).index_add(0, there.row_P, weighted_PL)
            return Estimate(self._per_token(total_RL, part), pass_P, entropy_RL)
        elbo_RL, eubo_RL = token_bounds(
            logprob_PL, masks, beta=self.args.stp_bound_power, per_token=self.design.per_token
        )
        token_RL = sandwich(elbo_RL, eubo_RL, there.advantages_R, mixture=self._upper)
        return Estimate(token_RL, pass_P, entropy_RL)

    def share(self, part: MicroBatch) -> Tensor | None:
        """Return the weights of a published mean per token; None where the mean is over all scored tokens."""
        return part.there.weight_RL if self.design.per_token and self._upper is None else None


def same_passes(one: Masks, other: Masks) -> bool:
    """Return whether two mask sets of the same rows are the same canvases with the same weights."""
    if (one.prompt_PW is None) != (other.prompt_PW is None):
        return False
    names = (
        ("row_P", "mask_PL", "weight_PL") if one.prompt_PW is None else ("row_P", "mask_PL", "weight_PL", "prompt_PW")
    )
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def joined_masks(sets: list[Masks]) -> Masks:
    """Return mask sets of the same rows as one set: those of the k-th are on the rows k R and up."""
    if len(sets) == 1:
        return sets[0]
    rows = len(sets[0].scored_RL)
    prompts = [masks.prompt_PW for masks in sets if masks.prompt_PW is not None]
    return Masks(
        mask_PL=np.concatenate([masks.mask_PL for masks in sets]),
        weight_PL=np.concatenate([masks.weight_PL for masks in sets]),
        row_P=np.concatenate([masks.row_P + np.int32(k * rows) for k, masks in enumerate(sets)]),
        scored_RL=np.concatenate([masks.scored_RL for masks in sets]),
        length_R=np.concatenate([masks.length_R for masks in sets]),
        prompt_PW=np.concatenate(prompts) if prompts else None,
    )
