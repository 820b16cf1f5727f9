"""Slow, obvious twins of the designs that score states of the rollout, in the form of `oracles.designs`.

Every outcome is found from the offset u by cutting (0, 1) where a point crosses a state, with exact fractions. `order`
lists positions as they were revealed; `mass` has one number per position.
"""

import itertools
from collections.abc import Sequence
from fractions import Fraction

from tests.oracles.designs import Law, Pass

Choice = list[tuple[Fraction, frozenset[int]]]


def blocks(plan: Sequence[int], order: Sequence[int]) -> list[list[int]]:
    """Return the positions that each step revealed."""
    n = plan[0]
    return [list(order[n - count : n - after]) for count, after in zip(plan, [*plan[1:], 0], strict=True)]


def masked_at(step: int, revealed: list[list[int]]) -> list[int]:
    """Return the positions that were masked before a step."""
    return [i for block in revealed[step:] for i in block]


def choices(mass: dict[int, Fraction], take: int) -> tuple[Choice, dict[int, Fraction]]:
    """Return the law of `take` keys drawn systematically in proportion to `mass`, and each key's probability."""
    certain: set[int] = set()
    while True:
        others = {s: m for s, m in mass.items() if s not in certain}
        left = take - len(certain)
        total = sum(others.values())
        new = {s for s, m in others.items() if left and m * left >= total}
        if not new:
            break
        certain |= new
    probability = (
        {s: Fraction(1) if s in certain else m * left / total for s, m in mass.items()}
        if left
        else {s: Fraction(int(s in certain)) for s in mass}
    )
    if not left:
        return [(Fraction(1), frozenset(certain))], probability
    ends: dict[int, Fraction] = {}
    end = Fraction(0)
    for s in others:
        end += probability[s]
        ends[s] = end
    cuts = sorted({Fraction(0), Fraction(1), *(end % 1 for end in ends.values())})
    law: Choice = []
    for low, high in itertools.pairwise(cuts):
        points = [(low + high) / 2 + j for j in range(left)]
        found = {s for s, end in ends.items() if any(end - probability[s] < point <= end for point in points)}
        law.append((high - low, frozenset(certain | found)))
    return law, probability


def masses(revealed: list[list[int]], mass: Sequence[float] | None) -> list[Fraction]:
    """Return the mass of every state."""
    return [sum((Fraction(1) if mass is None else Fraction(mass[i]) for i in block), Fraction(0)) for block in revealed]


def step_merge(plan: list[int], order: Sequence[int], num_mc: int) -> Law:
    """Return the one outcome: K even stretches of steps, what each reveals scored at the state before it."""
    revealed, count = blocks(plan, order), min(num_mc, len(plan))
    cuts = [k * len(plan) // count for k in range(count + 1)]
    passes = tuple(
        (frozenset(masked_at(first, revealed)), {i: 1.0 for block in revealed[first:after] for i in block})
        for first, after in itertools.pairwise(cuts)
    )
    return [(1.0, passes)]


def decision(plan: list[int], order: Sequence[int], num_mc: int, mass: Sequence[float] | None = None) -> Law:
    """Return the law of K states by mass, revealed tokens weighing one over the state's probability."""
    revealed = blocks(plan, order)
    law, probability = choices(dict(enumerate(masses(revealed, mass))), min(num_mc or len(plan), len(plan)))
    return [
        (
            float(p),
            tuple(
                (frozenset(masked_at(s, revealed)), {i: float(1 / probability[s]) for i in revealed[s]})
                for s in sorted(states)
            ),
        )
        for p, states in law
    ]


def top_states(plan: list[int], order: Sequence[int], num_mc: int, mass: Sequence[float] | None = None) -> Law:
    """Return the one outcome: the K states of the largest mass, the earlier of equals, each a mean over its tokens."""
    revealed, steps = blocks(plan, order), len(plan)
    total = masses(revealed, mass)
    taken = sorted(range(steps), key=lambda s: (-total[s], s))[: num_mc or steps]
    scale = steps / plan[0] / len(taken)  # one over the tokens of a step, over the states taken
    passes = tuple(
        (frozenset(masked_at(s, revealed)), {i: scale / len(revealed[s]) for i in revealed[s]}) for s in sorted(taken)
    )
    return [(1.0, passes)]


def state(
    plan: list[int],
    order: Sequence[int],
    num_mc: int,
    mass: Sequence[float] | None = None,
    least: float = 0.0,
    divided: bool = False,
    canvas: bool = False,
) -> Law:
    """Return the law of `state`, or with `canvas` of `canvas`: the empty canvas first, then K - 1 of the others."""
    n, revealed = plan[0], blocks(plan, order)
    upper = [s for s, count in enumerate(plan) if count >= least * n - 1e-9]
    total = masses(revealed, mass)
    drawn = upper[1:] if canvas else upper
    take = min(num_mc - 1, len(drawn)) if canvas else min(num_mc or len(drawn), len(drawn))
    part = Fraction(take, take + 1) if canvas else Fraction(1)
    weigh = {s: total[s] for s in drawn} if take else {}
    share = {s: part * m / sum(weigh.values()) for s, m in weigh.items()}
    law, probability = choices(weigh, take) if take else ([(Fraction(1), frozenset[int]())], {})
    if canvas:
        share[0], probability[0] = 1 - part, Fraction(1)
        law = [(p, states | {0}) for p, states in law]

    def expected(i: int) -> Fraction:
        return sum((p / plan[s] for s, p in share.items() if i in masked_at(s, revealed)), Fraction(0))

    def one(s: int) -> Pass:
        weight = share[s] / probability[s] / plan[s]
        tokens = masked_at(s, revealed)
        return frozenset(tokens), {i: float(weight / (n * expected(i)) if divided else weight) for i in tokens}

    return [(float(p), tuple(one(s) for s in sorted(states))) for p, states in law]
