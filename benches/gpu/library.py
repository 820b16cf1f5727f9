"""What the parts call of the library: prompts, rollouts, updates, and where the time of a rollout goes.

Shapes: R rows, P prompt tokens, L completion tokens, N candidates.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import stp_rs
from benches.gpu.network import Shape
from stp_rs.models.acceleration import adapter_layers, adapters_ready
from stp_rs.models.reference import reference_policy
from stp_rs.rollout.logits import Reducer
from stp_rs.train.metrics import Ledger
from stp_rs.train.update import PolicyUpdate
from stp_rs.types import Cost

TEMPERATURE = 0.9
TEMPORAL = "steps:0.6"
EXIT = "fill_ratio_batch:0.95"
"""The exit that STP published: all rows leave when 95 % of the batch's completion is there."""
BEGUN = "steps:0.2"
"""A fifth of the steps, and the rest at once: enough to see what a step of another precision costs."""
ANCHORS = 0.05
"""Share of the completion that anchors fix."""


def prompts(shape: Shape, *, ragged: bool = False) -> stp_rs.PromptBatch:
    """Return the prompts of a rollout batch, each once per completion; ragged ones have a quarter up to all of P."""
    draw = np.random.default_rng(0)
    count, least = shape.batch.rows // shape.batch.group, max(1, shape.batch.prompt // 4)
    lengths = draw.integers(least, shape.batch.prompt + 1, count) if ragged else np.full(count, shape.batch.prompt)
    lengths[0] = shape.batch.prompt
    ids = np.zeros((count, shape.batch.prompt), dtype=np.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = draw.integers(3, shape.network.vocab, length)
    at = np.arange(count)
    rows = [{"prompt": " ".join(map(str, ids[i, : lengths[i]]))} for i in at]
    batch = stp_rs.PromptBatch(rows, ids, lengths.astype(np.int32), at.astype(np.uint64), at)
    return batch.repeat(shape.batch.group, step=0)


def unmasking(shape: Shape, temporal: str = "none") -> stp_rs.Unmasking:
    """Return d1's decoding with a temporal rule on top."""
    return stp_rs.Unmasking(
        shape.batch.steps, block_length=shape.batch.block, confidence="sampled_prob", temporal=temporal
    )


def roll(policy: Any, shape: Shape, batch: stp_rs.PromptBatch, *, temporal: str = "none", anchors: float = 0.0,
         **options: Any) -> stp_rs.Rollout:  # fmt: skip
    """Return a rollout; anchors fix so large a share of random completion tokens, fewer steps with them."""
    law = stp_rs.SamplingParams(TEMPERATURE)
    prior = anchored(shape, anchors) if anchors else None
    return stp_rs.generate(
        policy, batch, unmasking(shape, temporal), completion_length=shape.batch.completion, sampling=law, prior=prior,
        slots=shape.batch.rows, **options,
    )  # fmt: skip


def agreement(exact: stp_rs.Rollout, other: stp_rs.Rollout) -> dict[str, float]:
    """Return how much of two rollouts of the same prompts and random numbers is the same: tokens and completions."""
    same_RL = exact.token_ids == other.token_ids
    return {"tokens_agree": float(same_RL.mean()), "completions_agree": float(same_RL.all(1).mean())}


def gaps(policy: Any, found: stp_rs.Rollout, *, size: int, cost: Cost | None = None) -> tuple[Any, dict[str, float]]:
    """Return the policy's log-probs at every state of a rollout, and how far the recorded ones are from them, in nats.

    Args:
        policy: without the cache or the rounding that drew it.
        found: the rollout.
        size: canvases of a pass.
        cost: what is computed is added to it.
    """
    law = stp_rs.SamplingParams(TEMPERATURE)
    policy_RL = stp_rs.replay_logprobs(policy, found, law, forward_batch_size=size, cost=cost)
    gap = np.abs(policy_RL - found.logprob)[found.unmask_step >= 0]
    return policy_RL, {"mean": float(gap.mean()), "q99": float(np.quantile(gap, 0.99)), "max": float(gap.max())}


def anchored(shape: Shape, share: float) -> Any:
    """Return random anchors, at the same places for all rows of a group."""
    draw, count = np.random.default_rng(1), max(1, round(share * shape.batch.completion))
    ids = np.full((shape.batch.rows, shape.batch.completion), -1, dtype=np.int64)
    for first in range(0, shape.batch.rows, shape.batch.group):
        places = draw.permutation(shape.batch.completion)[:count]
        ids[first : first + shape.batch.group, places] = draw.integers(3, shape.network.vocab, count)
    return stp_rs.PriorSet.from_dense(ids)


class Uniform:
    """A policy that costs nothing, for batches whose update is timed: equal logits of the first 64 tokens."""

    mask_token_id, pad_token_id, eos_token_id, logit_shift, respects_padding = 1, 0, 2, 0, True

    def __init__(self) -> None:
        self.module = torch.nn.Linear(1, 1)
        self.module.config = SimpleNamespace(vocab_size=64)

    def hidden(self, ids_BS: torch.Tensor, _lengths: torch.Tensor | None) -> torch.Tensor:
        """Return nothing of the canvases."""
        return torch.zeros(*ids_BS.shape, 1)

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        """Return equal logits [N, 64]."""
        return torch.zeros(len(hidden_NH), 64)


def config(preset: str, shape: Shape, folder: Path, **options: Any) -> stp_rs.STPConfig:
    """Return a preset in the bench's setting."""
    common = {
        "max_completion_length": shape.batch.completion,
        "diffusion_steps": shape.batch.steps,
        "block_length": shape.batch.block,
        "num_generations": shape.batch.group,
        "per_device_train_batch_size": shape.batch.rows,
        "temperature": TEMPERATURE,
        "stp_confidence": "sampled_prob",
        "bf16": True,
        "learning_rate": 3e-6,
        "stp_rollouts": 4,
        "save_strategy": "no",
        "output_dir": str(folder),
    }
    return stp_rs.STPConfig(preset=preset, **{**common, **options})


class Update:
    """The optimiser updates of a preset on a batch that is made here: random tokens, rewards and orders.

    Args:
        policy: with adapters.
        preset: its name.
        shape: of the batch.
        folder: where nothing is written.
        options: over the preset's.
    """

    def __init__(self, policy: Any, preset: str, shape: Shape, folder: Path, **options: Any) -> None:
        args = config(preset, shape, folder, **{"stp_spatial": "none", **options})
        rollout = roll(Uniform(), shape, prompts(shape), temporal=args.stp_temporal)
        rewards = np.random.default_rng(2).random(len(rollout)).astype(np.float32)
        advantages, _ = stp_rs.group_advantages(rewards, rollout.group, args.scale_rewards, args.stp_advantage)
        self.rollout = rollout.replaced(reward=rewards, advantage=advantages)
        self.ledger = Ledger()
        optimizer = adam(policy.module)
        reference = reference_policy(policy) if args.beta > 0 else None
        self._update = PolicyUpdate(args, policy, reference, optimizer, self.ledger, shape.batch.steps)

    def run(self) -> dict[str, float]:
        """Make the updates of one step; return their metrics."""
        return dict(self._update.run(self.rollout))

    def noise(self) -> Any:
        """Return how far a pass without gradient is from the one with gradient, of the same policy, in nats."""
        update = self._update
        part = update.estimator.planned(self.rollout, None)[0]
        with adapters_ready(update.model.module):
            old = update.estimator.estimate(update.model, part)
        gap = (update.estimator.estimate(update.model, part).token_RL.detach() - old.token_RL).abs()
        update.estimator.spent.clear()  # no part of a step
        return gap[part.there.scored_RL > 0].cpu().numpy()

    @contextlib.contextmanager
    def scored(self, wait: Callable[[], None]) -> Iterator[list[float]]:
        """Give the seconds of each micro-batch's passes without gradient, waited for."""
        found: list[float] = []
        inner = self._update.estimator.planned

        def planned(*args: Any, **options: Any) -> Any:
            wait()
            start = time.perf_counter()
            parts = inner(*args, **options)
            wait()
            found.append(time.perf_counter() - start)
            return parts

        self._update.estimator.planned = planned  # type: ignore[method-assign] # timed, and put back
        try:
            yield found
        finally:
            del self._update.estimator.planned

    def counts(self, before: dict[str, int]) -> dict[str, int]:
        """Return the canvases of likelihood passes since `before`, from `passes`."""
        return {name: count - before[name] for name, count in self.passes().items()}

    def passes(self) -> dict[str, int]:
        """Return the canvases so far: of all likelihood passes, and those with a gradient."""
        return {"canvases": self.ledger.forwards["likelihood"], "with_gradient": self.ledger.forwards["backward"]}


def adam(module: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of what is trained."""
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-6)


class Tokenizer:
    """Text of token numbers with spaces between, for the trainer."""

    mask_token_id, pad_token_id, eos_token_id, mask_token = 1, 0, 2, "[MASK]"

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """Return the numbers of a text."""
        return {"input_ids": [int(word) for word in text.split()]}

    def decode(self, ids: Any, **_: Any) -> str:
        """Return the text of ids."""
        return " ".join(str(int(i)) for i in ids)

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        """Return the texts of rows."""
        return [self.decode(row) for row in rows]

    def save_pretrained(self, folder: Any) -> None:
        """Write nothing: no checkpoint of the bench is kept."""


def reward(completions: list[str], **_: Any) -> list[float]:
    """Return a number that differs between completions."""
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


def trainer(policy: Any, preset: str, shape: Shape, folder: Path, **options: Any) -> stp_rs.STPTrainer:
    """Return a trainer of a preset without priors on the bench's prompts."""
    rows = [dict(row) for row in prompts(shape).rows[:: shape.batch.group]]
    args = config(preset, shape, folder, **{"stp_spatial": "none", **options})
    return stp_rs.STPTrainer(policy, [reward], args, rows, processing_class=Tokenizer())


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which the trainer's `bf16: true` runs passes."""
    return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


@contextlib.contextmanager
def counted(policy: Any) -> Iterator[dict[str, int]]:
    """Count the policy's calls and their tokens, padding included."""
    found = {"calls": 0, "tokens": 0}
    inner = policy.hidden

    def hidden(ids_BS: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        found["calls"] += 1
        found["tokens"] += ids_BS.numel()
        return inner(ids_BS, *rest, **options)

    policy.hidden = hidden
    try:
        yield found
    finally:
        del policy.hidden


@contextlib.contextmanager
def clocked(policy: Any, device: torch.device) -> Iterator[Callable[[], dict[str, float]]]:
    """Time the parts of a rollout: give a function that returns the seconds of forward, head, reduction and the rest.

    Seconds are the device's on CUDA, from events that are read at the end. `host` is the wall time in which the device
    did none of the three: the scheduler, copies, and launches that the device waited for.
    """
    spans: list[tuple[str, Any, Any]] = []
    cuda = device.type == "cuda"

    def wrap(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if cuda:
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                first.record()
                result = inner(*args, **options)
                last.record()
                spans.append((name, first, last))
                return result
            begun = time.perf_counter()
            result = inner(*args, **options)
            spans.append((name, begun, time.perf_counter()))
            return result

        return call

    reduce = Reducer.__call__
    policy.hidden, policy.head = wrap("forward", policy.hidden), wrap("head", policy.head)
    Reducer.__call__ = wrap("reduction", reduce)  # type: ignore[method-assign]
    start = time.perf_counter()

    def read() -> dict[str, float]:
        if cuda:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
        found = {"forward": 0.0, "head": 0.0, "reduction": 0.0}
        for name, first, last in spans:
            found[name] += first.elapsed_time(last) / 1e3 if cuda else last - first
        return {**found, "host": max(0.0, wall - sum(found.values())), "wall": wall, "calls": float(len(spans))}

    try:
        yield read
    finally:
        del policy.hidden, policy.head
        Reducer.__call__ = reduce  # type: ignore[method-assign]


def has_adapters(policy: Any) -> bool:
    """Return whether a policy has LoRA layers."""
    return bool(adapter_layers(policy.module))
