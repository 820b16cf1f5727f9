"""Seconds and memory of what a forecast counts: from a calibration of the policy here, or from what a card measured.

A model call takes a fixed time and a time per token; a pass with gradient so many forwards; the head a time per row.
`calibrate` measures these on the policy that will be trained, `rates_of_bench` reads them from the file of a bench
(`python -m benches.gpu`), and `rates_of_card` takes the floating-point operations of a shape at a stated throughput.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stp_rs.config.arguments import STPConfig
from stp_rs.errors import ConfigError
from stp_rs.eval.forecast import Call, Forecast
from stp_rs.models.acceleration import adapter_layers, repeated_blocks
from stp_rs.models.base import HEAD_ELEMENTS, DiffusionModel, autocast, device_of
from stp_rs.objective.head import head_logprobs
from stp_rs.rollout.logits import Reads, Reducer
from stp_rs.rollout.params import sampling_law

GIB = float(1 << 30)
PHASES = ("prior", "rollout", "scoring", "gradient")


@dataclass(frozen=True)
class Network:
    """The sizes of a network."""

    hidden: int
    layers: int
    ffn: int
    vocab: int
    heads: int
    kv_heads: int = 0
    """0: as many as heads."""
    gated: bool = True
    """Whether the feed-forward layer has three matrices (SwiGLU), not two."""
    rank: int = 0
    """Of LoRA adapters on every linear layer, which are then all that is trained; 0: everything is."""
    parameters: int = 0
    """0: those of the sizes above."""
    trained: int = 0
    """Parameters that training changes; 0: by the rank."""
    weight_bytes: float = 2.0
    """Of a parameter; of a model that is at hand the mean of all."""
    trained_bytes: float = 0.0
    """Of a trained parameter; 0: 4 for adapters, else those of a weight."""

    @property
    def linear(self) -> int:
        """Parameters of the linear layers of all blocks."""
        keys = self.hidden * (self.kv_heads or self.heads) // self.heads
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * keys
        return self.layers * (attention + (2 + self.gated) * self.hidden * self.ffn)

    @property
    def adapters(self) -> int:
        """Parameters of the adapters."""
        keys = self.hidden * (self.kv_heads or self.heads) // self.heads
        ends = 2 * (2 * self.hidden) + 2 * (self.hidden + keys) + (2 + self.gated) * (self.hidden + self.ffn)
        return self.layers * self.rank * ends

    def complete(self) -> "Network":
        """Return it with what is counted from the sizes."""
        base = self.linear + 2 * self.vocab * self.hidden
        trained = self.trained or (self.adapters if self.rank else base)
        each = self.trained_bytes or (4.0 if self.rank else self.weight_bytes)
        if self.parameters:
            return replace(self, trained=trained, trained_bytes=each)
        total = base + self.adapters
        mean = (base * self.weight_bytes + self.adapters * each) / total
        return replace(self, parameters=total, trained=trained, trained_bytes=each, weight_bytes=mean)

    def flops(self, width: int) -> float:
        """Return the floating-point operations of a token of a forward, without head and adapters."""
        return float(2 * self.linear + 4 * width * self.hidden * self.layers)


NETWORKS = {
    "llada-8b": Network(hidden=4096, layers=32, heads=32, ffn=12_288, vocab=126_464),
    "1b": Network(hidden=2048, layers=16, heads=32, ffn=8192, vocab=126_464),
    "bert-base": Network(hidden=768, layers=12, heads=12, ffn=3072, vocab=30_522, gated=False, weight_bytes=4.0),
    "tiny": Network(hidden=64, layers=3, heads=4, ffn=256, vocab=20, gated=False, weight_bytes=4.0),
}
"""Networks by name: those of the bench."""

TFLOPS = {"h100": 528.0}
"""Dense bf16 throughput of a forward that was measured, in TFLOP/s: LLaDA-8B's shape, 12 rows of 456 tokens, on an
H100 80GB (benches/gpu/results.json). A card's data sheet says more."""


def network_named(text: str) -> Network:
    """Return a network by name, or of sizes `hidden=4096,layers=32,...`.

    Raises:
        ConfigError: neither.
    """
    if text in NETWORKS:
        return NETWORKS[text]
    known = {f.name: f.type for f in fields(Network)}
    try:
        given: dict[str, Any] = dict(part.split("=") for part in text.split(","))
        sizes: dict[str, Any] = {name: float(v) if "bytes" in name else int(v) for name, v in given.items()}
        return Network(**sizes)
    except (ValueError, TypeError):
        raise ConfigError(
            f"shape: got {text!r}, needs one of {', '.join(NETWORKS)}, or sizes as hidden=4096,layers=32,heads=32,"
            f"ffn=12288,vocab=126464 (of {', '.join(known)})"
        ) from None


def network_of(policy: DiffusionModel) -> Network:
    """Return the sizes of a policy."""
    config: Any = getattr(policy.module, "config", None)
    parameters = list(policy.module.parameters())
    trained = [p for p in parameters if p.requires_grad]

    def size(*names: str, default: int) -> int:
        return next((int(value) for name in names if (value := getattr(config, name, None))), default)

    hidden = size("hidden_size", "d_model", "dim", "n_embd", default=1)
    layers = adapter_layers(policy.module)
    ranks = [int(rank) for layer in layers for rank in getattr(layer, "r", {}).values()]
    total = sum(p.numel() for p in parameters)
    return Network(
        hidden=hidden,
        layers=max(1, len(repeated_blocks(policy.module))),
        ffn=size("intermediate_size", "mlp_hidden_size", "hidden_dim", default=4 * hidden),
        vocab=size("vocab_size", "embedding_size", default=1),
        heads=size("num_attention_heads", "n_heads", "n_head", default=1),
        rank=max(ranks, default=0),
        parameters=total,
        trained=sum(p.numel() for p in trained),
        weight_bytes=sum(p.nbytes for p in parameters) / max(1, total),
        trained_bytes=sum(p.nbytes for p in trained) / max(1, sum(p.numel() for p in trained)),
    )


@dataclass(frozen=True)
class Rates:
    """What calls take, in seconds."""

    call: float
    """A call, however large: launches, and in a rollout reduction and host."""
    token: float
    """A token of a forward."""
    head_row: float
    """A row of the head, its reduction included."""
    gradient: float
    """Forwards that a pass with gradient costs, its own included."""
    source: str
    """Where they come from."""

    def of(self, call: Call) -> float:
        """Return the seconds of a call."""
        forward = self.call + self.token * call.tokens + self.head_row * call.head_rows
        return forward * (self.gradient if call.phase == "gradient" else 1.0)


def seconds(found: Forecast, rates: Rates, *, host: bool = True) -> dict[str, float]:
    """Return the seconds of one rollout batch by phase, of the process that has most to do.

    `host`: with what the forecast itself took, which is the host's work on this machine.
    """
    spent = dict.fromkeys(PHASES, 0.0)
    for call in found.calls:
        spent[call.phase] += rates.of(call)
    if host:
        spent["host"] = found.host_seconds / found.processes
    return spent


def passes_of_gradient(network: Network, *, recomputed: bool) -> float:
    """Return the forwards that a pass with gradient costs by its operations.

    One is its own, one is the backward pass by activations, one the same by all weights, of which only the trained ones
    count; recomputed blocks add one.
    """
    made = network.complete()
    return 2.0 + recomputed + made.trained / max(1, made.parameters)


def rates_of_card(network: Network, *, tflops: float, width: int, recomputed: bool) -> Rates:
    """Return the rates of a network at a throughput, in TFLOP/s, for canvases of a width."""
    per_second = 1e12 * tflops
    return Rates(
        call=0.0,
        token=network.flops(width) / per_second,
        head_row=2.0 * network.hidden * network.vocab / per_second,
        gradient=passes_of_gradient(network, recomputed=recomputed),
        source=f"operations at {tflops:g} TFLOP/s; launches, reduction and host are not in it",
    )


def rates_of_bench(path: Path, name: str) -> Rates:
    """Return the rates that a bench measured of one of its shapes.

    A large shape's forward at several numbers of rows gives the time per call and per token; its rollout the reduction
    and the host of a call; its likelihood the cost of a gradient. Of `bert-base` there is a rollout only.

    Raises:
        ConfigError: the file holds no forward of the shape.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"bench: {path} cannot be read: {error}") from error
    lines = {
        line["name"]: line
        for line in found["results"]
        if line["part"].startswith(f"{name}:") and line["value"] is not None
    }
    source = f"{path.name}: {found['card']}, {found['date']}, torch {found['torch']}"
    try:
        return _bench_rates(name, lines, source)
    except KeyError as missing:
        raise ConfigError(f"bench: {path} holds no line {missing} of {name}; run its parts first") from None


def _bench_rates(name: str, lines: Mapping[str, Any], source: str) -> Rates:
    network = NETWORKS[name]
    gradient = passes_of_gradient(network, recomputed=False)
    if name == "bert-base":
        counted = lines["rollout: equal prompts, calls"]
        return Rates(0.0, lines["rollout: equal prompts"]["value"] / counted["tokens"], 0.0, gradient, source)
    if name == "tiny":
        calls = lines["rollout: a call"]["calls"]
        around = sum(lines[f"step of a rollout: {part}"]["seconds"] for part in ("reduction", "host"))
        return Rates(lines["forward and head"]["value"] / 1e3 + around / calls, 0.0, 0.0, gradient, source)
    batch = SETTINGS[name]
    times = {batch.rows: lines["forward: compiled blocks, adapters cast once"]["value"]}
    for rows in range(1, batch.rows):
        if f"forward: ours, {rows} rows" in lines:
            times[rows] = lines[f"forward: ours, {rows} rows"]["value"]
    per_row, fixed = np.polyfit(list(times), list(times.values()), 1)
    calls = lines["rollout, adapters: ours, temporal"]["calls"]
    around = sum(lines[f"step of that rollout: {part}"]["seconds"] for part in ("head", "reduction", "host"))
    with_gradient, without = (
        lines[f"likelihood {how}"]["value"] for how in ("with gradient, K = 2: ours", "without gradient")
    )
    return Rates(
        call=max(0.0, float(fixed)) / 1e3 + around / calls,
        token=float(per_row) / 1e3 / batch.width,
        head_row=0.0,
        gradient=with_gradient / without,
        source=source,
    )


@dataclass(frozen=True)
class Setting:
    """The batch that a bench decodes."""

    rows: int
    group: int
    prompt: int
    completion: int
    steps: int
    block: int
    rank: int

    @property
    def width(self) -> int:
        """Tokens of a canvas."""
        return self.prompt + self.completion


SETTINGS = {
    "llada-8b": Setting(rows=12, group=6, prompt=200, completion=256, steps=128, block=32, rank=128),
    "1b": Setting(rows=24, group=6, prompt=200, completion=256, steps=128, block=32, rank=64),
    "bert-base": Setting(rows=64, group=2, prompt=256, completion=256, steps=64, block=32, rank=16),
    "tiny": Setting(rows=256, group=8, prompt=20, completion=20, steps=20, block=0, rank=4),
}
"""What the bench decodes with each network."""


def calibrate(policy: DiffusionModel, found: Forecast, config: STPConfig) -> Rates:
    """Return the rates of a policy where it is: of forwards of two sizes, and of one pass with gradient.

    Nothing is changed: no gradient is kept, and the canvases are masks.
    """
    rollouts = [call for call in found.calls if call.phase in ("prior", "rollout")]
    large = max(rollouts, key=lambda c: c.tokens)
    width = large.tokens // large.canvases
    sizes = sorted({max(1, large.canvases // 4), large.canvases})
    device, law = device_of(policy), sampling_law(config)
    rows_of_head = max(1, sum(c.head_rows for c in rollouts) // len(rollouts))
    module = policy.module
    training = module.training
    module.eval()
    reducer = Reducer(replace(law, allowed=None), policy.mask_token_id)
    out_NC = torch.empty((rows_of_head, 7), device=device)
    uniforms_N = torch.full((rows_of_head,), 0.5, device=device)

    def canvases(count: int, columns: int = width) -> torch.Tensor:
        return torch.full((count, columns), policy.mask_token_id, device=device)

    def head() -> None:
        hidden_NH = hidden_BSH.flatten(0, 1)[:1].expand(rows_of_head, -1)
        reducer(policy.head(hidden_NH), uniforms_N, out_NC, None, Reads(top2=False, entropy=False, argmax=False))

    try:
        with torch.no_grad(), autocast(device, config.bf16):
            times = [_timed(partial(policy.hidden, canvases(n), None), device) for n in sizes]
            hidden_BSH = policy.hidden(canvases(1), None)
            head_seconds = _timed(head, device)
        steepness = (times[-1] - times[0]) / max(1, sizes[-1] - sizes[0]) if len(sizes) > 1 else times[0]
        per_row = min(max(steepness, 0.0), times[-1] / sizes[-1])
        rates = Rates(
            call=max(0.0, times[-1] - per_row * sizes[-1]),
            token=per_row / width,
            head_row=head_seconds / rows_of_head,
            gradient=1.0,
            source=f"a forward of {large.canvases} canvases of {width} tokens on {device}",
        )
        graded = [call for call in found.calls if call.phase == "gradient"]
        if not graded:
            return rates
        call = max(graded, key=lambda c: c.tokens)
        with autocast(device, config.bf16):
            took = _timed(lambda: _gradient(policy, call, config), device)
        return replace(rates, gradient=max(1.0, took / rates.of(call) if rates.of(call) else 1.0))
    finally:
        module.zero_grad(set_to_none=True)
        module.train(training)


def _gradient(policy: DiffusionModel, call: Call, config: STPConfig) -> None:
    """Make a pass with gradient as large as one of an update's."""
    device, width = device_of(policy), call.tokens // call.canvases
    ids = torch.full((call.canvases, width), policy.mask_token_id, device=device)
    hidden = policy.hidden(ids, None).flatten(0, 1)
    at = torch.arange(call.head_rows, device=device) % len(hidden)
    target = torch.full_like(at, (policy.mask_token_id + 1) % max(2, network_of(policy).vocab))
    law = replace(sampling_law(config), temperature=config.temperature or 1.0, allowed=None)
    head_logprobs(policy, hidden[at], target, law, (at, width), None, "numbers")[:, 0].sum().backward()


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of a call, after one that is not counted."""
    found = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


_RESTS = 14
"""Bytes of a logit at the peak of a head that is not trained; one that is keeps gradients of the copies too."""


def memory(
    network: Network, found: Forecast, config: STPConfig, *, sharded: bool = False, cuda: bool = True
) -> dict[str, float]:
    """Return the bytes of one process by part, at the peak of a step.

    Weights, gradients, two moments of the optimiser and a reference are exact for AdamW; activations, head and rollout
    are what a transformer of the sizes keeps. `sharded`: FSDP divides the first four among the processes.
    """
    made = network.complete()
    each = 2.0 if config.bf16 or network.weight_bytes <= 2 else 4.0
    parts = found.processes if sharded else 1
    trained = made.trained * made.trained_bytes
    weights = made.parameters * made.weight_bytes
    reference = 0.0
    if config.beta > 0 and config.stp_kl_target == "reference" and not made.rank:
        reference = weights
    block = 10 * made.hidden + (2 + 2 * made.gated) * made.ffn  # elements of a token that a block keeps
    kept = made.layers * made.hidden + block if config.gradient_checkpointing else made.layers * block
    rolled = max((c.tokens for c in found.calls if c.phase == "rollout"), default=0)
    chunk = 1 << 28 if cuda else HEAD_ELEMENTS
    per_logit = _RESTS if made.trained < made.parameters else 2 * _RESTS
    scored = found.largest.head_rows * made.vocab
    drawn = max((c.head_rows for c in found.calls if c.phase == "rollout"), default=0) * made.vocab
    parts_of = {
        "weights": weights / parts,
        "gradients": trained / parts,
        "optimiser": 2 * trained / parts,
        "reference": reference / parts,
        "activations of a pass with gradient": each * found.largest.tokens * kept,
        "head of that pass": float(per_logit * min(scored, chunk)),
        "a rollout's forward and head": each * rolled * block + float(_RESTS * min(drawn, chunk)),
    }
    if sharded and parts > 1:
        parts_of["a block, gathered"] = made.weight_bytes * made.linear / made.layers
    return parts_of


def peak(parts: Mapping[str, float]) -> float:
    """Return the bytes at the peak: an update's and a rollout's passes are not there together."""
    passes = parts["activations of a pass with gradient"] + parts["head of that pass"]
    rolled = parts["a rollout's forward and head"]
    return sum(parts.values()) - passes - rolled + max(passes, rolled)
