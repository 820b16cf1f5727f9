"""Runs added up: curves at equal rollouts and at equal compute, paired differences, and what a score costs.

A record is a run (`runner.Record`); a curve is a list of points, whose x grows. Between two points it is linear.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stp_rs.eval.evaluate import bootstrap_interval

Floats = NDArray[np.float64]
Record = Mapping[str, Any]

AXES = ("rollouts", "forward_equivalents", "cpu_seconds", "gpu_seconds")
"""What a curve can be drawn against. forward_equivalents: canvases, with a gradient counted thrice; the same for every
run of a seed. Seconds leave evaluation out."""
SCORES = ("solved_free", "solved_prior")
GRID = 51
"""Points of an aggregated curve."""
_T_975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's 0.975 quantiles for 1 to 30 degrees of freedom."""


def column(record: Record, name: str) -> Floats:
    """Return a column of a run's curve."""
    return np.array([point[name] for point in record["curve"]], dtype=np.float64)


def by_variant(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the runs of each variant by seed, variants in the order of their first run."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["variant"], []).append(record)
    return {name: sorted(runs, key=lambda r: int(r["seed"])) for name, runs in found.items()}


def shared_end(records: Sequence[Record], axis: str) -> float:
    """Return the largest x that every run reached."""
    return float(min(column(record, axis)[-1] for record in records))


def at(record: Record, axis: str, grid: Floats, score: str = "solved_free") -> Floats:
    """Return a run's score at each x of `grid`, linear between its evaluations."""
    return np.interp(grid, column(record, axis), column(record, score))


def t_quantile(freedom: int) -> float:
    """Return Student's 0.975 quantile."""
    # beyond the table: the first term of its expansion in 1 / degrees of freedom
    return _T_975[freedom - 1] if freedom <= len(_T_975) else 1.960 + (1.960**3 + 1.960) / (4 * freedom)


def t_interval(values: Sequence[float] | Floats) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by Student's t; None for one value, which says nothing about others."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n < 2:
        return None
    half = t_quantile(n - 1) * float(array.std(ddof=1)) / float(np.sqrt(n))
    return float(array.mean()) - half, float(array.mean()) + half


def t_test(values: Sequence[float] | Floats) -> float | None:
    """Return Student's two-sided p of a mean of 0; None for fewer than two values or values that are all the same.

    With v degrees of freedom and t = sqrt(v) tan(a), the density of a is cos(a)^(v - 1) up to a constant.
    """
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n < 2 or array.std() == 0:
        return None
    t = float(abs(array.mean())) / (float(array.std(ddof=1)) / float(np.sqrt(n)))
    angle = np.linspace(0.0, np.pi / 2, 20_001)
    middle = (angle[1:] + angle[:-1]) / 2
    density = np.cos(middle) ** (n - 2)
    return float(density[middle > np.arctan(t / np.sqrt(n - 1))].sum() / density.sum())


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's adjusted p-values: reject where one is below the level, and the family errs at most so often."""
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


def collapsed(record: Record) -> bool:
    """Return whether a run ended below where it started, or below half of its own best, by validation."""
    scores = column(record, "solved_free")
    return bool(scores[-1] < scores[0] or scores[-1] < scores.max() / 2)


def summary(values: Sequence[float] | Floats, *, share: bool = True) -> dict[str, Any]:
    """Return {mean, low, high} of values of seeds, the interval Student's; of shares it is cut to [0, 1]."""
    interval = t_interval(values)
    mean = float(np.mean(values))
    if interval is None:
        return {"mean": mean, "low": None, "high": None}
    low, high = np.clip(interval, 0.0, 1.0) if share else interval
    return {"mean": mean, "low": float(low), "high": float(high)}


def band(runs: Sequence[Record], axis: str, grid: Floats, score: str = "solved_free") -> dict[str, list[Any]]:
    """Return {mean, low, high} of a variant's runs at each x of `grid`; see `summary`."""
    values = np.stack([at(run, axis, grid, score) for run in runs])
    columns = [summary(values[:, i]) for i in range(len(grid))]
    return {name: [entry[name] for entry in columns] for name in ("mean", "low", "high")}


def paired(runs: Sequence[Record], base: Sequence[Record], read: Any) -> dict[str, Any] | None:
    """Return the mean difference `runs` - `base` over the seeds that both have, with two 95 % intervals.

    `bootstrap` resamples the seeds' differences (percentiles): with few seeds it is too narrow: it covers
    76 % at three, 85 % at five, 93 % at twenty. `t` is Student's, right for normal differences at any number of seeds.

    Args:
        runs: runs of a variant.
        base: runs of the baseline.
        read: gives a run's number.
    """
    other = {int(run["seed"]): read(run) for run in base}
    differences = np.array([read(run) - other[int(run["seed"])] for run in runs if int(run["seed"]) in other])
    if len(differences) == 0:
        return None
    interval = t_interval(differences)
    several = len(differences) > 1
    return {
        "seeds": len(differences),
        "difference": float(differences.mean()),
        "bootstrap": bootstrap_interval(differences) if several else None,
        "t": list(interval) if interval else None,
    }


def first_reach(grid: Floats, mean: Floats, target: float) -> float | None:
    """Return the first x at which a curve is at or above `target`, None where it never is."""
    above = np.flatnonzero(mean >= target - 1e-9)  # the reference reaches its own end, whatever the order of a sum
    if len(above) == 0:
        return None
    i = int(above[0])
    if i == 0 or mean[i] == mean[i - 1]:
        return float(grid[i])
    share = (target - mean[i - 1]) / (mean[i] - mean[i - 1])
    return float(grid[i - 1] + share * (grid[i] - grid[i - 1]))


def axes_of(records: Sequence[Record]) -> list[str]:
    """Return the axes on which every run moved."""
    return [axis for axis in AXES if records and shared_end(records, axis) > 0]


def clock_of(records: Sequence[Record]) -> str:
    """Return the clock of equal compute: GPU seconds where every run has them, else CPU seconds."""
    return "gpu_seconds" if records and shared_end(records, "gpu_seconds") > 0 else "cpu_seconds"


def aggregate(records: Sequence[Record], baseline: str = "", reference: str = "") -> dict[str, Any]:
    """Return curves and comparisons of one task's runs.

    Args:
        records: runs of one task.
        baseline: the variant that differences are taken from; by default, and where it has no run, the first.
        reference: the variant whose final validation score the others are timed to; by default the baseline.
    """
    variants = by_variant(records)
    baseline = baseline if baseline in variants else next(iter(variants))
    reference = reference if reference in variants else baseline
    target = float(np.mean([column(run, "solved_free")[-1] for run in variants[reference]]))
    axes = {}
    for axis in axes_of(records):
        grid = np.linspace(0.0, shared_end(records, axis), GRID)
        axes[axis] = {
            "grid": grid.tolist(),
            "curves": {
                name: {score: band(runs, axis, grid, score) for score in SCORES} for name, runs in variants.items()
            },
            "end": {name: _at_end(runs, variants[baseline], axis, float(grid[-1])) for name, runs in variants.items()},
            "to_reach": {name: _cost_of(runs, axis, target) for name, runs in variants.items()},
        }
    return {
        "baseline": baseline,
        "reference": reference,
        "target": target,
        "clock": clock_of(records),
        "axes": axes,
        "interval": "95 %, Student's t over seeds",
    }


def _at_end(runs: Sequence[Record], base: Sequence[Record], axis: str, x: float) -> dict[str, Any]:
    """Return scores at the x that every run reached, and their paired difference from the baseline's."""

    def read(run: Record) -> float:
        return float(at(run, axis, np.array([x]))[0])

    return {**summary([read(run) for run in runs]), "versus": paired(runs, base, read)}


def _cost_of(runs: Sequence[Record], axis: str, target: float) -> float | None:
    """Return the x at which the mean curve of a variant first reaches `target`; a run that ended keeps its score."""
    grid = np.linspace(0.0, max(shared_end([run], axis) for run in runs), 10 * GRID)
    return first_reach(grid, np.mean([at(run, axis, grid) for run in runs], axis=0), target)
