"""Slow, obvious twins of the published designs, in the form of `oracles.designs`, and the targets of all."""

import itertools
import math
from fractions import Fraction

import numpy as np
from numpy.polynomial import Polynomial

from tests.oracles.designs import Law, Pass, Policy, averaged, flat, level, mean_at, product, scaled, subsets


def mean_field(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the one outcome: everything masked, weight 1."""
    return [(1.0, (flat(frozenset(range(n)), Fraction(1)),))]


def quadrature(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of fixed counts at Gauss-Legendre nodes with uniform masks."""
    choices = []
    for node, weight in nodes(num_mc):
        x = min(max(math.floor(n * node + 0.5), 1), n)
        count = level(plan, Fraction(x))
        masks = subsets(list(range(n)), count)
        choices.append([(1 / len(masks), (mask, dict.fromkeys(mask, n * weight / count))) for mask in masks])
    return product(choices)


def nodes(num_mc: int, low: float = 0.0, high: float = 1.0) -> list[tuple[float, float]]:
    """Return the Gauss-Legendre rule on (low, high) with weights that sum to 1."""
    x, w = np.polynomial.legendre.leggauss(num_mc)
    return [(low + (high - low) * (a + 1) / 2, b / 2) for a, b in zip(x.tolist(), w.tolist(), strict=True)]


def coupled(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of ESPO's pairs: l ~ U{0..n}, weights (n+1)/(2l) and (n+1)/(2(n-l))."""
    everything = frozenset(range(n))
    law: Law = []
    for count in range(n + 1):
        masks = subsets(list(range(n)), count)
        for mask in masks:
            passes = tuple(
                flat(part, Fraction(n + 1, 2 * len(part))) if part else (part, {}) for part in (mask, everything - mask)
            )
            law.append((1 / ((n + 1) * len(masks)), passes))
    return averaged(law, num_mc // 2)


def unigrpo(n: int, plan: list[int], num_mc: int, iteration: int, num_iterations: int) -> Law:
    """Return the law at one inner iteration: ratios from a random first time up to 1, mean over the mask."""
    steps = len(plan)
    single = []
    for first in range(1, steps + 1):
        share = Fraction(iteration, num_iterations - 1) if num_iterations > 1 else Fraction(0)
        time = math.floor(share * (steps - first) + first)
        count = math.ceil(Fraction(n * time, steps))
        masks = subsets(list(range(n)), count)
        single += [(1 / (steps * len(masks)), flat(mask, Fraction(1, num_mc * count))) for mask in masks]
    return product([single] * num_mc)


def stp_paper(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of counts U{1..n} whose masks have weight 1 / (K n)."""
    single = []
    for count in range(1, n + 1):
        masks = subsets(list(range(n)), count)
        single += [(1 / (n * len(masks)), flat(mask, Fraction(1, num_mc * n))) for mask in masks]
    return product([single] * num_mc)


def trajectory(n: int, plan: list[int], num_mc: int, order: list[int]) -> Law:
    """Return the law of the realised states, or of num_mc of them chosen in proportion to their tokens."""
    states: list[Pass] = []
    for count, after in itertools.pairwise([*plan, 0]):
        states.append((frozenset(order[n - count :]), dict.fromkeys(order[n - count : n - after], 1.0)))
    if num_mc == 0 or num_mc >= len(states):
        return [(1.0, tuple(states))]
    sizes = {s: len(weight) for s, (_, weight) in enumerate(states)}
    certain: set[int] = set()
    while more := [s for s in sizes if s not in certain and inclusion(sizes, certain, num_mc, s) >= 1]:
        certain |= set(more)
    rest = [s for s in sizes if s not in certain]
    shares = [inclusion(sizes, certain, num_mc, s) for s in rest]
    edges = list(itertools.accumulate(shares, initial=Fraction(0)))
    inside: list[Fraction] = [edge - math.floor(edge) for edge in edges]
    cuts = sorted({Fraction(0), Fraction(1), *inside})
    law: Law = []
    for low, high in itertools.pairwise(cuts):
        u = (low + high) / 2
        # a step is hit when one of the points u, u + 1, ... falls into its share of the line
        hit = {s for s, start, share in zip(rest, edges, shares, strict=False) if (u - start) % 1 < share}
        passes = tuple(
            (
                mask,
                {i: w / float(min(Fraction(1), inclusion(sizes, certain, num_mc, s))) for i, w in weight.items()},
            )
            for s, (mask, weight) in enumerate(states)
            if s in certain or s in hit
        )
        law.append((float(high - low), passes))
    return law


def inclusion(sizes: dict[int, int], certain: set[int], num_mc: int, step: int) -> Fraction:
    """Return the probability of a step when the certain ones have taken their passes (1 for those)."""
    if step in certain:
        return Fraction(1)
    left = num_mc - len(certain)
    return Fraction(left * sizes[step], sum(size for s, size in sizes.items() if s not in certain))


def autoregressive(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the one outcome: left-to-right states."""
    return [(1.0, tuple((frozenset(range(i, n)), {i: 1.0}) for i in range(n)))]


def block_random(n: int, plan: list[int], num_mc: int, block_length: int) -> Law:
    """Return the law of SPG's masks: a block without replacement, part of it masked, all later ones too."""
    blocks = [list(range(a, min(a + block_length, n))) for a in range(0, n, block_length)]
    law: Law = []
    orders = list(itertools.permutations(blocks))
    for order in orders:
        choices = []
        for k in range(num_mc):
            block = order[k % len(order)]
            later = frozenset(range(block[-1] + 1, n))
            choice = []
            for count in range(1, len(block) + 1):
                parts = subsets(block, count)
                for part in parts:
                    mask = part | later
                    weight = Fraction(1, num_mc * len(mask))
                    choice.append((1 / (len(block) * len(parts)), flat(mask, weight)))
            choices.append(choice)
        law += [(p / len(orders), passes) for p, passes in product(choices)]
    return law


# --- continuous ratios: the mean over t is an integral of polynomials, done exactly ---


def bernoulli_mean(n: int, policy: Policy, low: float = 0.0, high: float = 1.0) -> float:
    """Return E of sum_{i in M} f_i(M) / t: t ~ U(low, high), each position masked with probability t."""
    total = 0.0
    for count in range(1, n + 1):
        density = math.comb(n, count) * Polynomial([0, 1]) ** (count - 1) * Polynomial([1, -1]) ** (n - count)
        antiderivative = (density * count).integ()
        total += (antiderivative(high) - antiderivative(low)) / (high - low) * mean_at(n, count, policy)
    return float(total)


def coupled_truncated_mean(n: int, policy: Policy, low: float, high: float, num_mc: int) -> float:
    """Return E of coupled-GRPO's estimate: pairs at t and 1 - t, and the full canvas when num_mc is odd."""
    both = bernoulli_mean(n, policy, low, high) + bernoulli_mean(n, policy, 1 - high, 1 - low)
    many = num_mc // 2
    if num_mc % 2 == 0:
        return both / 2
    return (n * mean_at(n, n, policy) + many * both) / (many + 1)


def coupled_truncated_pass(n: int, mask: frozenset[int], ratio: float, share: float) -> tuple[Pass, ...]:
    """Return the two passes of a pair at a given mask and ratio."""
    everything = frozenset(range(n))
    rest = everything - mask
    pair = ((mask, dict.fromkeys(mask, 1 / ratio)), (rest, dict.fromkeys(rest, 1 / (1 - ratio))))
    return scaled(pair, 1 / share)


# --- documented expectations of the biased designs ---


def quadrature_mean(n: int, plan: list[int], num_mc: int, policy: Policy) -> float:
    """Return sum_k n w_k a(l_k)."""
    total = 0.0
    for node, weight in nodes(num_mc):
        x = min(max(math.floor(n * node + 0.5), 1), n)
        total += n * weight * mean_at(n, level(plan, Fraction(x)), policy)
    return total


def stp_paper_mean(n: int, policy: Policy) -> float:
    """Return (1 / n^2) sum_l l a(l)."""
    return sum(count * mean_at(n, count, policy) for count in range(1, n + 1)) / n**2
