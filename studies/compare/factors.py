"""What each factor of a factorial is worth: `python -m studies.compare.factors OUT.json OPTION ...` prints a table.

A level's effect is its mean final test score less the mean over levels, by least squares on effect-coded factors, so
that a balanced fraction gives differences of means. Products of factors are left out: what they do is in the error.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stp_rs.errors import ConfigError
from stp_rs.text import show
from studies.compare.curves import t_quantile
from studies.compare.table import Row, grid


@dataclass(frozen=True)
class Effect:
    """A level of a factor."""

    factor: str
    level: Any
    runs: int
    effect: float
    half: float | None
    """Half of the 95 % interval, Student's t; None without degrees of freedom for the error."""


def effects(records: Sequence[Mapping[str, Any]], factors: Sequence[str]) -> list[Effect]:
    """Return the effect of every level of every factor on the final test score of one task's runs.

    Raises:
        ConfigError: a factor that does not vary, or factors that the runs cannot tell apart.
    """
    score_N = np.array([run["test"]["solved_free"] for run in records])
    columns, places = [np.ones(len(records))], []
    for factor in factors:
        found = [run["identity"][factor] for run in records]
        levels = sorted(set(found), key=str)
        if len(levels) < 2:
            raise ConfigError(f"{factor}: got {levels} in all runs, needs two levels or more")
        last = np.array([value == levels[-1] for value in found], dtype=float)
        own = [np.array([value == level for value in found], dtype=float) - last for level in levels[:-1]]
        places.append((factor, levels, found, len(columns)))
        columns += own
    design_NC = np.stack(columns, axis=1)
    free = len(records) - design_NC.shape[1]
    if np.linalg.matrix_rank(design_NC) < design_NC.shape[1]:
        raise ConfigError(f"factors: the {len(records)} runs cannot tell {', '.join(factors)} apart")
    fit_C, *_ = np.linalg.lstsq(design_NC, score_N, rcond=None)
    inverse_CC = np.linalg.inv(design_NC.T @ design_NC)
    error = float(((score_N - design_NC @ fit_C) ** 2).sum()) / free if free else None
    made = []
    for factor, levels, found, start in places:
        for place, level in enumerate(levels):
            weight_C = np.zeros(len(fit_C))
            if place < len(levels) - 1:
                weight_C[start + place] = 1.0
            else:
                weight_C[start : start + len(levels) - 1] = -1.0
            spread = weight_C @ inverse_CC @ weight_C
            half = None if error is None else t_quantile(free) * float(np.sqrt(error * spread))
            made.append(Effect(factor, level, found.count(level), float(weight_C @ fit_C), half))
    return made


def main(arguments: Sequence[str]) -> int:
    """Print the effects, task by task."""
    parser = argparse.ArgumentParser(prog="python -m studies.compare.factors")
    parser.add_argument("json", help="of a comparison; parts of one may be joined by commas")
    parser.add_argument("factors", nargs="+", help="options that vary")
    args = parser.parse_args(arguments)
    runs = [run for path in args.json.split(",") for run in json.loads(Path(path).read_text(encoding="utf-8"))["runs"]]
    for task in dict.fromkeys(run["task"] for run in runs):
        found = [asdict(e) for e in effects([run for run in runs if run["task"] == task], args.factors)]
        columns: list[tuple[str, Callable[[Row], str]]] = [
            ("factor", lambda row: row["factor"]),
            ("level", lambda row: str(row["level"])),
            ("runs", lambda row: str(row["runs"])),
            ("effect on the final score", lambda row: f"{row['effect']:+.3f}" + _half(row["half"])),
        ]
        show("\n".join([f"### {task}", "", *grid(columns, found), ""]))
    return 0


def _half(half: float | None) -> str:
    return "" if half is None else f" +-{half:.3f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
