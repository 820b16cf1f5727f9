"""The parts of small policies: ragged batches of a BERT of base size, and a policy whose forward is all launches."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

import stp_rs
from benches.gpu import library
from benches.gpu.network import Shape
from benches.gpu.report import Report
from stp_rs.config.sections import PolicyConfig
from stp_rs.models import tiny_policy

TOKENIZER = SimpleNamespace(mask_token_id=1, pad_token_id=0, eos_token_id=2)


@dataclass
class Small:
    """A policy of transformers with random weights, and the batch that it decodes."""

    shape: Shape
    report: Report
    policy: Any

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.report.device


def bert(shape: Shape, report: Report) -> Small:
    """Return a BERT of a shape."""
    config = BertConfig(
        vocab_size=shape.network.vocab, hidden_size=shape.network.hidden, num_hidden_layers=shape.network.layers,
        num_attention_heads=shape.network.heads, intermediate_size=shape.network.ffn,
        max_position_embeddings=max(16, shape.batch.prompt + shape.batch.completion),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = BertForMaskedLM(config).to(report.device)
    return Small(shape, report, stp_rs.as_diffusion_model(module.eval(), TOKENIZER))


def tiny(shape: Shape, report: Report) -> Small:
    """Return the quickstart's policy."""
    module = tiny_policy(
        PolicyConfig(), vocab_size=shape.network.vocab, max_length=shape.batch.prompt + shape.batch.completion, seed=0
    ).to(report.device)
    return Small(shape, report, stp_rs.as_diffusion_model(module.eval(), TOKENIZER))


def ragged(world: Small) -> None:
    """Time rollouts of equal and of ragged prompts: with a padding mask, and with pads hidden at torch's attention."""
    shape, report, policy = world.shape, world.report, world.policy
    equal, uneven = library.prompts(shape), library.prompts(shape, ragged=True)

    def run(name: str, batch: stp_rs.PromptBatch) -> None:
        with library.counted(policy) as seen:
            _, found = report.wall(f"rollout: {name}", lambda: library.roll(policy, shape, batch))
        report.add(f"rollout: {name}, calls", seen["calls"], "calls", tokens=seen["tokens"], **_padding(found))

    with torch.no_grad(), library.autocast(world.device):
        library.roll(policy, shape, equal, temporal="steps:0.05")
        library.roll(policy, shape, uneven, temporal="steps:0.05")
        run("equal prompts", equal)
        run("ragged prompts", uneven)
        policy.respects_padding, policy.masks_pads = False, True
        try:
            library.roll(policy, shape, uneven, temporal="steps:0.05")
            run("ragged prompts of a model that ignores the mask", uneven)
        finally:
            policy.respects_padding, policy.masks_pads = True, False


def _padding(found: stp_rs.Rollout) -> dict[str, float]:
    return {"padding": found.stats["padding"] / max(1, found.stats["tokens"])}


def launches(world: Small) -> None:
    """Time a forward, the same as a CUDA graph, and whole rollouts."""
    shape, report, policy = world.shape, world.report, world.policy
    draw = torch.Generator().manual_seed(0)
    width = shape.batch.prompt + shape.batch.completion
    ids_BS = torch.randint(3, shape.network.vocab, (shape.batch.rows, width), generator=draw).to(world.device)

    def run() -> torch.Tensor:
        hidden_BSH = policy.hidden(ids_BS, None)
        return torch.as_tensor(policy.head(hidden_BSH[:, shape.batch.prompt :].flatten(0, 1)))

    batch = library.prompts(shape)
    library.roll(policy, shape, batch)  # the first of a process also waits for the device's libraries
    took, found = report.wall("rollout", lambda: library.roll(policy, shape, batch))
    call = 1e3 * took / found.stats["calls"]
    report.add("rollout: a call", call, "ms", calls=found.stats["calls"])
    with library.clocked(policy, world.device) as read:
        library.roll(policy, shape, batch)
        parts = read()
    for name in ("forward", "head", "reduction", "host"):
        report.add(f"step of a rollout: {name}", parts[name] / parts["wall"], "share", seconds=parts[name])
    with torch.no_grad():
        report.time("forward and head", run, repeats=20, warm=5)
        if world.device.type == "cuda":
            replayed = report.time("forward and head as a CUDA graph", captured(run), repeats=20, warm=5)
            report.add("rollout: over its forwards as graphs", call / replayed, "ratio")


def captured(work: Callable[[], object]) -> Callable[[], object]:
    """Return a call that replays what `work` launches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


PARTS: dict[str, Callable[[Small], None]] = {"ragged": ragged, "launches": launches}
