"""Priors as loops over rows and positions, from their description."""

from collections import Counter
from collections.abc import Iterable, Sequence

FREE = -1


def frequency(
    rollouts: Iterable[tuple[Sequence[int], Sequence[int]]], length: int, share: float, minimum: int
) -> list[int]:
    """Return the agreed token of each position, or -1, from the (ids, unmask_step) of earlier rollouts of a prompt."""
    drawn = [Counter[int]() for _ in range(length)]
    for ids, steps in rollouts:
        for position in range(length):
            if steps[position] >= 0:  # drawn by the policy, not fixed
                drawn[position][ids[position]] += 1
    agreed = []
    for counter in drawn:
        total = sum(counter.values())
        best = min((token for token, n in counter.items() if n == max(counter.values())), default=FREE)
        agreed.append(best if total >= minimum and counter[best] >= share * total - 1e-9 else FREE)
    return agreed


def compose(hard: Sequence[Sequence[Sequence[int]]], soft: Sequence[Sequence[Sequence[int]]]) -> list[list[int]] | None:
    """Return the union of hard priors [R, L], then what soft ones add where nothing is fixed; None on a conflict."""
    rows, length = len((*hard, *soft)[0]), len((*hard, *soft)[0][0])
    out = [[FREE] * length for _ in range(rows)]
    for prior, certain in [*((p, True) for p in hard), *((p, False) for p in soft)]:
        for row in range(rows):
            for position in range(length):
                token, there = prior[row][position], out[row][position]
                if token == FREE:
                    continue
                if there == FREE:
                    out[row][position] = token
                elif there != token and certain:
                    return None
    return out


def quantile_budget(lengths: Sequence[int], share: float) -> int:
    """Return the smallest length that at least a share of the completions does not exceed."""
    return next(n for n in sorted(lengths) if sum(x <= n for x in lengths) >= share * len(lengths) - 1e-9)
