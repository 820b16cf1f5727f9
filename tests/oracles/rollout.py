"""A rollout one row at a time: no slots, no batches, no shared forwards, no caches."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stp_rs.types import StopReason
from tests.oracles.schedule import Options, block_steps, blocks, quota, spatial_reveals

SAMPLE, ORDER, PRIOR_LANE, KEY = 0, 1, 3, 6
PLAN, TEMPORAL, MAX_NFE = StopReason.PLAN, StopReason.TEMPORAL, StopReason.MAX_NFE
NOTHING = StopReason.PRIOR

Scores = Sequence[float]
"""token, logprob, top1, top2, entropy, sampled, argmax of one candidate."""
Numbers = Callable[[Sequence[int], int, float], Scores]
"""(canvas, index in the canvas, uniform) -> scores: stands for the model and the reduction of its logits."""


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> list[int]:
    """Return one Philox4x32-10 block."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def row_key(seed: int, uid: int) -> tuple[int, int]:
    """Return the key of a row's generator."""
    low = 0xFFFFFFFF
    block = philox((seed & low, seed >> 32), (uid & low, uid >> 32, KEY, 0))
    return block[0], block[1]


def uniform(seed: int, uid: int, lane: int, step: int, position: int) -> float:
    """Return the uniform of (lane, step, position) of a row."""
    bits = philox(row_key(seed, uid), (position, step, lane, 0))[0]
    return ((bits >> 9) + 0.5) / 2**23


@dataclass
class Trajectory:
    """What a decoded row is."""

    token_ids: list[int]
    unmask_step: list[int]
    logprob: list[float]
    nfe: int = 0
    stop: int = NOTHING


def decode(
    uid: int,
    prompt: Sequence[int],
    prior: Mapping[int, int],
    length: int,
    options: Options,
    numbers: Numbers,
    *,
    seed: int,
    mask_token_id: int,
) -> Trajectory:
    """Return the trajectory of one row."""
    out = Trajectory([prior.get(p, mask_token_id) for p in range(length)], [-1] * length, [0.0] * length)
    masked = [p for p in range(length) if p not in prior]
    planned = len(spatial_reveals([int(p in masked) for p in range(length)], options))
    tiles = blocks(length, options.block_length)
    entered = -1
    argmax: dict[int, float] = {}
    stable = 0
    while masked:
        block = next(i for i, tile in enumerate(tiles) if masked[0] in tile)
        here = [p for p in masked if p in tiles[block]]
        if block != entered:
            entered, schedule = block, 0
            n, steps = len(here), block_steps(len(here), len(tiles[block]), length, options.diffusion_steps)
        count = 0
        while count == 0:
            count = quota(options.quota, n, len(here), schedule, steps)
            schedule += 1
        canvas = [*prompt, *out.token_ids]
        scores = {p: numbers(canvas, len(prompt) + p, uniform(seed, uid, SAMPLE, out.nfe, p)) for p in masked}
        random = {p: uniform(seed, uid, ORDER, out.nfe, p) for p in here}
        ranked = ranking(here, scores, random, options.confidence)
        chosen = ranked[: select(options, [scores[p] for p in ranked], count)]
        same = all(argmax.get(p) == scores[p][6] for p in masked)
        stable = stable + 1 if same else 0
        argmax.update({p: scores[p][6] for p in masked})
        state = {"length": length, "filled": length - len(masked) + len(chosen), "step": out.nfe}
        fired = fires(options.temporal, {**state, "planned": planned, "stable": stable}, [scores[p] for p in masked])
        if fired or out.nfe + 1 == options.max_nfe:
            out.stop = PLAN if len(chosen) == len(masked) else TEMPORAL if fired else MAX_NFE
            chosen = masked
        for p in chosen:
            out.token_ids[p], out.unmask_step[p], out.logprob[p] = int(scores[p][0]), out.nfe, scores[p][1]
        masked = [p for p in masked if p not in chosen]
        out.stop = out.stop if out.stop != NOTHING or masked else PLAN
        out.nfe += 1
    return out


def confidence(kind: str, score: Scores, position: int, random: float) -> float:
    """Return what ranks a candidate, in f32 as the device sends it."""
    _, logprob, top1, top2, entropy, sampled, _ = (np.float32(x) for x in score)
    return float(
        {
            "prob": top1,
            "sampled_prob": sampled,
            "drawn_prob": logprob,
            "margin": np.exp(top1) - np.exp(top2),
            "entropy": -entropy,
            "random": random,
            "gumbel": top1 - np.log(-np.log(np.float32(random))),
            "leftmost": -position,
        }[kind]
    )


def ranking(
    candidates: Sequence[int], scores: Mapping[int, Scores], random: Mapping[int, float], kind: str
) -> list[int]:
    """Return candidates from the first to the last to be revealed: ties by position, NaN last."""
    value = {p: confidence(kind, scores[p], p, random[p]) for p in candidates}
    return sorted(candidates, key=lambda p: (math.isnan(value[p]), -value[p] if value[p] == value[p] else 0, p))


def select(options: Options, ranked: Sequence[Scores], count: int) -> int:
    """Return how many of the ranked candidates a step takes: at least one."""
    rule, *text = options.selection.split(":")
    numbers = [float(x) for x in text]
    column = {"prob": 2, "sampled_prob": 5, "drawn_prob": 1}.get(options.confidence, 2)
    probability = [math.exp(s[column]) for s in ranked]
    if rule == "top_k":
        taken = count
    elif rule == "threshold":
        taken = sum(p >= numbers[0] for p in probability)
        if len(numbers) > 1 and numbers[1]:
            taken = min(taken, int(numbers[1]))
    elif rule == "factor":
        taken = 0
        while taken < len(ranked) and probability[taken] >= 1 - numbers[0] / (taken + 2):
            taken += 1
    else:  # entropy_bound
        taken = sum(sum(s[4] for s in ranked[:i]) <= numbers[0] for i in range(len(ranked)))
    return min(max(taken, 1), len(ranked))


def fires(temporal: str, state: Mapping[str, int], masked: Sequence[Scores]) -> bool:
    """Return whether a temporal rule commits everything that is masked."""
    rule, *text = temporal.split(":")
    numbers = [float(x) for x in text]
    if rule in ("none", "fill_ratio", "steps"):
        filled = rule == "fill_ratio" and state["filled"] >= numbers[0] * state["length"] - 1e-4
        return filled or (rule == "steps" and state["step"] + 1 >= numbers[0] * state["planned"] - 1e-4)
    if rule == "confidence":
        return all(s[2] >= math.log(numbers[0]) for s in masked)
    if rule == "margin":
        high, low = numbers
        threshold = high + (low - high) * min(1.0, state["step"] / max(1, state["planned"]))
        return sum(min(s[2] - s[3], 1e6) for s in masked) >= len(masked) * threshold
    if rule == "entropy":
        return sum(s[4] for s in masked) <= numbers[0]
    return state["stable"] >= numbers[0]


# --- priors ---


class Stream:
    """Sequential 32-bit draws of one (row, lane, step 0)."""

    def __init__(self, seed: int, uid: int, lane: int) -> None:
        self.key, self.lane, self.index = row_key(seed, uid), lane, 0
        self.words: list[int] = []

    def below(self, bound: int) -> int:
        """Return an integer in 0..bound, each equally likely: draws that would favour some are thrown away."""
        while True:
            if not self.words:
                self.words = philox(self.key, (self.index, 0, self.lane, 0))
                self.index += 1
            product = self.words.pop(0) * bound
            if product % 2**32 >= 2**32 % bound:
                return product >> 32

    def shuffle(self, items: list[Any]) -> None:
        """Shuffle in place, from the last place down."""
        for i in range(len(items) - 1, 0, -1):
            j = self.below(i + 1)
            items[i], items[j] = items[j], items[i]


def choose_anchors(
    selector: str, share: float, confidence: Sequence[float], eligible: Sequence[int], stream: Stream
) -> list[int]:
    """Return 1 at the positions that a selector keeps of the eligible ones."""
    order = [i for i, e in enumerate(eligible) if e]
    count = min(len(order), max(math.floor(share * len(order) + 0.5), int(share > 0)))
    if selector == "random":
        stream.shuffle(order)
    elif selector == "span":
        start = stream.below(len(order) - count + 1)
        order = order[start:] + order[:start]
    elif selector == "top_confidence":
        order.sort(
            key=lambda i: (math.isnan(confidence[i]), -confidence[i] if confidence[i] == confidence[i] else 0, i)
        )
    return [int(i in order[:count]) for i in range(len(eligible))]


def compose(dense: Sequence[Any]) -> Any:
    """Return the union of dense priors [R, L] (-1 is free), or None where two differ on a position."""
    out = np.full_like(dense[0], -1)
    for prior in dense:
        if ((out >= 0) & (prior >= 0) & (out != prior)).any():
            return None
        out = np.where(prior >= 0, prior, out)
    return out
