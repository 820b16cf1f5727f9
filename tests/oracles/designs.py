"""Slow, obvious twins of the likelihood designs: each law written out as a finite list.

A law is a list of (probability, passes); a pass is (mask, weight), with the mask a frozenset of positions
0..n-1 and the weight a dict of position -> weight. Counts are found from the offset u by cutting (0, 1) at
every u where a count can change, with exact fractions; masks are all subsets. Nothing here knows how the Rust
code draws.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np

Pass = tuple[frozenset[int], dict[int, float]]
Law = list[tuple[float, tuple[Pass, ...]]]
Policy = Callable[[int, frozenset[int]], float]


def level(plan: list[int], x: Fraction) -> int:
    """Return the plan's count at mass coordinate x in (0, n]: mass c_s sits at l_s."""
    return min(count for count in plan if count >= x)


def subsets(items: list[int], size: int) -> list[frozenset[int]]:
    """Return all subsets of a size."""
    return [frozenset(chosen) for chosen in itertools.combinations(items, size)]


def offsets(strata: list[tuple[Fraction, Fraction]]) -> Iterator[tuple[Fraction, list[Fraction]]]:
    """Yield (probability, coordinates) for the pieces of u on which no coordinate crosses an integer."""
    cuts = {Fraction(0), Fraction(1)}
    for low, high in strata:
        for j in range(int(low), int(high) + 2):
            if low < j < high:
                cuts.add((j - low) / (high - low))
    ordered = sorted(cuts)
    for start, end in itertools.pairwise(ordered):
        u = (start + end) / 2
        yield end - start, [low + u * (high - low) for low, high in strata]


def equal_strata(n: int, num_mc: int) -> list[tuple[Fraction, Fraction]]:
    """Return (0, n] cut into num_mc equal pieces, smallest first."""
    return [(Fraction(n * k, num_mc), Fraction(n * (k + 1), num_mc)) for k in range(num_mc)]


def flat(mask: frozenset[int], weight: Fraction) -> Pass:
    """Return a pass that scores all of its mask with one weight."""
    return mask, dict.fromkeys(mask, float(weight))


def uniform_count(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of independent counts with probability c_s / n, uniform masks, weight n / (K l)."""
    single = []
    for x in range(1, n + 1):
        count = level(plan, Fraction(x))
        masks = subsets(list(range(n)), count)
        single += [(1 / (n * len(masks)), flat(mask, Fraction(n, num_mc * count))) for mask in masks]
    return product([single] * num_mc)


def product(choices: list[list[tuple[float, Pass]]]) -> Law:
    """Return the law of independent passes."""
    law: Law = [(1.0, ())]
    for choice in choices:
        law = [(p * q, (*passes, one)) for p, passes in law for q, one in choice]
    return law


def systematic(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of evenly spaced counts with one offset and independent uniform masks."""
    law: Law = []
    for probability, coordinates in offsets(equal_strata(n, num_mc)):
        choices = []
        for x in coordinates:
            count = level(plan, x)
            masks = subsets(list(range(n)), count)
            choices.append([(1 / len(masks), flat(mask, Fraction(n, num_mc * count))) for mask in masks])
        law += [(float(probability) * p, passes) for p, passes in product(choices)]
    return law


def lightest(weight: list[Fraction], count: int) -> list[frozenset[int]]:
    """Return every set of `count` positions with the least weight: all ways to break the ties."""
    edge = sorted(weight)[count - 1]
    below = frozenset(i for i, w in enumerate(weight) if w < edge)
    tied = [i for i, w in enumerate(weight) if w == edge]
    return [below | more for more in subsets(tied, count - len(below))]


def cover(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of masks that take the positions with the least weight so far, smallest count first."""
    law: Law = []
    for probability, coordinates in offsets(equal_strata(n, num_mc)):
        states: list[tuple[float, list[Fraction], tuple[Pass, ...]]] = [(float(probability), [Fraction(0)] * n, ())]
        for x in coordinates:
            count = level(plan, x)
            add = Fraction(n, num_mc * count)
            grown = []
            for p, weight, passes in states:
                masks = lightest(weight, count)
                for mask in masks:
                    heavier = [w + (add if i in mask else 0) for i, w in enumerate(weight)]
                    grown.append((p / len(masks), heavier, (*passes, flat(mask, add))))
            states = grown
        law += [(p, passes) for p, _, passes in states]
    return law


def parted(tied: list[int], take: int, earlier: tuple[Pass, ...]) -> list[tuple[float, frozenset[int]]]:
    """Return the law of `take` of the tied positions, dealt evenly over the sets of earlier passes that mask them.

    The sets stand in a random order along (0, m], m positions in all, and `take` evenly spaced points with one offset
    say how many of each set are taken; which ones is uniform.
    """
    sets: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    for i in tied:
        sets[tuple(i in mask for mask, _ in earlier)].append(i)
    law = []
    for order in itertools.permutations(sets.values()):
        owner = [which for which, items in enumerate(order) for _ in items]
        for probability, points in offsets(equal_strata(len(tied), take)):
            shares = [0] * len(order)
            for point in points:
                shares[owner[int(np.ceil(point)) - 1]] += 1
            ways = list(itertools.product(*(subsets(items, share) for items, share in zip(order, shares, strict=True))))
            each = float(probability) / math.factorial(len(order)) / len(ways)
            law += [(each, frozenset().union(*way)) for way in ways]
    return law


def spread(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of cover with ties dealt evenly over the sets of earlier passes."""
    law: Law = []
    for probability, coordinates in offsets(equal_strata(n, num_mc)):
        states: list[tuple[float, list[Fraction], tuple[Pass, ...]]] = [(float(probability), [Fraction(0)] * n, ())]
        for x in coordinates:
            count = level(plan, x)
            add = Fraction(n, num_mc * count)
            grown = []
            for p, weight, passes in states:
                edge = sorted(weight)[count - 1]
                below = frozenset(i for i, w in enumerate(weight) if w < edge)
                tied = [i for i, w in enumerate(weight) if w == edge]
                for q, more in parted(tied, count - len(below), passes):
                    mask = below | more
                    heavier = [w + (add if i in mask else 0) for i, w in enumerate(weight)]
                    grown.append((p * q, heavier, (*passes, flat(mask, add))))
            states = grown
        law += [(p, passes) for p, _, passes in states]
    return law


def averaged(law: Law, copies: int) -> Law:
    """Return the law of the mean of independent copies."""
    total: Law = [(1.0, ())]
    for _ in range(copies):
        total = [(p * q, (*passes, *scaled(more, copies))) for p, passes in total for q, more in law]
    return total


def scaled(passes: tuple[Pass, ...], by: float) -> tuple[Pass, ...]:
    """Return the passes with all weights divided by `by`."""
    return tuple((mask, {i: w / by for i, w in weight.items()}) for mask, weight in passes)


def pairs(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of num_mc / 2 independent covers of two passes, averaged."""
    return averaged(cover(n, plan, 2), num_mc // 2)


def sink(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of cover with weights fitted to token totals 1 and pass totals n / K, passes last."""
    law: Law = []
    for p, passes in cover(n, plan, num_mc):
        member = np.zeros((num_mc, n))
        for k, (mask, _) in enumerate(passes):
            member[k, list(mask)] = 1
        weight = member * (n / num_mc / member.sum(1, keepdims=True))
        for _ in range(64):
            tokens = weight.sum(0)
            seen = tokens > 0
            off = np.abs(tokens[seen] - 1).max()
            weight[:, seen] /= tokens[seen]
            weight *= n / num_mc / weight.sum(1, keepdims=True)
            if off < 1e-12:
                break
        fitted = tuple((mask, {i: float(weight[k, i]) for i in mask}) for k, (mask, _) in enumerate(passes))
        law.append((p, fitted))
    return law


def balanced(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of a random partition, larger groups first; each mask is a window of the order.

    Raises:
        ValueError: a group does not fit into a mask of its stratum.
    """
    groups = min(num_mc, n)
    sizes = [len(part) for part in np.array_split(np.arange(n), groups)]
    starts = [sum(sizes[:g]) for g in range(groups)]
    strata = [(Fraction(n - s - c), Fraction(n - s)) for s, c in zip(starts, sizes, strict=True)]
    law: Law = []
    orders = list(itertools.permutations(range(n)))
    for probability, coordinates in offsets(strata):
        counts = [level(plan, x) for x in coordinates]
        if any(count < size for count, size in zip(counts, sizes, strict=True)):
            raise ValueError("a group is larger than its mask")
        for order in orders:
            circle = order + order
            passes = tuple(
                (frozenset(circle[start : start + count]), dict.fromkeys(order[start : start + size], 1.0))
                for start, size, count in zip(starts, sizes, counts, strict=True)
            )
            law.append((float(probability) / len(orders), passes))
    return law


def ordered(n: int, plan: list[int], num_mc: int) -> Law:
    """Return the law of one random order revealed along the plan."""
    orders = list(itertools.permutations(range(n)))
    law: Law = []
    for order in orders:
        passes = tuple(
            (frozenset(order[n - count :]), dict.fromkeys(order[n - count : n - after], 1.0))
            for count, after in itertools.pairwise([*plan, 0])
        )
        law.append((1 / len(orders), passes))
    return law


# --- values ---


def estimate(passes: tuple[Pass, ...], policy: Policy) -> float:
    """Return L_hat = sum_k sum_i w_{k,i} f_i(M_k)."""
    return sum(w * policy(i, mask) for mask, weight in passes for i, w in weight.items())


def expectation(law: Law, policy: Policy) -> float:
    """Return E[L_hat]."""
    return sum(p * estimate(passes, policy) for p, passes in law)


def mean_at(n: int, count: int, policy: Policy) -> float:
    """Return a(l): the mean of f_i(M) over uniform masks of size l and their positions."""
    masks = subsets(list(range(n)), count)
    return sum(policy(i, mask) for mask in masks for i in mask) / (len(masks) * count)


def plan_elbo(n: int, plan: list[int], policy: Policy) -> float:
    """Return E(plan) = sum_s c_s a(l_s)."""
    return sum((count - after) * mean_at(n, count, policy) for count, after in itertools.pairwise([*plan, 0]))


def merged(law: Law) -> dict[tuple[tuple[frozenset[int], tuple[tuple[int, float], ...]], ...], float]:
    """Return outcome -> probability, with weights rounded to 1e-6 so that outcomes can be looked up."""
    total: dict[tuple[tuple[frozenset[int], tuple[tuple[int, float], ...]], ...], float] = defaultdict(float)
    for p, passes in law:
        total[key(passes)] += p
    return dict(total)


def key(passes: tuple[Pass, ...]) -> tuple[tuple[frozenset[int], tuple[tuple[int, float], ...]], ...]:
    """Return a hashable form of the passes of a row."""
    return tuple(
        (mask, tuple(sorted((i, round(float(w), 6)) for i, w in weight.items() if w != 0.0))) for mask, weight in passes
    )
