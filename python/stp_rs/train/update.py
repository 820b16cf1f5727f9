"""One rollout batch's optimiser updates: masks, estimates, loss, backward, step.

The inner index counts optimiser updates and never micro-batches: every micro-batch uses each of its `num_iterations`
mask sets exactly once, and new, old and reference policy see the same masks.

What needs no gradient is computed before the first update, in as few passes as there are canvases: mask sets of several
inner iterations share a pass, equal ones are estimated once, and where they are those of the first iteration the old
estimate is the one that its gradient pass makes anyway. Losses, norms and metrics stay on the device: they are read
once per optimiser update, which is not applied where they are not finite.

Shapes: R rows, L completion length, P passes.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stp_rs._core import permutation
from stp_rs.data.trajectories import Rollout
from stp_rs.distributed import agree, divide, gather, most, rank, sum_gradients, world
from stp_rs.errors import ConfigError, DivergenceError
from stp_rs.models.acceleration import adapters_ready
from stp_rs.models.base import DiffusionModel, device_of, end_token_ids, in_step, is_sharded, upload
from stp_rs.models.sharding import Idle, whole
from stp_rs.objective.bounds import pass_estimates, sandwich, token_bounds, upper_share
from stp_rs.objective.head import Entropies
from stp_rs.objective.likelihood import mean_entropy, token_estimates
from stp_rs.objective.loss import (
    LossInputs,
    Passes,
    clipped_ratio_sum,
    objective_of,
    policy_loss,
    reads_entropy,
    reads_old,
)
from stp_rs.objective.masks import (
    Masks,
    canvas_lengths,
    draw_masks,
    make_design,
    mask_prompts,
    scored_tokens,
    scores_prior,
    take_passes,
    without_blame,
    without_unlikely,
)
from stp_rs.rollout.params import draws_otherwise, restricted, sampling_law
from stp_rs.train.metrics import Ledger, averaged
from stp_rs.types import Cost, Mark, Metrics

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig

SHARED_TOKENS = 1 << 13
"""Tokens of a forward without gradient up to which mask sets of several inner iterations share it: more would fill no
device better."""


LARGEST_NORM = 1e18
"""Gradients of a larger norm count as infinite: their squares are, in float32, and the optimiser would keep those."""


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


@dataclass(frozen=True)
class Totals:
    """What the mean of a loss is over: the whole update, all micro-batches of all processes together."""

    completions: int
    tokens: float
    rows: int
    mean_ratio: Tensor | float | None = None


@dataclass(frozen=True)
class Plan:
    """One update: what its means are over, and its micro-batches."""

    totals: Totals
    columns: list[list[MicroBatch]]
    """Of this process, each at every inner iteration."""
    count: int
    """Micro-batches of all processes."""
    used: int
    """Their rows."""
    rounds: int
    """Backward passes that each process makes: one per micro-batch of its own, and where the weights are shared out as
    many as the busiest one."""


class PolicyUpdate:
    """Makes the optimiser updates of a rollout batch, as configured.

    Args:
        args: the configuration.
        model: the policy.
        reference: the KL term's reference, or None.
        optimizer: of the policy's parameters.
        ledger: counts the passes.
        diffusion_steps: steps of the unpruned plan.
        tell: hears the events of transformers' callbacks that are about the optimiser.
    """

    def __init__(
        self,
        args: "STPConfig",
        model: DiffusionModel,
        reference: DiffusionModel | None,
        optimizer: torch.optim.Optimizer,
        ledger: Ledger,
        diffusion_steps: int,
        tell: Callable[[str], None] = lambda _event: None,
    ) -> None:
        self.args, self.model, self.reference = args, model, reference
        self.optimizer, self.ledger, self.diffusion_steps = optimizer, ledger, diffusion_steps
        self.tell = tell
        self.design = make_design(args)
        self.score_prior = scores_prior(self.design, args.stp_score_prior)
        self._objective, self._reads_old, self._upper = objective_of(args), reads_old(args), upper_share(args)
        self.replayed: Rollout | None = None
        """Rows of the last `stp_replay_batches` policy versions, with the estimates of the policies that drew them."""
        if args.stp_replay_batches and (not self._reads_old or self._objective.reads_passes):
            raise ConfigError(
                f"stp_replay_batches: got {args.stp_replay_batches} with stp_objective {args.stp_objective}, needs an "
                "objective with a ratio per token or completion to the policy that drew the rows"
            )
        self._by_pass = self._upper is not None or self._objective.reads_passes
        self._shared_out = is_sharded(model.module) and world() > 1
        self._spent: dict[str, Cost] = {}
        """What this process computed and the ledger has not heard of."""

    def run(self, rollout: Rollout, allowed: Tensor | None = None) -> Metrics:
        """Make the updates of a rollout batch; return the means of their metrics."""
        logged: dict[str, list[float]] = {}
        for metrics in self.updates(rollout, allowed):
            for name, value in metrics.items():
                logged.setdefault(name, []).append(value)
        return averaged(logged)

    def updates(self, rollout: Rollout, allowed: Tensor | None = None, number: int = 0) -> Iterator[Metrics]:
        """Make the updates of a rollout batch, one after the other: yield the metrics of each when it is made.

        Every estimate of the old policy is made before the first update, or in its gradient pass.

        Args:
            rollout: the batch, with its advantages.
            allowed: the tokens that the rollout's law could draw, bool [V], [L, V] or [R, L, V].
            number: of the rollout batch; keys the shuffle where one pass makes several updates.
        """
        if self.args.stp_replay_batches:
            rollout = self._joined(rollout, number, allowed)
        with self.ledger.time("scoring"), adapters_ready(self.model.module):
            plans = agree(lambda: self._plans(self._shards(rollout, allowed, number)))
        first: dict[int, Estimate] = {}
        for place, (j, k) in enumerate(np.ndindex(self.args.num_iterations, len(plans))):
            plan = plans[k]
            self.tell("on_step_begin")
            parts = [self._with_old(column[j], first) for column in plan.columns]
            self.optimizer.zero_grad(set_to_none=True)
            totals = replace(plan.totals, mean_ratio=self._mean_ratio(parts, plan))
            make = partial(self._gradients, parts, totals, plan.rounds, first if place == 0 else None)
            found = self._summed(make, plan)
            stepped = self._step_optimizer(
                f"rollout batch {number}, update {place + 1}", found, partial(self._located, parts, totals)
            )
            stepped["diffusion/rows_used"] = plan.used / totals.rows
            if self.args.stp_replay_batches:
                stepped["diffusion/staleness"] = float((number - rollout.policy_version).mean())
            yield stepped

    def _gradients(
        self, parts: list[MicroBatch], totals: Totals, rounds: int, first: dict[int, Estimate] | None
    ) -> dict[str, list[Tensor]]:
        """Add the gradients of micro-batches; return losses and metrics of each by name, on the device.

        `first` gets their estimates, where they are those of the policy that the batch came from.
        """
        logged: dict[str, list[Tensor]] = {"loss": []}
        for number in range(rounds):
            if number:
                self.tell("on_substep_end")
            part = parts[number] if number < len(parts) else None
            made = self._backward(part, totals)
            if part is None or made is None:
                continue
            loss, metrics, new = made
            if first is not None:
                first[id(part)] = Estimate(new.token_RL.detach(), None if new.pass_P is None else new.pass_P.detach())
            for name, value in {"loss": loss, **metrics}.items():
                logged.setdefault(name, []).append(value)
        return logged

    @torch.no_grad()
    def measure(self, rollout: Rollout, allowed: Tensor | None = None) -> Metrics:
        """Return loss and metrics of completions under the policy as it is, without an update."""
        (plan,) = agree(lambda: self._plans([(rollout, allowed, True)]))

        def own() -> dict[str, list[Tensor]]:
            logged: dict[str, list[Tensor]] = {"loss": []}
            with in_step(self.model):
                for part, *_ in plan.columns:
                    loss, metrics = self._loss(part, self._estimate(self.model, part, "numbers"), plan.totals)
                    for name, value in {"loss": loss, **metrics}.items():
                        logged.setdefault(name, []).append(value)
            return logged

        found = self._told(own)
        return {"loss": sum(found.pop("loss"), 0.0), **averaged(found)}

    def _shards(
        self, rollout: Rollout, allowed: Tensor | None, number: int
    ) -> Iterator[tuple[Rollout, Tensor | None, bool]]:
        """Yield the rows of each update of a pass over the batch: all, or shuffled parts (steps_per_generation).

        With them: their allowed tokens, and whether the policy still is the one that drew them when they come first.
        """
        count = self.args.updates_per_rollout // self.args.num_iterations
        if count == 1:
            yield rollout, allowed, True
            return
        order = np.array(permutation(self.args.seed, number, len(rollout)), dtype=np.int64)
        for k, part in enumerate(np.array_split(order, count)):
            rows = np.sort(part)
            yield rollout.select(rows), restricted(allowed, rows), k == 0

    def _plans(self, shards: Iterable[tuple[Rollout, Tensor | None, bool]]) -> list[Plan]:
        with in_step(self.model):
            return [self._plan(*shard) for shard in shards]

    def _plan(self, rollout: Rollout, allowed: Tensor | None, fresh: bool) -> Plan:
        """Return what the means of an update are over, and its micro-batches, each at every inner iteration."""
        rows = micro_batches(rollout, self.args, end_token_ids(self.model))
        shares = self._dealt(rollout, rows)
        columns = [self._planned(rollout.minibatch(p), restricted(allowed, p), fresh=fresh) for p in shares[rank()]]
        rounds = max(map(len, shares)) if self._shared_out else len(columns)
        return Plan(self._totals(rollout), columns, len(rows), sum(map(len, rows)), rounds)

    def _dealt(self, rollout: Rollout, rows: list[NDArray[np.int64]]) -> list[list[NDArray[np.int64]]]:
        """Return the micro-batches of each process: they are the same ones whatever the number of processes."""
        return dealt(rollout, rows)

    @torch.no_grad()
    def _joined(self, rollout: Rollout, number: int, allowed: Tensor | None) -> Rollout:
        """Return the batch and the rows that are trained on again, each with its own policy's estimates."""
        if allowed is not None and allowed.dim() == 3:
            raise ConfigError("stp_replay_batches: got priors that allow other tokens in every row, needs one table")
        old_RJL = np.zeros((len(rollout), self.args.num_iterations, rollout.token_ids.shape[1]), dtype=np.float32)
        parts = self._dealt(rollout, micro_batches(rollout, self.args, end_token_ids(self.model)))[rank()]

        def own() -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
            found = []
            with in_step(self.model):
                for part in parts:
                    planned = self._planned(rollout.minibatch(part), allowed, referenced=False)
                    first = self._estimate(self.model, planned[0])
                    old = [first, *(later.old or first for later in planned[1:])]
                    found.append((part, torch.stack([known.token_RL.float() for known in old], dim=1).cpu().numpy()))
            return found

        with self.ledger.time("scoring"), adapters_ready(self.model.module):
            for part, estimates_rJL in itertools.chain.from_iterable(gather(own)):
                old_RJL[part] = estimates_rJL
        fresh = rollout.replaced(old_estimate=old_RJL)
        joined = fresh if self.replayed is None else Rollout.concat([fresh, self.replayed])
        self.replayed = joined.evict(number + 1 - self.args.stp_replay_batches)
        return joined

    @torch.no_grad()
    def _planned(
        self, batch: Rollout, allowed: Tensor | None, *, referenced: bool = True, fresh: bool = True
    ) -> list[MicroBatch]:
        """Return a micro-batch at each inner iteration, with what is read of old and reference estimates.

        `fresh`: at the first one the policy still is the one that drew the rows.
        """
        sets: list[Masks] = []
        which: list[int] = []
        for j in range(self.args.num_iterations):
            masks = self._masks(batch, j, allowed)
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
            estimates = self._estimates(self.reference, parts)
            parts = [replace(part, reference=known) for part, known in zip(parts, estimates, strict=True)]
        if batch.old_estimate is not None:  # known since the policy that drew the rows
            old_JRL = np.moveaxis(batch.old_estimate, 1, 0)
            known = [Estimate(old_RL, None) for old_RL in upload(device, *old_JRL)]
            return [replace(parts[place], old=old) for place, old in zip(which, known, strict=True)]
        first, later = parts[0], list(parts)
        if self._reads_old and (self.args.num_iterations > 1 or not fresh):
            if self._recorded():
                recorded = [upload(device, batch.logprob[part.masks.row_P])[0] for part in parts]
                old = [self._combine(logprob_PL, None, part) for logprob_PL, part in zip(recorded, parts, strict=True)]
                later = [replace(part, old=known) for part, known in zip(parts, old, strict=True)]
            elif not fresh:
                old = self._estimates(self.model, parts)
                later = [replace(part, old=known) for part, known in zip(parts, old, strict=True)]
            else:
                old = self._estimates(self.model, parts[1:])
                others = [replace(part, old=known) for part, known in zip(parts[1:], old, strict=True)]
                later = [replace(first, first=first), *others]
        return [first if fresh else later[0], *(later[place] for place in which[1:])]

    def _masks(self, batch: Rollout, iteration: int, allowed: Tensor | None) -> Masks:
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
            logprob_PL, _ = self._pass_estimates(self.model, part, masks, "none")
            found = logprob_PL.float().cpu().numpy()
            masks = without_unlikely(masks, found, batch.unmask_step, self.args.stp_least_prob)
        return masks

    @staticmethod
    def _with_old(part: MicroBatch, first: dict[int, Estimate]) -> MicroBatch:
        """Return the part with the old estimate that the first inner iteration made, where it is of the same masks."""
        return part if part.first is None else replace(part, old=first[id(part.first)])

    def _recorded(self) -> bool:
        """Whether the rollout recorded the old policy's number: its own states, under the law that is scored."""
        same_law = not sampling_law(self.args).cuts and self.args.temperature > 0.0
        same_states = self.design.recorded and self.args.stp_prompt_mask == 0.0
        same_weights = self.args.stp_rollout_weights == "adapters" and not self.args.bf16
        return same_law and same_states and same_weights and not draws_otherwise(self.args)

    def _estimate(self, model: DiffusionModel, part: MicroBatch, entropies: Entropies = "none") -> Estimate:
        return self._estimates(model, [part], entropies)[0]

    def _estimates(
        self, model: DiffusionModel, parts: list[MicroBatch], entropies: Entropies = "none"
    ) -> list[Estimate]:
        """Return the estimates of one micro-batch under several mask sets, whose canvases share forwards."""
        if not parts:
            return []
        if len(parts) > 1 and parts[0].allowed is not None and parts[0].allowed.dim() == 3:
            return [self._estimate(model, part, entropies) for part in parts]  # a table per row is not repeated
        batch, joined, cost = parts[0].batch, joined_masks([part.masks for part in parts]), Cost()
        estimate = partial(
            pass_estimates if self._by_pass else token_estimates,
            temperature=self.args.temperature,
            forward_batch_size=self._canvases(parts),
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
            return [self._combine(*triple) for triple in triples]
        return [Estimate(self._per_token(total_RL, part), None, entropy_RL) for total_RL, entropy_RL, part in triples]

    def _per_token(self, total_RL: Tensor, part: MicroBatch) -> Tensor:
        if not self.design.per_token:
            return total_RL
        weight_RL = part.there.weight_RL
        return total_RL / weight_RL.masked_fill(weight_RL == 0, 1.0)

    def _canvases(self, parts: list[MicroBatch]) -> int:
        """Return the canvases of a likelihood forward; 0 means all.

        Mask sets share a forward as whole sets, so that a large policy's canvases are batched as in its gradient pass.
        """
        rows, passes = len(parts[0].batch), max(len(part.masks.row_P) for part in parts)
        given = self.args.stp_forward_batch_size or (rows if self.args.stp_constant_memory else 0)
        if given or len(parts) == 1:
            return given
        width = int((parts[0].batch.prompt_length + parts[0].masks.length_R).max())
        return passes * max(1, SHARED_TOKENS // max(1, passes * width))

    def _pass_estimates(
        self, model: DiffusionModel, part: MicroBatch, masks: Masks, entropies: Entropies
    ) -> tuple[Tensor, Tensor | None]:
        cost = Cost()
        estimates = pass_estimates(
            model,
            part.batch,
            masks,
            entropies=entropies,
            temperature=self.args.temperature,
            forward_batch_size=self._canvases([part]),
            allowed=part.allowed,
            cost=cost,
        )
        self._count(cost)
        return estimates

    def _count(self, cost: Cost) -> None:
        for phase in ("likelihood", *(["backward"] if torch.is_grad_enabled() else [])):
            self._spent[phase] = self._spent.get(phase, Cost()) + cost

    def _combine(self, logprob_PL: Tensor, entropy_PL: Tensor | None, part: MicroBatch) -> Estimate:
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

    def _inputs(self, part: MicroBatch, new: Estimate) -> LossInputs:
        old_RL = new.token_RL.detach() if part.old is None else part.old.token_RL
        passes = None
        if new.pass_P is not None:
            old_P = new.pass_P.detach() if part.old is None or part.old.pass_P is None else part.old.pass_P
            passes = Passes(new.pass_P, old_P, part.there.row_P)
        ref_RL = None if part.reference is None else part.reference.token_RL
        if self.args.beta > 0 and self.args.stp_kl_target == "old":
            ref_RL = old_RL
        return LossInputs(
            new_RL=new.token_RL,
            old_RL=old_RL,
            ref_RL=ref_RL,
            advantages_R=part.there.advantages_R,
            scored_RL=part.there.scored_RL,
            share_RL=self._share(part),
            passes=passes,
            step_RL=part.there.step_RL,
            advantages_RL=part.there.advantages_RL if len(part.there.advantages_RL) else None,
            entropy_RL=new.entropy_RL,
        )

    def _share(self, part: MicroBatch) -> Tensor | None:
        """Return the weights of a published mean per token; None where the mean is over all scored tokens."""
        return part.there.weight_RL if self.design.per_token and self._upper is None else None

    def _backward(self, part: MicroBatch | None, totals: Totals) -> tuple[Tensor, dict[str, Tensor], Estimate] | None:
        """Add the micro-batch's gradient; return (loss, metrics, the new estimate).

        Without one, help those that have one: where weights are shared out, all make the same passes.
        """
        entropies: Entropies = "gradient" if self.args.entropy_coef != 0.0 else "numbers"  # they are logged
        made = None
        if self.args.stp_constant_memory:
            made = self._backward_by_parts(part, totals, entropies)
        else:
            with in_step(self.model, graded=True) as idle:
                if part is not None:
                    new = self._estimate(self.model, part, entropies)
                    made = (new, *self._loss(part, new, totals))
            self._differentiate(None if made is None else made[1], idle)
        if part is None or made is None:
            return None
        new, loss, metrics = made
        metrics["diffusion/token_elbo"] = self._token_elbo(new.token_RL.detach(), part)
        return loss.detach(), metrics, new

    def _differentiate(self, value: Tensor | None, idle: Idle | None) -> None:
        """Add the gradient of a value; that of a policy whose weights are shared out is the mean over the processes."""
        if idle is None:
            if value is not None:
                value.backward()
            return
        terms = [*([] if value is None else [value * world()]), *([] if idle.total is None else [idle.total])]
        if terms:
            torch.stack([term.float() for term in terms]).sum().backward()

    def _backward_by_parts(
        self, part: MicroBatch | None, totals: Totals, entropies: Entropies
    ) -> tuple[Estimate, Tensor, dict[str, Tensor]] | None:
        """Find the loss's coefficients without a graph, then backpropagate some passes at a time."""
        made: tuple[Estimate, Tensor, dict[str, Tensor]] | None = None
        gradients: list[Callable[[], Tensor]] = []
        with in_step(self.model):
            if part is not None:
                made, gradients = self._coefficients(part, totals, entropies)
        for number in range(most(len(gradients)) if self._shared_out else len(gradients)):
            with in_step(self.model, graded=True) as idle:
                value = gradients[number]() if number < len(gradients) else None
            self._differentiate(value, idle)
        return made

    def _coefficients(
        self, part: MicroBatch, totals: Totals, entropies: Entropies
    ) -> tuple[tuple[Estimate, Tensor, dict[str, Tensor]], list[Callable[[], Tensor]]]:
        """Return estimate, loss and metrics, and what makes the values whose gradients add up to the loss's."""
        masks, size = part.masks, self._canvases([part])
        with torch.no_grad():
            logprob_PL, entropy_PL = self._pass_estimates(self.model, part, masks, entropies)
        leaves = [logprob_PL] if entropies == "numbers" or entropy_PL is None else [logprob_PL, entropy_PL]
        for leaf_PL in leaves:
            leaf_PL.requires_grad_()
        new = self._combine(logprob_PL, entropy_PL, part)
        loss, metrics = self._loss(part, new, totals)
        coefficients = torch.autograd.grad(loss, leaves)

        def value(some: slice) -> Tensor:
            again: Entropies = "gradient" if len(leaves) == 2 else "none"
            made = self._pass_estimates(self.model, part, take_passes(masks, some), again)
            total = (made[0] * coefficients[0][some]).sum()
            if made[1] is not None:
                total = total + (made[1].nan_to_num(0.0) * coefficients[1][some]).sum()
            return total

        starts = range(0, len(masks.row_P), size)
        return (new, loss, metrics), [partial(value, slice(start, start + size)) for start in starts]

    def _loss(self, part: MicroBatch, new: Estimate, totals: Totals) -> tuple[Tensor, dict[str, Tensor]]:
        return policy_loss(
            self._inputs(part, new),
            self.args,
            num_completions=totals.completions,
            num_tokens=totals.tokens,
            mean_ratio=totals.mean_ratio,
        )

    @torch.no_grad()
    def _mean_ratio(self, parts: list[MicroBatch], plan: Plan) -> Tensor | float | None:
        """Return the mean clipped ratio over the update's micro-batches, where the objective reads it."""
        if not self._objective.reads_mean_ratio or plan.count < 2:
            return None  # one micro-batch has its own

        def own() -> tuple[Tensor | float, int] | None:
            if not parts or parts[0].old is None:  # at the first iteration every ratio is 1
                with in_step(self.model):
                    return None
            with in_step(self.model):
                made = [self._inputs(part, self._estimate(self.model, part)) for part in parts]
            total = torch.stack([clipped_ratio_sum(inputs, self.args) for inputs in made]).sum()
            judged = sum(int((part.batch.weights() != 0).sum()) for part in parts)
            return total if world() == 1 else float(total), judged

        found = [sums for sums in gather(own) if sums is not None]
        if not found:
            return None
        total: Tensor | float = sum(total for total, _ in found)
        return total / max(1, sum(judged for _, judged in found))

    def _token_elbo(self, new_RL: Tensor, part: MicroBatch) -> Tensor:
        """Return the mean estimate of a scored token, in nats."""
        share_RL = self._share(part)
        if share_RL is not None:
            return (new_RL * share_RL).sum() / share_RL.sum().clamp(min=1e-9)
        return new_RL.sum().double() / part.there.scored_RL.sum().double().clamp(min=1.0)

    def _totals(self, rollout: Rollout) -> Totals:
        """Return the completions and scored tokens of the update that its mean is over."""
        tokens_R = scored_tokens(rollout.unmask_step, self.score_prior).sum(1)
        if self.args.mask_truncated_completions:  # they count as completions and not as tokens, as in TRL
            tokens_R = tokens_R * _ended(rollout, end_token_ids(self.model))
        if self.args.stp_zero_std == "drop":
            own_RL = rollout.token_advantage
            tokens_R = tokens_R[rollout.weights() != 0 if own_RL is None else (own_RL != 0).any(1)]
        return Totals(max(1, len(tokens_R)), float(tokens_R.sum()), len(rollout))

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.module.parameters() if p.requires_grad]

    def _summed(self, make: Callable[[], dict[str, list[Tensor]]], plan: Plan) -> dict[str, list[float]]:
        """Return the numbers of an update, its gradient's norm among them; the gradient is that of all processes.

        Numbers travel first: where a process has failed, none waits for its gradients.
        """
        limit = self.args.max_grad_norm or math.inf

        def own() -> dict[str, list[Tensor]]:
            logged = make()
            if not plan.count:  # the full computation would give a gradient of zero, which moves the moments
                for parameter in self._parameters():
                    parameter.grad = torch.zeros_like(parameter)
            if world() == 1:  # read in one copy with the others
                logged["grad_norm"] = [torch.nn.utils.clip_grad_norm_(self._parameters(), limit)]
            return logged

        found = self._told(own)
        if world() > 1:
            if not self._shared_out:  # FSDP2 has done so in the backward passes
                sum_gradients(self._parameters())
            found["grad_norm"] = [float(whole(torch.nn.utils.clip_grad_norm_(self._parameters(), limit)))]
        return found

    def _told(self, make: Callable[[], dict[str, list[Tensor]]]) -> dict[str, list[float]]:
        """Return the numbers that each process makes, of all; the ledger hears of what they cost."""
        every = gather(lambda: (read_once(make()), self._spent))
        self._spent = {}
        for _, spent in every:
            for phase, cost in spent.items():
                self.ledger.add(cost, phase)
        names = dict.fromkeys(name for found, _ in every for name in found)
        return {name: [value for found, _ in every for value in found.get(name, [])] for name in names}

    def _step_optimizer(
        self, what: str, found: dict[str, list[float]], locate: Callable[[], dict[str, Any]]
    ) -> Metrics:
        """Apply an update where its numbers are finite; return loss, norm and the metrics."""
        loss, (norm,) = sum(found.pop("loss"), 0.0), found.pop("grad_norm")
        if not (math.isfinite(loss) and norm < LARGEST_NORM):
            known = locate()
            where = known.get("where", "")
            raise DivergenceError(
                f"{what}: loss {loss}, gradient norm {norm}{where}; the update "
                f"was not applied. Lower learning_rate ({self.args.learning_rate}), raise beta, or lower "
                f"stp_negative_advantage_weight ({self.args.stp_negative_advantage_weight}); the newest "
                f"checkpoint in {self.args.output_dir} is from before",
                **{"phase": "update", "loss": loss, "grad_norm": norm, **known},
            )
        self.tell("on_pre_optimizer_step")
        self.optimizer.step()
        self.tell("on_optimizer_step")
        return {"loss": loss, **averaged(found), "grad_norm": norm}

    def _located(self, parts: list[MicroBatch], totals: Totals) -> dict[str, Any]:
        """Return where the numbers of an update stop being finite: the first row whose loss or estimate is not.

        Everything is computed again, which costs time that nobody waits for. Where every row's estimate is finite it is
        the backward pass that is not, and the parameters say where. Of several processes each looks at its own rows.
        """
        if world() > 1:
            shared = self._shared_out  # whose passes all make together
            every = gather(lambda: {} if shared else self._row_of(parts, [0.0] * len(parts)))
            return next((found for found in every if found), {})
        known: dict[str, Any] = {"weights": not_finite(dict(self.model.module.named_parameters()))}
        self.optimizer.zero_grad(set_to_none=True)  # clipping by a NaN has spread it to all of them
        made = [self._backward(part, totals) for part in parts]
        losses = [math.nan if found is None else float(found[0]) for found in made]
        gradients = {name: p.grad for name, p in self.model.module.named_parameters() if p.grad is not None}
        known["gradients_of"] = not_finite(gradients)
        self.optimizer.zero_grad(set_to_none=True)
        known |= self._row_of(parts, losses)
        if "where" not in known:
            finite = "the estimates of all rows are finite"
            where = f"the gradient of {known['gradients_of'][0]}; {finite}" if known["gradients_of"] else ""
            known["where"] = f" ({where or 'computed again, every loss, estimate and gradient is finite'})"
        return known

    @torch.no_grad()
    def _row_of(self, parts: list[MicroBatch], losses: list[float]) -> dict[str, Any]:
        for loss, part in zip(losses, parts, strict=True):
            estimate_RL = self._estimate(self.model, part).token_RL
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


def micro_batches(rollout: Rollout, args: "STPConfig", eos_token_ids: Sequence[int] = ()) -> list[NDArray[np.int64]]:
    """Return the row numbers of each micro-batch: the rows that have a gradient, in their order.

    Without a KL term and entropies a row of advantage 0 or weight 0 adds nothing to the loss and is not computed; with
    `mask_truncated_completions` neither is one without any of `eos_token_ids`. (The denominator of loss_type bnpo is of
    the rows that are computed.)
    """
    advantage = rollout.weights()
    own_RL = rollout.token_advantage
    used = advantage != 0 if own_RL is None else (own_RL != 0).any(1)
    rows = np.arange(len(rollout))
    if args.beta == 0 and not reads_entropy(args) and not objective_of(args).trains_zero:
        silent = advantage < 0 if args.stp_negative_advantage_weight == 0 else np.zeros_like(rows, bool)
        rows = rows[used & ~silent]
    elif args.stp_zero_std == "drop":
        rows = rows[used]
    if args.mask_truncated_completions:
        rows = rows[_ended(rollout, eos_token_ids)[rows]]
    size = args.per_device_train_batch_size
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def dealt(
    rollout: Rollout, rows: list[NDArray[np.int64]], processes: int | None = None
) -> list[list[NDArray[np.int64]]]:
    """Return the micro-batches that each process computes: whole ones, so that their tokens are even.

    Args:
        rollout: the batch.
        rows: of each micro-batch.
        processes: that share them; None: all of the run.
    """
    length_R = rollout.prompt_length + canvas_lengths(rollout.unmask_step)
    costs = [float(length_R[part].sum()) for part in rows]
    return [[rows[i] for i in share] for share in divide(costs, processes)]


def _ended(rollout: Rollout, eos_token_ids: Sequence[int]) -> NDArray[np.bool_]:
    """Return [R], true where a completion has an end of text on its canvas."""
    ended: NDArray[np.bool_] = (np.isin(rollout.token_ids, eos_token_ids) & (rollout.unmask_step != Mark.OUTSIDE)).any(
        1
    )
    return ended


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


def read_once(logged: dict[str, list[Tensor]]) -> dict[str, list[float]]:
    """Return the numbers of scalar tensors, by name: one copy from the device."""
    every = [value.double() for values in logged.values() for value in values]
    numbers = iter(torch.stack(every).tolist() if every else [])
    return {name: [next(numbers) for _ in values] for name, values in logged.items()}
