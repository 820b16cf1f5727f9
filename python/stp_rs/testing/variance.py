"""What makes a likelihood estimate noisy, in closed form, and whether pruning must make it less noisy.

An estimate with independent counts from a plan has (law of total variance)

    Var = (n^2 / K) (Var_s[a(l_s)] + E_s[v(l_s)]),   s drawn with probability c_s / n.

Think of the plan as a step function: the point u in (0, 1] meets the smallest count l(u) >= n u. Pruning puts another
count (and with anchors another n, a, v) at every u. Its *statement*: if at all points u, w

    n' |a'(l'(u)) - a'(l'(w))| <= n |a(l(u)) - a(l(w))|   and   n'^2 v'(l'(u)) <= n^2 v(l(u))

then the variance does not rise, because both parts are averages of these terms over u and w; it falls where one of them
is strict. Temporal pruning (counts below l* become l*) satisfies the first wherever a is monotone, in either direction,
and the second wherever v does not rise with l.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stp_rs._core import Design
from stp_rs.objective.masks import reveals
from stp_rs.testing.exact import Levels
from stp_rs.types import Floats

TOLERANCE = 1e-12
"""Differences below this are rounding."""


def merge_tail(counts: Sequence[int], last: int) -> list[int]:
    """Return the plan whose steps after the first count <= `last` are merged into it: temporal pruning."""
    kept = [count for count in counts if count > last]
    return [*kept, *[count for count in counts if count <= last][:1]]


def independent_variance(levels: Levels, counts: Sequence[int], num_mc: int) -> tuple[float, float]:
    """Return (between, within): variance over counts of the mean, and mean over counts of the variance.

    Their sum is the variance of `uniform_count` with K = num_mc passes, in nats squared.
    """
    share = reveals(counts) / levels.n
    a, v = levels.a[list(counts)], levels.v[list(counts)]
    scale = levels.n**2 / num_mc
    return float(scale * (share @ a**2 - (share @ a) ** 2)), float(scale * (share @ v))


def coverage_variance(design: Design, counts: Sequence[int]) -> float | None:
    """Return the variance of a token's total weight (its mean is 1) where a closed form is known, else None.

    `bernoulli` without bounds has none: its 1/t has no second moment.
    """
    n, num_mc = counts[0], design.num_mc
    spread = float((reveals(counts) / np.array(counts)).sum()) - 1.0  # sum_s c_s / l_s - 1
    harmonic = float((1.0 / np.arange(1, n + 1)).sum())
    by_name = {
        "uniform_count": spread / num_mc,
        "systematic": spread / num_mc,
        "coupled": ((n + 1) * harmonic / (2 * n) - 1.0) * 2 / num_mc,
        "stp_paper": (n + 1) * (n - 1) / (4 * n**2 * num_mc),
        **dict.fromkeys(("mean_field", "autoregressive", "balanced", "ordered"), 0.0),
    }
    if design.name == "cover" and num_mc == 1:
        return spread
    return None if not design.unbiased and design.target == "full_elbo" else by_name.get(design.name)


@dataclass(frozen=True)
class Statement:
    """Whether the hypotheses of the pruning statement hold for a policy and a completion."""

    spread: bool
    """The means a at matched points differ no more than before, in nats of the whole estimate."""
    context: bool
    """The variances v at matched points are no larger than before, in nats squared of the whole estimate."""
    strict: bool
    """One of them is smaller somewhere."""

    @property
    def holds(self) -> bool:
        """The variance cannot rise; it falls if `strict`."""
        return self.spread and self.context


def pruning_statement(before: Levels, plan: Sequence[int], after: Levels, pruned_plan: Sequence[int]) -> Statement:
    """Return whether pruning from one plan (and completion) to another satisfies the statement's hypotheses."""
    edges = sorted(_cuts(plan) | _cuts(pruned_plan))
    middle_U = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
    a_U, v_U = _at(before, plan, middle_U)
    pruned_a_U, pruned_v_U = _at(after, pruned_plan, middle_U)
    gap_UU = np.abs(a_U[:, None] - a_U) - np.abs(pruned_a_U[:, None] - pruned_a_U)
    drop_U = v_U - pruned_v_U
    return Statement(
        spread=bool((gap_UU >= -TOLERANCE).all()),
        context=bool((drop_U >= -TOLERANCE).all()),
        strict=bool((gap_UU > TOLERANCE).any() or (drop_U > TOLERANCE).any()),
    )


def monotone(levels: Levels, counts: Sequence[int]) -> tuple[bool, bool, bool]:
    """Return whether, over the plan's counts, a never rises with l, a never falls with l, and v never rises with l.

    The last and one of the others are all that temporal pruning needs, whatever l* is.
    """
    order = sorted(counts)
    step_a, step_v = np.diff(levels.a[order]), np.diff(levels.v[order])
    falls, rises = bool((step_a <= TOLERANCE).all()), bool((step_a >= -TOLERANCE).all())
    return falls, rises, bool((step_v <= TOLERANCE).all())


def _cuts(counts: Sequence[int]) -> set[float]:
    return {0.0, *(count / counts[0] for count in counts)}


def _at(levels: Levels, counts: Sequence[int], point_U: Floats) -> tuple[Floats, Floats]:
    """Return n a(l(u)) and n^2 v(l(u))."""
    ascending = np.array(sorted(counts))
    count_U = ascending[np.searchsorted(ascending / levels.n, point_U)]
    return levels.n * levels.a[count_U], levels.n**2 * levels.v[count_U]


def sampled_coverage(design: Design, counts: Sequence[int], *, iteration: int = 0, draws: int = 2048) -> float:
    """Return the variance of a token's total weight over keyed draws of the masks; no model is run.

    Weights of a mean per token are multiplied by n.
    """
    _, weight_PN, row_P = draw_plan(design, counts, draws, iteration)
    total_SN = np.zeros((draws, counts[0]))
    np.add.at(total_SN, row_P, weight_PN * (counts[0] if design.per_token else 1))
    return float(total_SN.var(0, ddof=1).mean())


def draw_plan(
    design: Design, counts: Sequence[int], draws: int, iteration: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int32]]:
    """Return `draws` keyed draws for n free positions on a plan: mask [P, N], weight [P, N], draw of each pass [P]."""
    n = counts[0]
    eligible = np.ones((draws, n), dtype=np.uint8)
    counts_RT = np.tile(np.array([*counts, 0], dtype=np.int32), (draws, 1))
    steps = np.tile(np.repeat(np.arange(len(counts)), reveals(counts)).astype(np.int32), (draws, 1))
    passes = int(design.passes(eligible, counts_RT).sum())
    mask, row = np.empty((passes, n), dtype=np.uint8), np.empty(passes, dtype=np.int32)
    weight = np.empty((passes, n), dtype=np.float32)
    design.draw(eligible, counts_RT, steps, 0, np.arange(draws, dtype=np.uint64), iteration, mask, weight, row)
    return mask, weight, row
