"""One rollout batch's optimiser updates: masks, estimates, loss, backward, step.

The inner index counts optimiser updates and never micro-batches: every micro-batch uses each of its `num_iterations`
mask sets exactly once, and new, old and reference policy see the same masks.

Shapes: R rows, L completion length, P passes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stp_rs.config.sections import STPConfig
from stp_rs.data.trajectories import Rollout
from stp_rs.errors import ConfigError, DivergenceError
from stp_rs.models.acceleration import adapters_ready
from stp_rs.models.base import DiffusionModel, device_of, end_token_ids
from stp_rs.objective.bounds import pass_estimates, sandwich, token_bounds
from stp_rs.objective.likelihood import Entropies, mean_entropy, token_estimates
from stp_rs.objective.loss import EXTREMES, LossInputs, Passes, clipped_ratio_sum, policy_loss, reads_entropy, reads_old
from stp_rs.objective.masks import (
    Masks,
    draw_masks,
    make_design,
    mask_prompts,
    scored_tokens,
    scores_prior,
    take_passes,
    without_blame,
)
from stp_rs.rollout.params import restricted, sampling_law
from stp_rs.train.metrics import Ledger
from stp_rs.types import Cost, Mark

Metrics = dict[str, float]


@dataclass(frozen=True)
class Estimate:
    """A policy's likelihood of a micro-batch under one mask set."""

    token_RL: Tensor
    pass_P: Tensor | None
    """Estimate of each pass alone, per token; None but for the objective `linear`."""
    entropy_RL: Tensor | None = None
    """Entropy at each token, NaN where no pass masked it; None where nobody asked."""


@dataclass(frozen=True)
class Job:
    """One micro-batch of one update, with what needs no gradient."""

    batch: Rollout
    masks: Masks
    old: Estimate | None
    """None at the first inner iteration: the policy still is the old one, so its new estimate is the old one."""
    reference: Estimate | None
    allowed: Tensor | None = None
    """The law's possible tokens, as `token_elbo` takes them."""


@dataclass(frozen=True)
class Totals:
    """What the mean of a loss is over: the whole update, all micro-batches together."""

    completions: int
    tokens: float
    mean_ratio: float | None = None


class PolicyUpdate:
    """Makes the optimiser updates of a rollout batch, as configured.

    Args:
        args: the configuration.
        model: the policy.
        reference: the KL term's reference, or None.
        optimizer: of the policy's parameters.
        ledger: counts the passes.
        diffusion_steps: steps of the unpruned plan.
    """

    def __init__(
        self,
        args: STPConfig,
        model: DiffusionModel,
        reference: DiffusionModel | None,
        optimizer: torch.optim.Optimizer,
        ledger: Ledger,
        diffusion_steps: int,
    ) -> None:
        self.args, self.model, self.reference = args, model, reference
        self.optimizer, self.ledger, self.diffusion_steps = optimizer, ledger, diffusion_steps
        self.design = make_design(args)
        self.score_prior = scores_prior(self.design, args.stp_score_prior)
        self._reads_old = reads_old(args)
        self.replayed: Rollout | None = None
        """Rows of the last `stp_replay_batches` policy versions, with the estimates of the policies that drew them."""
        if args.stp_replay_batches and (not self._reads_old or args.stp_objective == "linear"):
            raise ConfigError(
                f"stp_replay_batches: got {args.stp_replay_batches} with stp_objective {args.stp_objective}, needs an "
                "objective with a ratio per token or completion to the policy that drew the rows"
            )
        self._by_pass = args.stp_bound != "elbo" or args.stp_objective == "linear"

    def run(self, rollout: Rollout, step: int, allowed: Tensor | None = None) -> Metrics:
        """Make `num_iterations` updates on the rows; return the means of their metrics.

        `allowed` are the tokens that the rollout's law could draw, bool [V], [L, V] or [R, L, V].
        """
        if self.args.stp_replay_batches:
            rollout = self._joined(rollout, step, allowed)
        rows = micro_batches(rollout, self.args, end_token_ids(self.model))
        batches = [rollout.minibatch(part) for part in rows]
        allowed_of = [restricted(allowed, part) for part in rows]
        rounds = range(self.args.num_iterations)
        with self.ledger.time("scoring"), adapters_ready(self.model.module):
            plan = [[self._job(*pair, iteration=j) for pair in zip(batches, allowed_of, strict=True)] for j in rounds]
        totals = self._totals(rollout)
        logged: dict[str, list[float]] = {}
        for j, jobs in enumerate(plan):
            self._set_learning_rate(step, j)
            self.optimizer.zero_grad(set_to_none=True)
            normalised = replace(totals, mean_ratio=self._mean_ratio(jobs))
            update: Metrics = {"loss": 0.0}
            for job in jobs:
                loss, metrics = self._backward(job, normalised)
                update["loss"] += loss
                for name, value in metrics.items():
                    logged.setdefault(name, []).append(value)
            if not jobs:  # the full computation would give a gradient of zero, which moves the moments
                for parameter in self.optimizer.param_groups[0]["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            update["grad_norm"] = self._step_optimizer(step, j, update["loss"])
            for name, value in update.items():
                logged.setdefault(name, []).append(value)
        return {name: EXTREMES.get(name, _mean)(values) for name, values in logged.items()} | {
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "diffusion/rows_used": float(sum(len(b) for b in batches)) / len(rollout),
            **(
                {"diffusion/staleness": float((step - rollout.policy_version).mean())}
                if self.args.stp_replay_batches
                else {}
            ),
        }

    @torch.no_grad()
    def _joined(self, rollout: Rollout, step: int, allowed: Tensor | None) -> Rollout:
        """Return the batch and the rows that are trained on again, each with its own policy's estimates."""
        if allowed is not None and allowed.dim() == 3:
            raise ConfigError("stp_replay_batches: got priors that allow other tokens in every row, needs one table")
        old_RJL = np.zeros((len(rollout), self.args.num_iterations, rollout.token_ids.shape[1]), dtype=np.float32)
        with self.ledger.time("scoring"), adapters_ready(self.model.module):
            for part in micro_batches(rollout, self.args, end_token_ids(self.model)):
                for j in range(self.args.num_iterations):
                    job = self._job(rollout.minibatch(part), allowed, iteration=j)
                    old = job.old or self._estimate(self.model, job)
                    old_RJL[part, j] = old.token_RL.float().cpu().numpy()
        fresh = rollout.replaced(old_estimate=old_RJL)
        joined = fresh if self.replayed is None else Rollout.concat([fresh, self.replayed])
        self.replayed = joined.evict(step + 1 - self.args.stp_replay_batches)
        return joined

    @torch.no_grad()
    def _job(self, batch: Rollout, allowed: Tensor | None, *, iteration: int) -> Job:
        """Return a micro-batch with its masks and the estimates of old and reference policy; none that is not read."""
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
        job = Job(batch, masks, None, None, allowed)
        if batch.old_estimate is not None:
            old_RL = torch.from_numpy(np.ascontiguousarray(batch.old_estimate[:, iteration]))
            job = replace(job, old=Estimate(old_RL.to(device_of(self.model)), None))
        elif iteration > 0 and self._reads_old and self._recorded():
            recorded_PL = torch.from_numpy(batch.logprob[masks.row_P]).to(device_of(self.model))
            job = replace(job, old=self._combine(recorded_PL, None, batch, masks))
        elif iteration > 0 and self._reads_old:
            job = replace(job, old=self._estimate(self.model, job))
        return job if self.reference is None else replace(job, reference=self._estimate(self.reference, job))

    def _recorded(self) -> bool:
        """Whether the rollout recorded the old policy's number: its own states, under the law that is scored."""
        same_law = not sampling_law(self.args).cuts and self.args.temperature > 0.0
        same_states = self.design.target == "trajectory" and self.args.stp_prompt_mask == 0.0
        same_weights = self.args.stp_rollout_weights == "adapters" and not self.args.bf16
        return same_law and same_states and same_weights

    def _estimate(self, model: DiffusionModel, job: Job, entropies: Entropies = "none") -> Estimate:
        batch, masks = job.batch, job.masks
        if self._by_pass:
            return self._combine(*self._pass_estimates(model, job, masks, entropies), batch, masks)
        cost = Cost()
        total_RL, entropy_RL = token_estimates(
            model,
            batch,
            masks,
            entropies=entropies,
            temperature=self.args.temperature,
            forward_batch_size=self._canvases(job),
            allowed=job.allowed,
            cost=cost,
        )
        self._count(cost)
        token_RL = total_RL / _weight_sum(masks, total_RL) if self.design.per_token else total_RL
        return Estimate(token_RL, None, entropy_RL)

    def _canvases(self, job: Job) -> int:
        """Return the canvases of a likelihood forward; 0 means all."""
        return self.args.stp_forward_batch_size or (len(job.batch) if self.args.stp_constant_memory else 0)

    def _pass_estimates(
        self, model: DiffusionModel, job: Job, masks: Masks, entropies: Entropies
    ) -> tuple[Tensor, Tensor | None]:
        cost = Cost()
        estimates = pass_estimates(
            model,
            job.batch,
            masks,
            entropies=entropies,
            temperature=self.args.temperature,
            forward_batch_size=self._canvases(job),
            allowed=job.allowed,
            cost=cost,
        )
        self._count(cost)
        return estimates

    def _count(self, cost: Cost) -> None:
        self.ledger.add(cost, "likelihood", *(["backward"] if torch.is_grad_enabled() else []))

    def _combine(self, logprob_PL: Tensor, entropy_PL: Tensor | None, batch: Rollout, masks: Masks) -> Estimate:
        """Return the estimate that the passes' log-probs add up to."""
        device = logprob_PL.device
        row_P = torch.from_numpy(masks.row_P.astype(np.int64)).to(device)
        weighted_PL = torch.from_numpy(masks.weight_PL).to(device) * logprob_PL
        pass_P = entropy_RL = None
        if entropy_PL is not None:
            zero_RL = torch.zeros(masks.scored_RL.shape, device=device)
            passes_RL = zero_RL.index_add(0, row_P, (~entropy_PL.isnan()).float())
            entropy_RL = mean_entropy(zero_RL.index_add(0, row_P, entropy_PL.nan_to_num(0.0)), passes_RL)
        if self.args.stp_objective == "linear":
            passes_R = np.bincount(masks.row_P, minlength=len(batch))
            tokens_R = 1 if self.design.per_token else masks.scored_RL.sum(1).clip(min=1)
            scale_P = torch.from_numpy((passes_R / tokens_R)[masks.row_P].astype(np.float32)).to(device)
            pass_P = scale_P * weighted_PL.sum(-1)
        if self.args.stp_bound == "elbo":
            total_RL = logprob_PL.new_zeros(masks.scored_RL.shape).index_add(0, row_P, weighted_PL)
            token_RL = total_RL / _weight_sum(masks, total_RL) if self.design.per_token else total_RL
            return Estimate(token_RL, pass_P, entropy_RL)
        elbo_RL, eubo_RL = token_bounds(
            logprob_PL, masks, beta=self.args.stp_bound_power, per_token=self.design.per_token
        )
        mixture = 1.0 if self.args.stp_bound == "eubo" else self.args.stp_bound_mixture
        advantages_R = torch.from_numpy(batch.weights()).to(device)
        return Estimate(sandwich(elbo_RL, eubo_RL, advantages_R, mixture=mixture), pass_P, entropy_RL)

    def _inputs(self, job: Job, new: Estimate) -> LossInputs:
        device = new.token_RL.device
        old_RL = new.token_RL.detach() if job.old is None else job.old.token_RL.to(device)
        passes = None
        if new.pass_P is not None:
            old_P = new.pass_P.detach() if job.old is None or job.old.pass_P is None else job.old.pass_P
            row_P = torch.from_numpy(job.masks.row_P.astype(np.int64)).to(device)
            passes = Passes(new.pass_P, old_P, row_P)
        ref_RL = None if job.reference is None else job.reference.token_RL
        if self.args.beta > 0 and self.args.stp_kl_target == "old":
            ref_RL = old_RL
        return LossInputs(
            new_RL=new.token_RL,
            old_RL=old_RL,
            ref_RL=ref_RL,
            advantages_R=torch.from_numpy(job.batch.weights()).to(device),
            scored_RL=torch.from_numpy(job.masks.scored_RL).to(device).float(),
            share_RL=self._share(job.masks, device),
            passes=passes,
            entropy_RL=new.entropy_RL,
        )

    def _share(self, masks: Masks, device: torch.device) -> Tensor | None:
        """Return the weights of a published mean per token; None where the mean is over all scored tokens."""
        if not self.design.per_token or self.args.stp_bound != "elbo":
            return None
        return _weight_sum(masks, torch.zeros(masks.scored_RL.shape, device=device), empty=0.0)

    def _backward(self, job: Job, totals: Totals) -> tuple[float, Metrics]:
        """Add the micro-batch's gradient; return (loss, metrics)."""
        entropies: Entropies = "gradient" if self.args.entropy_coef != 0.0 else "numbers"  # they are logged
        if not self.args.stp_constant_memory:
            new = self._estimate(self.model, job, entropies)
            loss, metrics = self._loss(job, new, totals)
            loss.backward()
        else:
            new, loss, metrics = self._backward_by_parts(job, totals, entropies)
        metrics["diffusion/token_elbo"] = self._token_elbo(new.token_RL.detach(), job.masks)
        return float(loss.detach()), {name: float(value) for name, value in metrics.items()}

    def _backward_by_parts(
        self, job: Job, totals: Totals, entropies: Entropies
    ) -> tuple[Estimate, Tensor, dict[str, Tensor]]:
        """Find the loss's coefficients without a graph, then backpropagate some passes at a time."""
        masks, size = job.masks, self._canvases(job)
        with torch.no_grad():
            logprob_PL, entropy_PL = self._pass_estimates(self.model, job, masks, entropies)
        leaves = [logprob_PL] if entropies == "numbers" or entropy_PL is None else [logprob_PL, entropy_PL]
        for leaf_PL in leaves:
            leaf_PL.requires_grad_()
        new = self._combine(logprob_PL, entropy_PL, job.batch, masks)
        loss, metrics = self._loss(job, new, totals)
        coefficients = torch.autograd.grad(loss, leaves)
        for start in range(0, len(masks.row_P), size):
            part = slice(start, start + size)
            again: Entropies = "gradient" if len(leaves) == 2 else "none"
            made = self._pass_estimates(self.model, job, take_passes(masks, part), again)
            total = (made[0] * coefficients[0][part]).sum()
            if made[1] is not None:
                total = total + (made[1].nan_to_num(0.0) * coefficients[1][part]).sum()
            total.backward()
        return new, loss, metrics

    def _loss(self, job: Job, new: Estimate, totals: Totals) -> tuple[Tensor, dict[str, Tensor]]:
        return policy_loss(
            self._inputs(job, new),
            self.args,
            num_completions=totals.completions,
            num_tokens=totals.tokens,
            mean_ratio=totals.mean_ratio,
        )

    @torch.no_grad()
    def _mean_ratio(self, jobs: list[Job]) -> float | None:
        """Return the mean clipped ratio over the update's micro-batches, where the objective reads it."""
        if self.args.stp_objective != "stable" or len(jobs) < 2 or jobs[0].old is None:
            return None  # one micro-batch has its own; at the first iteration every ratio is 1
        total = 0.0
        for job in jobs:
            inputs = self._inputs(job, self._estimate(self.model, job))
            total += clipped_ratio_sum(inputs, self.args)
        return total / max(1, sum(int((job.batch.weights() != 0).sum()) for job in jobs))

    def _token_elbo(self, new_RL: Tensor, masks: Masks) -> Tensor:
        """Return the mean estimate of a scored token, in nats."""
        share_RL = self._share(masks, new_RL.device)
        if share_RL is not None:
            return (new_RL * share_RL).sum() / share_RL.sum().clamp(min=1e-9)
        return new_RL.sum() / max(1.0, float(masks.scored_RL.sum()))

    def _totals(self, rollout: Rollout) -> Totals:
        """Return the completions and scored tokens of the update that its mean is over."""
        tokens_R = scored_tokens(rollout.unmask_step, self.score_prior).sum(1)
        if self.args.mask_truncated_completions:  # they count as completions and not as tokens, as in TRL
            tokens_R = tokens_R * _ended(rollout, end_token_ids(self.model))
        if self.args.stp_zero_std == "drop":
            tokens_R = tokens_R[rollout.weights() != 0]
        return Totals(max(1, len(tokens_R)), float(tokens_R.sum()))

    def _set_learning_rate(self, step: int, iteration: int) -> None:
        updates = self.args.num_iterations * self.args.max_steps
        done = step * self.args.num_iterations + iteration
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.learning_rate * learning_rate_factor(self.args, done, updates)

    def _step_optimizer(self, step: int, iteration: int, loss: float) -> float:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        limit = self.args.max_grad_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergenceError(
                f"step {step + 1}, inner iteration {iteration}: loss {loss}, gradient norm {norm}; the update "
                f"was not applied. Lower learning_rate ({self.args.learning_rate}), raise beta, or lower "
                f"stp_negative_advantage_weight ({self.args.stp_negative_advantage_weight}); the newest "
                f"checkpoint in {self.args.output_dir} is from before"
            )
        self.optimizer.step()
        return norm


def micro_batches(rollout: Rollout, args: STPConfig, eos_token_ids: Sequence[int] = ()) -> list[NDArray[np.int64]]:
    """Return the row numbers of each micro-batch: the rows that have a gradient, in their order.

    Without a KL term and entropies a row of advantage 0 or weight 0 adds nothing to the loss and is not computed; with
    `mask_truncated_completions` neither is one without any of `eos_token_ids`. (The denominator of loss_type bnpo is of
    the rows that are computed.)
    """
    advantage = rollout.weights()
    rows = np.arange(len(rollout))
    if args.beta == 0 and not reads_entropy(args):
        silent = advantage < 0 if args.stp_negative_advantage_weight == 0 else np.zeros_like(rows, bool)
        rows = rows[(advantage != 0) & ~silent]
    elif args.stp_zero_std == "drop":
        rows = rows[advantage != 0]
    if args.mask_truncated_completions:
        rows = rows[_ended(rollout, eos_token_ids)[rows]]
    size = args.per_device_train_batch_size
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def learning_rate_factor(config: STPConfig, done: int, updates: int) -> float:
    """Return the learning rate's factor after `done` of `updates` optimiser updates."""
    warmup = config.warmup_steps
    if done < warmup:
        return (done + 1) / warmup
    progress = (done - warmup) / max(1, updates - warmup)
    kind = config.lr_scheduler_type
    return {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}[kind]


def _ended(rollout: Rollout, eos_token_ids: Sequence[int]) -> NDArray[np.bool_]:
    """Return [R], true where a completion has an end of text on its canvas."""
    ended: NDArray[np.bool_] = (np.isin(rollout.token_ids, eos_token_ids) & (rollout.unmask_step != Mark.OUTSIDE)).any(
        1
    )
    return ended


def _weight_sum(masks: Masks, like_RL: Tensor, empty: float = 1.0) -> Tensor:
    """Return each token's total weight [R, L]; `empty` where it is in no mask."""
    total_RL = np.zeros(masks.scored_RL.shape, dtype=np.float32)
    np.add.at(total_RL, masks.row_P, masks.weight_PL)
    if empty:
        total_RL[total_RL == 0] = empty
    return torch.from_numpy(total_RL).to(like_RL.device)


def _mean(values: list[float]) -> float:
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return float(array.mean()) if array.size else 0.0
