"""Time our sampler against the published loops: same logits, interleaved in one run, CPU time of one thread,
best of a few.

    python -m benches.python.bench_sampler            # writes benches/results.json
    python -m benches.python.plot                     # writes docs/img/performance.svg

A row of the results: name, shape, ours_us, baseline, baseline_us, ratio, target_ratio, limit_us (null: there is none).
"""

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stp_rs
from benches.python import bench_compile, bench_rollout, published
from benches.python.measure import BLOCK, MASK, PER_STEP, NearFree, Row, Timed, best, line, submitted
from stp_rs import _core
from stp_rs.rollout.loop import Cohort

GIB = 1 << 30


class Small(torch.nn.Module):
    """A LLaDA-shaped policy in small: bidirectional layers of width 64 and a head over the whole vocabulary."""

    def __init__(self, vocab: int, width: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, width)
        layer = torch.nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = torch.nn.Linear(width, vocab, bias=False)


class SmallModel(NearFree):
    def __init__(self, vocab: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.small = Small(vocab, 64)
        self.module = self.small
        self.small.config = type("Config", (), {"vocab_size": vocab})()

    def hidden(self, ids_BS: torch.Tensor, _lengths: torch.Tensor | None) -> torch.Tensor:
        return self.small.layers(self.small.embed(ids_BS))

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return self.small.out(hidden_NH)


def our_step(model: Any, unmasking: stp_rs.Unmasking, rows: int, prompt: int, length: int, temperature: float) -> Timed:
    kept: list[Any] = []

    def set_up() -> Callable[[], object]:
        scheduler = submitted(unmasking, rows, prompt, length)
        cohort = Cohort(model, scheduler, stp_rs.SamplingParams(temperature), rows, length)
        # a rollout reduces in the same memory from its first step on: measure a later step than the first
        kept.append(cohort._reducer)
        cohort._reducer = kept[0]

        def work() -> None:
            cohort.launch()
            cohort.finish()

        return work

    return set_up


def their_step(logits: Callable[[torch.Tensor], torch.Tensor], step: Callable[..., None], shape: tuple[int, int, int],
               *args: Any, **options: Any) -> Timed:  # fmt: skip
    rows, prompt, length = shape

    def set_up() -> Callable[[], object]:
        canvas = torch.full((rows, prompt + length), MASK)
        canvas[:, :prompt] = 5
        return lambda: step(logits(canvas), canvas, *args, mask_token_id=MASK, end=prompt + BLOCK, **options)

    return set_up


def steps(rows: int, length: int, vocab: int, temperature: float, targets: dict[str, float | None]) -> list[Row]:
    """Return rows for one denoising step without the model."""
    prompt = length // 4
    model = NearFree(rows, prompt + length, vocab)
    quota = torch.full((rows,), PER_STEP)
    shape = (rows, prompt, length)
    top_k = stp_rs.Unmasking(length // PER_STEP, block_length=BLOCK, confidence="sampled_prob")
    threshold = stp_rs.Unmasking(length // PER_STEP, block_length=BLOCK, selection="threshold:0.9")

    def ready(_canvas: torch.Tensor) -> torch.Tensor:
        return model.logits_BSV

    contestants: dict[str, Timed] = {
        "ours top_k": our_step(model, top_k, *shape, temperature),
        "d1": their_step(ready, published.top_k_step, shape, quota, temperature=temperature, dtype=torch.float32),
    }
    if "LLaDA" in targets:
        contestants["LLaDA"] = their_step(ready, published.top_k_step, shape, quota, temperature=temperature)
    if "Fast-dLLM threshold" in targets:
        contestants["ours threshold"] = our_step(model, threshold, *shape, temperature)
        contestants["Fast-dLLM threshold"] = their_step(
            ready, published.threshold_step, shape, 0.9, temperature=temperature
        )
    times = best(contestants, 2 if rows * length * vocab > 1e8 else 4 if rows * length * vocab > 1e7 else 24)
    label = f"B={rows} L={length} prompt={prompt} block={BLOCK} V={vocab} T={temperature:g}"
    return [
        line("sampler step", label, times["ours threshold" if "threshold" in name else "ours top_k"], name, times[name],
             target=targets.get(name))
        for name in contestants if not name.startswith("ours")
    ]  # fmt: skip


def grid(*, large: bool) -> list[Row]:
    """Return rows for greedy steps at the other sizes whose logits fit in 3 GiB; the baselines need twice that."""
    done = {(64, 256, 512), (8, 256, 32_768), (8, 256, 126_464)}
    found: list[Row] = []
    for rows, length, vocab in product((1, 8, 64), (64, 256, 512), (512, 32_768, 126_464)):
        size = rows * (length + length // 4) * vocab * 4
        if size <= 3 * GIB and (large or vocab <= 32_768) and (rows, length, vocab) not in done:
            found += steps(rows, length, vocab, 0.0, {})
    return found


def host(rows: int, rounds: int) -> list[Row]:
    """Return rows for what Rust does in a step, called from Python, and for a plan."""
    length, found = 256, []
    scores = np.zeros((rows * BLOCK, 7), dtype=np.float32)
    scores[:, 2] = -np.random.default_rng(0).random(len(scores)) / 2
    scores[:, 0] = 9
    arrays = (np.empty(rows * 320, np.int64), np.empty(rows, np.int32),
              np.empty(rows * length, np.int32), np.empty(rows * length, np.float32))  # fmt: skip

    def commit(selection: str) -> Timed:
        def set_up() -> Callable[[], object]:
            unmasking = stp_rs.Unmasking(128, block_length=BLOCK, selection=selection)
            scheduler = submitted(unmasking, rows, 64, length)
            scheduler.next_step(*arrays)
            return lambda: scheduler.commit(scores)

        return set_up

    def next_step() -> Callable[[], object]:
        scheduler = submitted(stp_rs.Unmasking(128, block_length=BLOCK), rows, 64, length)
        return lambda: scheduler.next_step(*arrays)

    contestants: dict[str, Timed] = {
        "commit top_k": commit("top_k"),
        "commit threshold": commit("threshold:0.7"),
        "next_step": next_step,
    }
    if rows == 64:
        contestants["schedule of a block"] = lambda: lambda: _core.plan_counts(BLOCK, 16)
    limits = {"commit top_k": 40.0, "commit threshold": 70.0, "schedule of a block": 20.0} if rows == 64 else {}
    for name, took in best(contestants, rounds).items():
        found.append(line(name, f"B={rows} L={length} block={BLOCK}", took, limit=limits.get(name)))
    return found


def whole_step() -> Row:
    """Return the row for a step with a small model: the head on candidates against the head everywhere."""
    rows, length, vocab = 8, 256, 126_464
    model = SmallModel(vocab)
    quota = torch.full((rows,), PER_STEP)
    unmasking = stp_rs.Unmasking(128, block_length=BLOCK, confidence="sampled_prob")

    def everywhere(canvas: torch.Tensor) -> torch.Tensor:
        return model.head(model.hidden(canvas, None))

    times = best({
        "ours": our_step(model, unmasking, rows, 0, length, 0.0),
        "d1": their_step(everywhere, published.top_k_step, (rows, 0, length), quota, dtype=torch.float32),
    }, 1)  # fmt: skip
    shape = f"B={rows} L={length} V={vocab} T=0 d=64, 2 layers"
    return line("whole step, small model", shape, times["ours"], "d1", times["d1"], target=5.0)


@torch.no_grad()
def main() -> None:
    """Run the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benches/results.json")
    parser.add_argument("--large", action="store_true", help="also vocabularies of 126,464 (about 8 GiB)")
    parser.add_argument("--policy-100m", action="store_true", help="also a rollout of 110 million parameters")
    parser.add_argument("--compile", action="store_true", help="also the reduction as torch.compile makes it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts: list[Callable[[], list[Row]]] = [
        lambda: [*host(64, 200), *host(512, 30), *host(4096, 10)],
        lambda: [bench_rollout.record(), bench_rollout.ragged(), bench_rollout.tiny()],
        lambda: steps(64, 256, 512, 0.0, {"d1": 14.0, "LLaDA": 14.0, "Fast-dLLM threshold": 40.0}),
        lambda: steps(64, 256, 512, 0.9, {"d1": 40.0, "LLaDA": 75.0}),
        lambda: steps(8, 256, 32_768, 0.0, {"LLaDA": None}),
    ]
    if args.large:
        parts.append(lambda: steps(8, 256, 126_464, 0.0, {"d1": 20.0, "Fast-dLLM threshold": 75.0}))
        parts.append(lambda: [whole_step()])
    if args.policy_100m:
        parts.append(lambda: [bench_rollout.policy_100m()])
    if args.compile:
        parts.append(bench_compile.rows)
    parts.append(lambda: grid(large=args.large))
    results: list[Row] = []
    for part in parts:
        results += part()
        Path(args.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
