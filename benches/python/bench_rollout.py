"""Whole rollouts: what they record, what rows that leave save, and the share of everything but the model."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM

import stp_rs
from benches.python.measure import MASK, NearFree, Row, best, clock, line, prompts, submitted
from stp_rs.config.sections import PolicyConfig
from stp_rs.models import character_tokenizer, tiny_policy
from stp_rs.rollout.loop import Cohort


def record() -> Row:
    """Return the row for the step map: written at commit by us, rebuilt from stored canvases by others."""
    rows, length, count = 64, 256, 128
    order = np.random.default_rng(0).permuted(np.tile(np.arange(length) // 2, (rows, 1)), axis=1)
    canvases = np.where(order[None] < np.arange(count + 1)[:, None, None], 7, MASK)
    unmasking = stp_rs.Unmasking(count)
    model = NearFree(rows, length, 16)
    scheduler = submitted(unmasking, rows, 0, length)
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
    unmaskings = [stp_rs.Unmasking(int(n)) for n in lengths]
    model = NearFree(slots, length, 64)
    start = clock()
    rollout = stp_rs.generate(model, prompts(rows, 0), unmaskings, completion_length=length, slots=slots)
    took = (clock() - start) * 1e6
    lockstep = sum(slots * int(rollout.nfe[i : i + slots].max()) for i in range(0, rows, slots))
    print(f"lockstep {rollout.nfe.sum() / lockstep:.3f}")
    forwards = rollout.stats["forwards"]
    return line("row forwards, ragged stops", f"B={slots} rows={rows} CV=0.3 (per row forward)", took / forwards,
                "lockstep batches", took / forwards * lockstep / forwards,
                target=0.95 * lockstep / forwards)  # fmt: skip


def host_share(name: str, shape: str, model: Any, unmasking: stp_rs.Unmasking, length: int, *,
               rows: int, rounds: int, most: float) -> Row:  # fmt: skip
    """Return the row for everything but the model (hidden states and head) in a rollout."""
    inside = [0.0]

    def timed(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: Any) -> torch.Tensor:
            start = clock()
            result = function(*args)
            inside[0] += clock() - start
            return result

        return call

    model.hidden, model.head = timed(model.hidden), timed(model.head)
    batch = prompts(rows // 8, 16).repeat(8)
    found = (float("inf"), 0.0, 1)  # seconds outside the model, seconds in all, calls
    for _ in range(rounds):
        inside[0], start = 0.0, clock()
        rollout = stp_rs.generate(model, batch, unmasking, completion_length=length)
        took = clock() - start
        found = min(found, (took - inside[0], took, rollout.stats["calls"]))
    outside, took, calls = found
    print(f"all but the model: {outside / took:.4f} of a rollout of {took * 1e3:.1f} ms, {calls} calls")
    return line(f"all but the model, {name}", shape, outside / calls * 1e6, "whole rollout",
                took / calls * 1e6, target=1 / most)  # fmt: skip


def tiny() -> Row:
    """Return the row for the policy and the unmasking of the quickstart."""
    tokenizer = character_tokenizer("0123456789.$")
    module = tiny_policy(PolicyConfig(), vocab_size=len(tokenizer), max_length=40, seed=0)
    unmasking = stp_rs.Unmasking(18, temporal="steps:0.6")
    model = stp_rs.as_diffusion_model(module, tokenizer)
    return host_share("tiny policy", "B=32 L=18, per call", model, unmasking, 18, rows=32, rounds=8, most=0.1)


def policy_100m() -> Row:
    """Return the row for a randomly initialised BERT of base size, 110 million parameters in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = BertForMaskedLM(BertConfig())
    tokenizer = SimpleNamespace(mask_token_id=MASK, pad_token_id=0, eos_token_id=2)
    model = stp_rs.as_diffusion_model(module, tokenizer)
    unmasking = stp_rs.Unmasking(16, block_length=32, temporal="steps:0.5")
    count = sum(p.numel() for p in module.parameters())
    shape = f"B=8 L=64 V=30522, {count / 1e6:.0f}M parameters, per call"
    return host_share("BERT base", shape, model, unmasking, 64, rows=8, rounds=2, most=0.02)
