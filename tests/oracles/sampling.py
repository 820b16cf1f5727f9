"""The sampling law in double precision, one candidate at a time."""

import math
from collections.abc import Sequence

import numpy as np


def law(
    logits: Sequence[float], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    """Return the probabilities of logits / temperature, cut to the top k, then to the smallest set of mass top_p.

    What then has less than `min_p` of the largest probability is cut too (arXiv 2407.01082). Tokens that tie with the
    k-th stay. Temperature 0 puts everything on the first of the largest.
    """
    if temperature == 0:
        return [float(i == int(np.argmax(logits))) for i in range(len(logits))]
    scaled = [x / temperature for x in logits]
    if 0 < top_k < len(scaled):
        kth = sorted(scaled, reverse=True)[top_k - 1]
        scaled = [x if x >= kth else -math.inf for x in scaled]
    if top_p < 1:
        before, kept = 0.0, set()
        probability = softmax(scaled)
        for i in sorted(range(len(scaled)), key=lambda i: (-probability[i], i)):
            if before >= top_p:
                break
            kept.add(i)
            before += probability[i]
        scaled = [x if i in kept else -math.inf for i, x in enumerate(scaled)]
    probability = softmax(scaled)
    return softmax(
        [x if p >= min_p * max(probability) else -math.inf for x, p in zip(scaled, probability, strict=True)]
    )


def softmax(logits: Sequence[float]) -> list[float]:
    """Return exp(x - max) / sum."""
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def draw(probability: Sequence[float], uniform: float) -> int:
    """Return the token whose slice of the unit interval, in order of ids, holds the uniform."""
    edge = 0.0
    for token, p in enumerate(probability):
        edge += p
        if p > 0 and uniform <= edge:
            return token
    return max(i for i, p in enumerate(probability) if p > 0)


def near_an_edge(probability: Sequence[float], uniform: float, width: float = 1e-5) -> bool:
    """Return whether single precision may see the uniform in the neighbouring slice."""
    return bool((np.abs(np.cumsum(probability) - uniform) < width).any())


def entropy(probability: Sequence[float]) -> float:
    """Return - sum p log p in nats."""
    return -sum(p * math.log(p) for p in probability if p > 0)


def chi_square(counts: Sequence[int], probability: Sequence[float]) -> float:
    """Return the statistic over the tokens of positive probability."""
    total = sum(counts)
    return sum((c - total * p) ** 2 / (total * p) for c, p in zip(counts, probability, strict=True) if p > 0)
