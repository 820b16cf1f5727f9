"""One rollout batch's optimiser updates: masks, estimates, loss, backward, step.

The inner index counts optimiser updates and never micro-batches: every micro-batch uses each of its `num_iterations`
mask sets exactly once, and new, old and reference policy see the same masks.

What needs no gradient is computed before the first update (`stp_rs.train.estimates`). Losses, norms and metrics stay on
the device: they are read once per optimiser update, which is not applied where they are not finite.

Shapes: R rows, L completion length, P passes.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stp_rs._core import permutation
from stp_rs.data.trajectories import Rollout
from stp_rs.distributed import agree, gather, most, rank, sum_gradients, world
from stp_rs.errors import ConfigError, DivergenceError
from stp_rs.models.acceleration import adapters_ready
from stp_rs.models.base import DiffusionModel, end_token_ids, in_step, is_sharded
from stp_rs.models.sharding import Idle, whole
from stp_rs.objective.head import Entropies
from stp_rs.objective.loss import LossInputs, Passes, clipped_ratio_sum, objective_of, policy_loss, reads_old
from stp_rs.objective.masks import make_design, scores_prior, take_passes
from stp_rs.rollout.params import restricted
from stp_rs.train.estimates import Estimate, Estimator, MicroBatch
from stp_rs.train.finite import LARGEST_NORM, not_finite, row_of
from stp_rs.train.metrics import Ledger, averaged
from stp_rs.train.parts import Totals, dealt, micro_batches, totals_of
from stp_rs.types import Metrics

if TYPE_CHECKING:
    from stp_rs.config.arguments import STPConfig


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
        self.args, self.model, self.optimizer, self.ledger, self.tell = args, model, optimizer, ledger, tell
        self.design = make_design(args)
        self.score_prior = scores_prior(self.design, args.stp_score_prior)
        self.estimator = Estimator(args, model, reference, self.design, diffusion_steps, score_prior=self.score_prior)
        self._objective = objective_of(args)
        self.replayed: Rollout | None = None
        """Rows of the last `stp_replay_batches` policy versions, with the estimates of the policies that drew them."""
        if args.stp_replay_batches and (not reads_old(args) or self._objective.reads_passes):
            raise ConfigError(
                f"stp_replay_batches: got {args.stp_replay_batches} with stp_objective {args.stp_objective}, needs an "
                "objective with a ratio per token or completion to the policy that drew the rows"
            )
        self._shared_out = is_sharded(model.module) and world() > 1

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
                    loss, metrics = self._loss(part, self.estimator.estimate(self.model, part, "numbers"), plan.totals)
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
        columns = [
            self.estimator.planned(rollout.minibatch(p), restricted(allowed, p), fresh=fresh) for p in shares[rank()]
        ]
        rounds = max(map(len, shares)) if self._shared_out else len(columns)
        return Plan(
            totals_of(rollout, self.args, end_token_ids(self.model), score_prior=self.score_prior),
            columns,
            len(rows),
            sum(map(len, rows)),
            rounds,
        )

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
                    planned = self.estimator.planned(rollout.minibatch(part), allowed, referenced=False)
                    first = self.estimator.estimate(self.model, planned[0])
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

    @staticmethod
    def _with_old(part: MicroBatch, first: dict[int, Estimate]) -> MicroBatch:
        """Return the part with the old estimate that the first inner iteration made, where it is of the same masks."""
        return part if part.first is None else replace(part, old=first[id(part.first)])

    def _inputs(self, part: MicroBatch, new: Estimate) -> LossInputs:
        old_RL = new.token_RL.detach() if part.old is None else part.old.token_RL
        if part.old is not None and self.estimator.idle(part.batch):
            own_RL = part.there.advantages_RL if len(part.there.advantages_RL) else part.there.advantages_R[:, None]
            old_RL = torch.where((own_RL != 0).any(1, keepdim=True), old_RL, new.token_RL.detach())
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
            share_RL=self.estimator.share(part),
            passes=passes,
            step_RL=part.there.step_RL,
            advantages_RL=part.there.advantages_RL if len(part.there.advantages_RL) else None,
            entropy_RL=new.entropy_RL,
        )

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
                    new = self.estimator.estimate(self.model, part, entropies)
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
        masks, size = part.masks, self.estimator.canvases([part])
        with torch.no_grad():
            logprob_PL, entropy_PL = self.estimator.by_pass(self.model, part, masks, entropies)
        leaves = [logprob_PL] if entropies == "numbers" or entropy_PL is None else [logprob_PL, entropy_PL]
        for leaf_PL in leaves:
            leaf_PL.requires_grad_()
        new = self.estimator.combine(logprob_PL, entropy_PL, part)
        loss, metrics = self._loss(part, new, totals)
        coefficients = torch.autograd.grad(loss, leaves)

        def value(some: slice) -> Tensor:
            again: Entropies = "gradient" if len(leaves) == 2 else "none"
            made = self.estimator.by_pass(self.model, part, take_passes(masks, some), again)
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
                made = [self._inputs(part, self.estimator.estimate(self.model, part)) for part in parts]
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
        share_RL = self.estimator.share(part)
        if share_RL is not None:
            return (new_RL * share_RL).sum() / share_RL.sum().clamp(min=1e-9)
        return new_RL.sum().double() / part.there.scored_RL.sum().double().clamp(min=1.0)

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
        every = gather(lambda: (read_once(make()), self.estimator.spent))
        self.estimator.spent = {}
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
            every = gather(lambda: {} if shared else row_of(self.estimator, parts, [0.0] * len(parts)))
            return next((found for found in every if found), {})
        known: dict[str, Any] = {"weights": not_finite(dict(self.model.module.named_parameters()))}
        self.optimizer.zero_grad(set_to_none=True)  # clipping by a NaN has spread it to all of them
        made = [self._backward(part, totals) for part in parts]
        losses = [math.nan if found is None else float(found[0]) for found in made]
        gradients = {name: p.grad for name, p in self.model.module.named_parameters() if p.grad is not None}
        known["gradients_of"] = not_finite(gradients)
        self.optimizer.zero_grad(set_to_none=True)
        known |= row_of(self.estimator, parts, losses)
        if "where" not in known:
            finite = "the estimates of all rows are finite"
            where = f"the gradient of {known['gradients_of'][0]}; {finite}" if known["gradients_of"] else ""
            known["where"] = f" ({where or 'computed again, every loss, estimate and gradient is finite'})"
        return known


def read_once(logged: dict[str, list[Tensor]]) -> dict[str, list[float]]:
    """Return the numbers of scalar tensors, by name: one copy from the device."""
    every = [value.double() for values in logged.values() for value in values]
    numbers = iter(torch.stack(every).tolist() if every else [])
    return {name: [next(numbers) for _ in values] for name, values in logged.items()}
