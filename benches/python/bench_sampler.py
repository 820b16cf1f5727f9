"""Time our sampler against the published loops: same logits, interleaved in one run, one thread, best of a few.

    python -m benches.python.bench_sampler            # writes benches/results.json
    python -m benches.python.plot                     # writes docs/img/performance.svg

A row of the results: name, shape, ours_us, baseline, baseline_us, ratio, target_ratio, limit_us (null: there is none).
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import stp_rs
from benches.python import published
from stp_rs import _core
from stp_rs.config import PolicyConfig
from stp_rs.engine import Cohort
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.prompts import PromptBatch

MASK, PAD, BLOCK, PER_STEP = 1, 0, 32, 2
Row = dict[str, Any]
Timed = Callable[[], Callable[[], object]]
"""Sets a measurement up, untimed, and returns what is timed."""


class NearFree:
    """A model that costs nothing: its logits lie ready, so that what is timed is the sampler."""

    mask_token_id, pad_token_id, eos_token_id, logit_shift, respects_padding = MASK, PAD, 2, 0, True

    def __init__(self, rows: int, width: int, vocab: int) -> None:
        draw = torch.Generator().manual_seed(0)
        # one block of noise, repeated: large vocabularies are slow to draw
        noise = torch.randn((1, min(width, 32), vocab), generator=draw) * 3
        self.logits_BSV = noise.repeat(rows, -(-width // noise.shape[1]), 1)[:, :width]
        self.logits_BSV[..., MASK] = -100.0
        self.module = torch.nn.Linear(1, 1)
        self._hidden = torch.zeros(rows, width, 1)

    def hidden(self, ids_BS: torch.Tensor, _lengths: torch.Tensor | None) -> torch.Tensor:
        return self._hidden[: ids_BS.shape[0], : ids_BS.shape[1]]

    def head(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return self.logits_BSV.view(-1, self.logits_BSV.shape[-1])[: len(hidden_NH)]


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


def best(contestants: dict[str, Timed], rounds: int) -> dict[str, float]:
    """Return the best time of each in microseconds; every round times each once, so that noise hits all alike."""
    found = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds + 1):  # the first one warms up
        for name, set_up in contestants.items():
            work = set_up()
            start = time.perf_counter()
            work()
            found[name] = min(found[name], (time.perf_counter() - start) * 1e6)
    return found


def prompts(rows: int, length: int) -> PromptBatch:
    at = np.arange(rows)
    ids = np.full((rows, length), 5, dtype=np.int64)
    return PromptBatch([{}] * rows, ids, np.full(rows, length, np.int32), at.astype(np.uint64), at)


def submitted(sampler: stp_rs.Sampler, rows: int, prompt: int, length: int) -> _core.RolloutScheduler:
    scheduler = _core.RolloutScheduler(mask_token_id=MASK, pad_token_id=PAD, slots=rows, seed=1, share_first=False)
    batch = prompts(rows, prompt)
    lengths = np.full(rows, length, dtype=np.int32)
    scheduler.submit(batch.uid, batch.prompt_ids, batch.prompt_length, lengths, sampler)
    return scheduler


def our_step(model: Any, sampler: stp_rs.Sampler, rows: int, prompt: int, length: int, temperature: float) -> Timed:
    kept: list[Any] = []

    def set_up() -> Callable[[], object]:
        scheduler = submitted(sampler, rows, prompt, length)
        cohort = Cohort(model, scheduler, stp_rs.Sampling(temperature), rows, length)
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
    top_k = stp_rs.Sampler(length // PER_STEP, block_length=BLOCK, confidence="sampled_prob")
    threshold = stp_rs.Sampler(length // PER_STEP, block_length=BLOCK, selection="threshold:0.9")

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
    times = best(contestants, 2 if rows * length * vocab > 1e8 else 4 if vocab > 512 else 12)
    label = f"B={rows} L={length} prompt={prompt} block={BLOCK} V={vocab} T={temperature:g}"
    return [
        line("sampler step", label, times["ours threshold" if "threshold" in name else "ours top_k"], name, times[name],
             target=targets.get(name))
        for name in contestants if not name.startswith("ours")
    ]  # fmt: skip


def line(name: str, shape: str, ours: float, baseline: str | None = None, theirs: float | None = None,
         *, target: float | None = None, limit: float | None = None) -> Row:  # fmt: skip
    ratio = None if theirs is None else theirs / ours
    found = {"name": name, "shape": shape, "ours_us": ours, "baseline": baseline, "baseline_us": theirs}
    found |= {"ratio": ratio, "target_ratio": target, "limit_us": limit}
    print(f"{name:28} {shape:52} {ours:12.1f} us  {baseline or '':20} "
          f"{'' if ratio is None else f'{ratio:7.1f}x'} {'' if target is None else f'(target {target:g}x)'}"
          f"{'' if limit is None else f'(limit {limit:g} us)'}", flush=True)  # fmt: skip
    return found


def host() -> list[Row]:
    """Return rows for what Rust does in a step, called from Python, and for a plan."""
    rows, length, found = 64, 256, []
    scores = np.zeros((rows * BLOCK, 7), dtype=np.float32)
    scores[:, 2] = -np.random.default_rng(0).random(len(scores)) / 2
    scores[:, 0] = 9
    arrays = (np.empty(rows * 320, np.int64), np.empty(rows, np.int32),
              np.empty(rows * length, np.int32), np.empty(rows * length, np.float32))  # fmt: skip

    def commit(selection: str) -> Timed:
        def set_up() -> Callable[[], object]:
            sampler = stp_rs.Sampler(128, block_length=BLOCK, selection=selection)
            scheduler = submitted(sampler, rows, 64, length)
            scheduler.next_step(*arrays)
            return lambda: scheduler.commit(scores)

        return set_up

    def next_step() -> Callable[[], object]:
        scheduler = submitted(stp_rs.Sampler(128, block_length=BLOCK), rows, 64, length)
        return lambda: scheduler.next_step(*arrays)

    contestants: dict[str, Timed] = {
        "commit top_k": commit("top_k"),
        "commit threshold": commit("threshold:0.7"),
        "next_step": next_step,
        "schedule of a block": lambda: lambda: _core.plan_counts(BLOCK, 16),
    }
    limits = {"commit top_k": 40.0, "commit threshold": 70.0, "schedule of a block": 20.0}
    for name, took in best(contestants, 200).items():
        found.append(line(name, f"B={rows} L={length} block={BLOCK}", took, limit=limits.get(name)))
    return found


def record() -> Row:
    """Return the row for the step map: written at commit by us, rebuilt from stored canvases by others."""
    rows, length, count = 64, 256, 128
    order = np.random.default_rng(0).permuted(np.tile(np.arange(length) // 2, (rows, 1)), axis=1)
    canvases = np.where(order[None] < np.arange(count + 1)[:, None, None], 7, MASK)
    sampler = stp_rs.Sampler(count)
    model = NearFree(rows, length, 16)
    scheduler = submitted(sampler, rows, 0, length)
    cohort = Cohort(model, scheduler, stp_rs.GREEDY, rows, length)
    while cohort.launch():
        cohort.finish()
    out = (np.empty((rows, length), np.int64), np.empty((rows, length), np.int32),
           np.empty((rows, length), np.float32), np.empty(rows, np.int32), np.empty(rows, np.uint8))  # fmt: skip
    rebuilt = np.empty((rows, length), dtype=np.int64)

    def rebuild() -> None:
        for step in range(count):
            rebuilt[(canvases[step] == MASK) & (canvases[step + 1] != MASK)] = step

    times = best({"ours": lambda: lambda: scheduler.results(*out), "canvases": lambda: rebuild}, 100)
    if not np.array_equal(rebuilt, order):
        raise AssertionError("the baseline rebuilds another map")
    return line("trajectory record", f"B={rows} L={length} {count} steps", times["ours"], "canvases",
                times["canvases"], target=100.0)  # fmt: skip


def ragged() -> Row:
    """Return the row for rows that stop at different times: forwards against those of a lockstep batch."""
    rows, length, slots = 256, 64, 64
    lengths = np.random.default_rng(0).normal(32, 0.3 * 32, rows).clip(1, length).astype(int)
    samplers = [stp_rs.Sampler(int(n)) for n in lengths]
    model = NearFree(slots, length, 64)
    start = time.perf_counter()
    rollout = stp_rs.generate(model, prompts(rows, 0), samplers, completion_length=length, slots=slots)
    took = (time.perf_counter() - start) * 1e6
    share = rollout.stats["useful_rows"] / rollout.stats["forwards"]
    lockstep = sum(slots * int(rollout.nfe[i : i + slots].max()) for i in range(0, rows, slots))
    print(f"useful-row share {share:.3f}, lockstep {rollout.nfe.sum() / lockstep:.3f}")
    forwards = rollout.stats["forwards"]
    return line("row forwards, ragged stops", f"B={slots} rows={rows} CV=0.3 (per row forward)", took / forwards,
                "lockstep batches", took / forwards * lockstep / forwards,
                target=0.95 * lockstep / forwards)  # fmt: skip


def whole_step() -> Row:
    """Return the row for a step with a small model: the head on candidates against the head everywhere."""
    rows, length, vocab = 8, 256, 126_464
    model = SmallModel(vocab)
    quota = torch.full((rows,), PER_STEP)
    sampler = stp_rs.Sampler(128, block_length=BLOCK, confidence="sampled_prob")

    def everywhere(canvas: torch.Tensor) -> torch.Tensor:
        return model.head(model.hidden(canvas, None))

    times = best({
        "ours": our_step(model, sampler, rows, 0, length, 0.0),
        "d1": their_step(everywhere, published.top_k_step, (rows, 0, length), quota, dtype=torch.float32),
    }, 1)  # fmt: skip
    shape = f"B={rows} L={length} V={vocab} T=0 d=64, 2 layers"
    return line("whole step, small model", shape, times["ours"], "d1", times["d1"], target=5.0)


def quickstart() -> Row:
    """Return the row for everything but the model in a rollout of the tiny policy."""
    tokenizer = character_tokenizer("0123456789.$")
    module = tiny_policy(PolicyConfig(), vocab_size=len(tokenizer), max_length=40, seed=0)
    model: Any = stp_rs.as_diffusion_model(module, tokenizer)
    inside = [0.0]

    def timed(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any) -> torch.Tensor:
            start = time.perf_counter()
            result = function(*args)
            inside[0] += time.perf_counter() - start
            return result

        return call

    model.hidden, model.head = timed(model.hidden), timed(model.head)
    batch = prompts(4, 16).repeat(8)
    sampler = stp_rs.Sampler(18, temporal="steps:0.6")
    found = (float("inf"), 0.0, 1)  # seconds outside the model, seconds in all, calls
    for _ in range(6):
        inside[0], start = 0.0, time.perf_counter()
        rollout = stp_rs.generate(model, batch, sampler, completion_length=18)
        took = time.perf_counter() - start
        found = min(found, (took - inside[0], took, rollout.stats["calls"]))
    outside, took, calls = found
    print(f"all but the model: {outside / took:.3f} of a rollout of {took * 1e3:.1f} ms, {calls} calls")
    return line("all but the model, per call", "tiny policy, B=32 L=18", outside / calls * 1e6, "whole rollout",
                took / calls * 1e6, target=10.0)  # fmt: skip


@torch.no_grad()
def main() -> None:
    """Run the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="benches/results.json")
    parser.add_argument("--large", action="store_true", help="also vocabularies of 126,464 (about 8 GiB)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = [*host(), record(), ragged(), quickstart()]
    results += steps(64, 256, 512, 0.0, {"d1": 14.0, "LLaDA": 14.0, "Fast-dLLM threshold": 40.0})
    results += steps(64, 256, 512, 0.9, {"d1": 40.0, "LLaDA": 75.0})
    results += steps(1, 64, 512, 0.0, {"LLaDA": None})
    results += steps(8, 256, 32_768, 0.0, {"LLaDA": None})
    if args.large:
        results += steps(8, 256, 126_464, 0.0, {"d1": 20.0, "Fast-dLLM threshold": 75.0})
        results.append(whole_step())
    Path(args.out).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
