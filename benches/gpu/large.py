"""The parts of a policy of LLaDA's kind: forward, rollout, likelihood, update, step.

Shapes: B canvases, S canvas width, N gathered positions, V vocabulary.
"""

import contextlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stp_rs
from benches.gpu import library, published
from benches.gpu.network import Policy, Shape, make_network, with_adapters
from benches.gpu.report import GIB, Report
from stp_rs.errors import ConfigError
from stp_rs.models import acceleration
from stp_rs.models.keys import CacheKind
from stp_rs.models.precision import Precision, check_precision, rounded
from stp_rs.objective.replay import importance_weights
from stp_rs.types import Cost

UPDATES = {"stp": 14, "stp_canvas": 3, "stp_spread": 6, "unigrpo": 9, "diffu_grpo": 20}
"""Presets whose updates are timed, and the seconds that each may need."""
PLAIN_STEPS = {"stp": 22, "stp_canvas": 20}
"""Presets whose whole steps are timed with nothing compiled, and the seconds that each may need."""


class World:
    """The policy of a shape, made once; its adapters come with the first part that asks for them."""

    def __init__(self, shape: Shape, report: Report, *, backend: str = "inductor", d1_seconds: float = 12.0) -> None:
        self.shape, self.report, self.device = shape, report, report.device
        self.backend, self.d1_seconds = backend, d1_seconds
        self.plain = Policy(make_network(shape, report.device))
        self._adapted: Policy | None = None
        self.compiled = self._reported = False
        draw = torch.Generator().manual_seed(1)
        width = shape.batch.prompt + shape.batch.completion
        self.ids_BS = torch.randint(3, shape.network.vocab, (shape.batch.rows, width), generator=draw).to(self.device)

    @property
    def adapted(self) -> Policy:
        """The policy with fp32 adapters."""
        if self._adapted is None:
            self._adapted = with_adapters(self.plain.network, self.shape, self.device)
        return self._adapted

    @property
    def base(self) -> Any:
        """A context in which passes of `adapted` are those of the base model, where adapters were made."""
        return contextlib.nullcontext() if self._adapted is None else acceleration.adapters_off(self._adapted.module)

    def autocast(self) -> torch.autocast:
        """Return the context of `bf16: true`."""
        return library.autocast(self.device)

    @contextlib.contextmanager
    def ours(self) -> Iterator[None]:
        """Run passes without gradient as the library does for a policy with adapters on a GPU."""
        self.compile()
        with torch.no_grad(), self.autocast(), acceleration.adapters_cast(self.adapted.module, torch.bfloat16):
            yield

    def compile(self) -> None:
        """Compile the blocks, once."""
        if self.compiled:
            return
        self.compiled = True

        with self.autocast():
            start = time.perf_counter()
            blocks = acceleration.compile_blocks(
                self.adapted.module, backend=self.backend, probe=lambda: acceleration.first_pass(self.adapted)
            )
            self.report.wait()
        if not self._reported:
            self._reported = True
            took = time.perf_counter() - start
            self.report.add("compile the blocks, first forward", took, "s", blocks=blocks)

    def uncompile(self) -> None:
        """Run the blocks as they are; what was compiled is kept by torch."""
        if self.compiled:
            acceleration.uncompile_blocks(self.adapted.module)
            self.compiled = False


def forward(world: World) -> None:
    """Time a forward of all rows: base, adapters in five ways, and how far their log-probs are apart."""
    shape, report, ids_BS = world.shape, world.report, world.ids_BS
    plain, found = world.plain, {}

    @torch.no_grad()
    def run(policy: Policy = plain) -> torch.Tensor:
        return policy.hidden(ids_BS, None)

    def measure(name: str, policy: Policy, **notes: Any) -> float:
        took = report.time(f"forward: {name}", lambda: run(policy), **notes)
        found[name] = _logprobs(policy, run(policy), ids_BS)
        return took

    base = measure("base", plain)
    report.add("forward: base, of dense bf16 products", shape.forward_flops / base / 1e9, "TFLOP/s")
    module = world.adapted.module
    with world.autocast():
        measure("fp32 adapters under autocast", world.adapted)
        with torch.no_grad(), acceleration.adapters_cast(module, torch.bfloat16):
            measure("adapters cast to bf16 once", world.adapted)
        with torch.no_grad(), acceleration.adapters_off(module):
            measure("adapters off", world.adapted)
    _merged(world, measure)
    with world.ours():
        took = measure("compiled blocks, adapters cast once", world.adapted)
        report.add("forward: ours over base", took / base, "ratio")
        for rows in sorted({max(1, shape.batch.rows - 1), max(1, shape.batch.rows // 2), 2}):
            report.time(
                f"forward: ours, {rows} rows", lambda r=rows: world.adapted.hidden(ids_BS[:r], None), warm=1, repeats=3
            )
        width = ids_BS.shape[1] - 7
        report.time("forward: ours, narrower", lambda: world.adapted.hidden(ids_BS[:, :width], None), repeats=3)
        with acceleration.adapters_off(module):
            measure("compiled blocks, adapters off", world.adapted)
    report.add("variants compiled of a block", _variants(), "graphs")
    law = found["fp32 adapters under autocast"]
    for name, other in found.items():
        gap = (other - law).abs()
        report.add(
            f"log-prob against fp32 adapters under autocast: {name}", float(gap.max()), "nats", mean=float(gap.mean())
        )


def _merged(world: World, measure: Callable[..., float]) -> None:
    module = world.adapted.module
    before = [p.detach().clone() for p in list(module.parameters())[:40]]
    with torch.no_grad(), world.autocast():
        world.report.wait()

        def once() -> None:
            with acceleration.adapters_merged(module):
                pass

        world.report.time("merge and unmerge", once, repeats=3, warm=1)
        with acceleration.adapters_merged(module):
            measure("merged", world.adapted)
    same = all(torch.equal(p, q) for p, q in zip(list(module.parameters())[:40], before, strict=True))
    world.report.add("weights after merging are those before", float(same), "true")


@torch.no_grad()
def _logprobs(policy: Policy, hidden_BSH: torch.Tensor, ids_BS: torch.Tensor) -> torch.Tensor:
    """Return the log-probs [128] of the batch's last tokens."""
    count = min(128, ids_BS.shape[1])
    logits_NV = policy.head(hidden_BSH[0, -count:]).float()
    return logits_NV.log_softmax(-1).gather(-1, ids_BS[0, -count:, None]).squeeze(-1).cpu()


def _variants() -> float:
    """Return how many graphs dynamo has compiled since the process began."""
    counters: Any = torch._dynamo.utils.counters  # type: ignore[attr-defined]
    return float(counters["stats"].get("unique_graphs", 0))


def rollout(world: World) -> None:
    """Time whole rollouts: ours with adapters, ours of the base, d1's loop, and where the time of a step goes."""
    shape, report, batch = world.shape, world.report, library.prompts(world.shape)

    def counts(found: stp_rs.Rollout) -> dict[str, float]:
        stats = found.stats
        calls = max(1, stats["calls"])
        return {"calls": stats["calls"], "canvases": stats["forwards"], "head_rows": stats["head_rows"] / calls}

    def ours(name: str, policy: Any, **options: Any) -> None:
        took, found = report.wall(name, lambda: library.roll(policy, shape, batch, **options), counts=counts)
        report.add(f"{name}: a call", 1e3 * took / max(1, found.stats["calls"]), "ms")

    with world.ours():
        library.roll(world.adapted, shape, batch, temporal="steps:0.05")  # what compiles, compiles here
        with library.clocked(world.adapted, world.device) as read:
            ours("rollout, adapters: ours, temporal", world.adapted, temporal=library.TEMPORAL)
            parts = read()
        for name in ("forward", "head", "reduction", "host"):
            report.add(f"step of that rollout: {name}", parts[name] / parts["wall"], "share", seconds=parts[name])
        replayed(world, batch)
        if report.affords(13, "rollout, adapters: ours, temporal and anchors"):
            ours(
                "rollout, adapters: ours, temporal and anchors", world.adapted,
                temporal=library.TEMPORAL, anchors=library.ANCHORS,
            )  # fmt: skip
    world.uncompile()
    published_rollouts(world)
    with world.base, torch.no_grad():
        for name, temporal, seconds in (("unpruned", "none", 21), ("temporal", library.TEMPORAL, 13),
                                        ("the published exit", library.EXIT, 20)):  # fmt: skip
            if report.affords(seconds, f"rollout, base: {name}"):
                ours(f"rollout, base: {name}", world.adapted, temporal=temporal)


def replayed(world: World, batch: stp_rs.PromptBatch) -> None:
    """Add how far recorded log-probs are from their replay, which batches the same states in another way."""
    shape = world.shape
    one = batch.select(range(shape.batch.group))
    recorded = library.roll(world.adapted, shape, one, temporal=library.BEGUN)
    _, gap = library.gaps(world.adapted, recorded, size=shape.batch.rows)
    world.report.add("recorded log-prob against its replay", gap.pop("max"), "nats", **gap)


def published_rollouts(world: World) -> None:
    """Time steps of d1's loop, of the base and with fp32 adapters under autocast."""
    shape, report, policy = world.shape, world.report, world.adapted
    prompt_BP = world.ids_BS[:, : shape.batch.prompt]

    def logits(canvas_BS: torch.Tensor) -> torch.Tensor:
        return policy.head(policy.hidden(canvas_BS, None))

    def loop() -> tuple[torch.Tensor, int]:
        return published.rollout(
            logits, prompt_BP, completion=shape.batch.completion, steps=shape.batch.steps, block=shape.batch.block,
            temperature=library.TEMPERATURE, seconds=world.d1_seconds,
        )  # fmt: skip

    for name, context in (("base", world.base), ("fp32 adapters under autocast", world.autocast())):
        if not report.affords(world.d1_seconds + 1, f"rollout, {name}: d1's loop"):
            continue
        with context:
            took, (_, made) = report.wall(
                f"rollout, {name}: d1's loop",
                loop,
                counts=lambda found: {"steps_made": found[1], "of": shape.batch.steps},
            )
        report.add(f"rollout, {name}: d1's loop, a step", 1e3 * took / max(1, made), "ms", of=shape.batch.steps)


def caches(world: World) -> None:
    """Time rollouts with approximate caches and without, of the base: what they compute, and what they change.

    With random weights agreement is that of a policy that nothing has taught to be sure of itself.
    """
    shape, report, policy, batch = world.shape, world.report, world.plain, library.prompts(world.shape)
    world.uncompile()
    kinds: tuple[CacheKind, ...] = ("none", "prefix", "dual")
    with world.base, torch.no_grad():
        for kind in kinds:  # what is tried once is tried here
            library.roll(policy, shape, batch, temporal="steps:0.02", batching=stp_rs.Batching(cache=kind))
        exact: stp_rs.Rollout | None = None
        for kind, seconds in zip(kinds, (13, 9, 6), strict=True):
            name = f"rollout, base, temporal: cache {kind}"
            if not report.affords(seconds, name):
                continue
            roll = partial(
                library.roll, policy, shape, batch, temporal=library.TEMPORAL, batching=stp_rs.Batching(cache=kind)
            )
            _, found = report.wall(name, roll, counts=lambda found: {k: found.stats[k] for k in ("calls", "tokens")})
            exact = found if kind == "none" else exact
            if exact is not None and found is not exact:
                same = library.agreement(exact, found)
                report.add(f"{name}: tokens as without", same.pop("tokens_agree"), "share", **same)
            some = np.arange(min(len(found), 2))
            _, gap = library.gaps(policy, found.select(some), size=shape.batch.rows)
            report.add(f"{name}: recorded log-prob against the policy's", gap.pop("mean"), "nats", **gap)


def precision(world: World) -> None:
    """Time the first fifth of rollouts in int8 and fp8, what they change, and the correction of their ratios."""
    shape, report, policy, batch = world.shape, world.report, world.adapted, library.prompts(world.shape)
    world.uncompile()
    exact: stp_rs.Rollout | None = None
    kinds: tuple[Precision, ...] = ("same", "int8", "fp8")
    with torch.no_grad(), world.autocast(), acceleration.adapters_cast(policy.module, torch.bfloat16):
        for kind in kinds:
            name = f"rollout's first fifth, adapters: precision {kind}"
            try:
                check_precision(kind, world.device)
            except ConfigError as error:
                report.leave_out(name, str(error))
                continue
            if not report.affords(12, name):
                continue
            start = time.perf_counter()
            with rounded(policy.module, kind):
                report.wait()
                took = time.perf_counter() - start
                library.roll(policy, shape, batch, temporal="steps:0.02")
                roll = partial(library.roll, policy, shape, batch, temporal=library.BEGUN)
                _, found = report.wall(name, roll, rounding_s=took)
            exact = found if kind == "same" else exact
            if exact is not None and found is not exact:
                same = library.agreement(exact, found)
                report.add(f"{name}: tokens as without", same.pop("tokens_agree"), "share", **same)
            if report.affords(8, f"{name}: correction"):
                corrected(world, name, found)


def corrected(world: World, name: str, found: stp_rs.Rollout) -> None:
    """Time the correction of a group's rollouts by stp_rollout_cap; add its weights and the gap of log-probs."""
    cost, report, found = Cost(), world.report, found.select(np.arange(world.shape.batch.group))
    work = partial(library.gaps, world.adapted, found, size=world.shape.batch.rows, cost=cost)
    _, (policy_RL, gap) = report.wall(f"{name}: correction", work, counts=lambda _: {"canvases": cost.forwards})
    report.add(f"{name}: recorded log-prob against the policy's", gap.pop("mean"), "nats", **gap)
    _, metrics = importance_weights(policy_RL, found, cap=2.0)
    prefix = "sampling/importance_sampling_ratio/"
    weights = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    report.add(f"{name}: weights of completions", weights.pop("mean"), "ratio", **weights)


def exits(world: World) -> None:
    """Time a rollout of the base with the published exit."""
    report, batch = world.report, library.prompts(world.shape)
    world.uncompile()
    name = "rollout, base: the published exit"
    with world.base, torch.no_grad():
        if report.affords(20, name):
            roll = partial(library.roll, world.plain, world.shape, batch, temporal=library.EXIT)
            report.wall(name, roll, counts=lambda found: {"calls": found.stats["calls"]})


def likelihood(world: World) -> None:
    """Time the log-likelihood with gradient of two canvases per row: ours, and logits of whole canvases.

    Blocks are as they are: to compile their backward pass takes a minute.
    """
    shape, report, policy = world.shape, world.report, world.adapted
    world.uncompile()
    policy.network.checkpointing = True
    found = library.roll(library.Uniform(), shape, library.prompts(shape), temporal=library.TEMPORAL)
    masks = stp_rs.draw_masks(stp_rs.Design("spread", 2), found, seed=0)

    def ours() -> torch.Tensor:
        with world.autocast():
            estimate = stp_rs.token_elbo(policy, found, masks, forward_batch_size=shape.batch.rows)
            estimate.sum().backward()
        return estimate.detach().sum()

    def whole() -> torch.Tensor:
        total = torch.zeros((), device=world.device)
        canvas_RS = np.concatenate([found.prompt_ids, found.token_ids], axis=1)
        for start in range(0, len(masks.row_P), shape.batch.rows):
            part = slice(start, start + shape.batch.rows)
            row_P, mask_PL = masks.row_P[part], masks.mask_PL[part]
            target_PL = torch.from_numpy(found.token_ids[row_P]).to(world.device)
            ids_PS = torch.from_numpy(canvas_RS[row_P]).to(world.device)
            hidden_PL = torch.from_numpy(mask_PL == 1).to(world.device)
            ids_PS[:, shape.batch.prompt :][hidden_PL] = policy.mask_token_id
            with world.autocast():
                logits = policy.head(policy.hidden(ids_PS, None))[:, shape.batch.prompt :].float()
                logits[..., policy.mask_token_id] = -torch.inf
                logprob_PL = logits.log_softmax(-1).gather(-1, target_PL[..., None]).squeeze(-1)
                weighted = torch.from_numpy(masks.weight_PL[part]).to(world.device) * logprob_PL.nan_to_num(0, 0, 0)
                weighted.sum().backward()
            total = total + weighted.detach().sum()
        return total

    values = []
    for name, work in (("ours", ours), ("logits of whole canvases", whole)):
        if not report.affords(8, f"likelihood: {name}"):
            continue
        work()
        policy.module.zero_grad(set_to_none=True)
        _, value = report.wall(f"likelihood with gradient, K = 2: {name}", work)
        policy.module.zero_grad(set_to_none=True)
        values.append(float(value))
    if len(values) == 2:
        report.add("likelihood: relative gap of the two values", abs(values[0] / values[1] - 1), "ratio")
    with torch.no_grad(), world.autocast(), acceleration.adapters_cast(policy.module, torch.bfloat16):
        cost = {"canvases": len(masks.row_P)}
        report.wall("likelihood without gradient", lambda: stp_rs.token_elbo(policy, found, masks), **cost)


def update(world: World) -> None:
    """Time the updates of one step of our presets, with the blocks as they are.

    To compile their backward pass takes longer than a part may; the part `step` has it compiled.
    """
    report, policy = world.report, world.adapted
    world.uncompile()
    policy.network.checkpointing = True
    with tempfile.TemporaryDirectory() as folder:
        for preset, seconds in UPDATES.items():
            if report.affords(seconds, f"update: ours, {preset}"):
                _our_update(world, preset, Path(folder) / preset)


def published_update(world: World) -> None:
    """Time the updates of one step of Diffu-GRPO as it was published: its own passes, blocks as they are."""
    shape, report, policy = world.shape, world.report, world.adapted
    world.uncompile()
    policy.network.checkpointing = True
    draw = torch.Generator(world.device).manual_seed(3)
    prompt_BP, completion_BL = world.ids_BS[:, : shape.batch.prompt], world.ids_BS[:, shape.batch.prompt :]
    advantage_B = torch.randn(shape.batch.rows, generator=draw, device=world.device)

    def logits(canvas_BS: torch.Tensor) -> torch.Tensor:
        with world.autocast():
            return policy.head(policy.hidden(canvas_BS, None))

    def reference(canvas_BS: torch.Tensor) -> torch.Tensor:
        with policy.module.disable_adapter(), world.autocast():  # type: ignore[operator]
            return policy.head(policy.hidden(canvas_BS, None))

    theirs = published.DiffuGRPO(logits, reference, library.adam(policy.module))
    _, (scored, _) = report.wall(
        "update: diffu_grpo as published", lambda: theirs.run(prompt_BP, completion_BL, advantage_B)
    )
    report.add("update: diffu_grpo as published, passes without gradient", scored, "s")


def _our_update(world: World, preset: str, folder: Path) -> None:
    report = world.report
    with world.autocast():
        made = library.Update(world.adapted, preset, world.shape, folder)
        if preset == "stp":
            made.run()  # what is made once is made here
            gap = made.noise()
            report.add("passes without gradient against with", float(gap.max()), "nats", mean=float(gap.mean()))
            if world.device.type == "cuda":
                with warnings.catch_warnings(record=True) as waits:
                    warnings.simplefilter("always")
                    torch.cuda.set_sync_debug_mode("warn")
                    made.run()
                    torch.cuda.set_sync_debug_mode("default")
                report.add("update: ours, stp, waits of the host", len(waits), "waits")
        before = made.passes()
        with made.scored(report.wait) as seconds:
            took, metrics = report.wall(f"update: ours, {preset}", made.run, counts=lambda _: made.counts(before))
    report.add(f"update: ours, {preset}, scoring", sum(seconds), "s", share=sum(seconds) / took)
    if "diffusion/ratio_max" in metrics:
        report.add(f"update: ours, {preset}, largest ratio", metrics["diffusion/ratio_max"], "ratio")
    world.adapted.module.zero_grad(set_to_none=True)


def plain_step(world: World) -> None:
    """Time a training step of `stp` and of a group's shared canvas, blocks as they are: nothing is compiled."""
    policy, report = world.adapted, world.report
    world.uncompile()
    policy.network.checkpointing = True
    with tempfile.TemporaryDirectory() as folder:
        for preset, seconds in PLAIN_STEPS.items():
            name = f"training step, blocks as they are: {preset}"
            if not report.affords(seconds, name):
                continue
            options = {"stp_temporal": library.TEMPORAL, "stp_compile": "none"}
            made = library.trainer(policy, preset, world.shape, Path(folder) / preset, **options)
            report.wall(name, made.train_step)
            for phase, took in made.ledger.to_dict()["seconds"].items():
                report.add(f"{name}: {phase}", took, "s")
            policy.module.zero_grad(set_to_none=True)


def step(world: World) -> None:
    """Time whole training steps of `stp`, as the trainer makes them."""
    policy, report = world.adapted, world.report
    world.compile()
    policy.network.checkpointing = True
    with tempfile.TemporaryDirectory() as folder:
        made = library.trainer(policy, "stp", world.shape, Path(folder), stp_temporal=library.TEMPORAL)
        for number in range(2):
            if number == 0 or report.affords(20, "training step: stp, second"):
                report.wall(f"training step: stp, {('first', 'second')[number]}", made.train_step)
        for phase, seconds in made.ledger.to_dict()["seconds"].items():
            report.add(f"training steps: seconds of {phase}", seconds, "s")
    if world.device.type == "cuda":
        report.add("training step: peak memory", torch.cuda.max_memory_allocated(world.device) / GIB, "GiB")


PARTS: dict[str, Callable[[World], None]] = {
    "forward": forward, "rollout": rollout, "published": published_update, "update": update, "likelihood": likelihood,
    "caches": caches, "precision": precision, "exits": exits, "plain_step": plain_step, "step": step,
}  # fmt: skip
