"""Counts of how often the hypotheses of the variance statements hold for a policy's own completions.

Exact: only rows of at most 12 free tokens are looked at, with all their masks.
"""

from dataclasses import dataclass

from stp_rs._core import permutation
from stp_rs.eval.variance import PrunedBatch, Setting
from stp_rs.objective.masks import MAX_TOKENS
from stp_rs.testing.exact import exact_levels, score_table
from stp_rs.testing.variance import independent_variance, monotone, pruning_statement


@dataclass(frozen=True)
class Checks:
    """Numbers of rows."""

    rows: int
    """Rows that were enumerated."""
    a_falls: int
    """a(l) never rises with l."""
    a_rises: int
    """a(l) never falls with l."""
    v_falls: int
    """v(l) never rises with l."""
    temporal_holds: int
    """The statement's hypotheses hold for the row's temporal pruning of its free tokens."""
    temporal_fell: int
    """The variance of independent counts fell with it."""
    spatial_holds: int
    """The statement's hypotheses hold for fixing a random half of the free tokens."""
    spatial_fell: int
    """The variance of independent counts fell with it."""


def check_statements(setting: Setting, unmerged: PrunedBatch, merged: PrunedBatch) -> Checks:
    """Return how often hypotheses and conclusions hold.

    Args:
        setting: the model and its temperature.
        unmerged: the rollout with space pruned only.
        merged: the same rows with time pruned too.
    """
    found = []
    for row, (plan, pruned) in enumerate(zip(unmerged.plans, merged.plans, strict=True)):
        n = plan[0] if plan else 0
        if not 1 < n <= MAX_TOKENS:
            continue
        table = score_table(setting.model, unmerged.rows, row, temperature=setting.temperature)
        levels = exact_levels(table)
        order = permutation(setting.seed, int(unmerged.rows.uid[row]), n).tolist()
        fewer = exact_levels(table.with_anchors(order[: n // 2]))
        full, half = list(range(n, 0, -1)), list(range(fewer.n, 0, -1))
        before = sum(independent_variance(levels, plan, 1))
        found.append(
            (
                *monotone(levels, plan),
                pruning_statement(levels, plan, levels, pruned).holds,
                sum(independent_variance(levels, pruned, 1)) < before,
                pruning_statement(levels, full, fewer, half).holds,
                sum(independent_variance(fewer, half, 1)) < sum(independent_variance(levels, full, 1)),
            )
        )
    totals = [sum(column) for column in zip(*found, strict=True)] if found else [0] * 7
    return Checks(len(found), *totals)
