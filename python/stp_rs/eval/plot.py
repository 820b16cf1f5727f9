"""The variance study as one figure; needs matplotlib (the `plot` extra)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stp_rs.errors import ConfigError
from stp_rs.eval.pictures import SHARES
from stp_rs.eval.variance import Measurement, mean_interval, ratio
from stp_rs.types import Floats

LIGHT, DARK = "#9aa5b1", "#1f6f8b"
COMPARED = ((LIGHT, "uniform_count, not pruned"), (DARK, "cover, pruned"))
"""What the pictures of the variance compare."""


@dataclass(frozen=True)
class Pictures:
    """What the figure shows beside what the table shows."""

    training: Sequence[tuple[int, Floats, Floats]]
    """(step, variance unpruned of every row, variance pruned) of the checkpoints."""
    rows: tuple[Floats, Floats]
    """(unpruned, pruned) of every row of the table's own rollouts."""
    anchors: Sequence[tuple[float, float, float, float]]
    """(scored tokens, variance, its interval) relative to no anchors, for each of `SHARES`."""


def require_matplotlib() -> Any:
    """Return matplotlib's figure class.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot: matplotlib is not installed; pip install 'stp-rs[plot]'") from error
    return Figure


def draw(measured: Sequence[Measurement], pictures: Pictures, path: Path) -> None:
    """Write the figure: designs at K = 2, variance over training, over rows, and against the share of anchors."""
    figure = require_matplotlib()(figsize=(11, 7.5), layout="constrained")
    (designs, training), (rows, anchors) = figure.subplots(2, 2)
    by_key = {one.key: one for one in measured}
    _designs(designs, by_key)
    _training(training, pictures)
    _rows(rows, pictures)
    _anchors(anchors, pictures)
    for panel in (designs, training, rows, anchors):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _designs(panel: Any, by_key: dict[tuple[str, int, str], Measurement]) -> None:
    """Draw the designs that estimate an ELBO or a mean per token: `trajectory` scores what no mask design does."""
    base = by_key["uniform_count", 2, "none"]
    bars = [
        (one.design.name, *ratio(one.trace_R, base.trace_R), one.pruning)
        for one in by_key.values()
        if one.forwards_R.max() == 2
        and one.pruning in ("none", "both")
        and one.design.target in ("plan_elbo", "full_elbo", "published")
    ]
    bars.sort(key=lambda bar: -bar[1])
    at = np.arange(len(bars))
    middle, low, high = (np.array([bar[i] for bar in bars]) for i in (1, 2, 3))
    colours = [DARK if bar[4] == "both" else LIGHT for bar in bars]
    panel.hlines(at, low, high, color=colours, lw=1.2)
    panel.scatter(middle, at, color=colours, s=16, zorder=3)
    panel.set_yticks(at, [bar[0] for bar in bars], fontsize=6.5)
    panel.set_xscale("log")
    panel.axvline(1.0, color=LIGHT, lw=0.8, ls=":")
    for colour, label in ((LIGHT, "not pruned"), (DARK, "pruned in space and time")):
        panel.scatter([], [], color=colour, s=16, label=label)
    panel.legend(fontsize=8, loc="upper right")
    panel.set_xlabel("trace of the gradient's covariance (uniform_count, not pruned = 1)", fontsize=8)
    panel.set_title("Gradient noise of a design at two passes, 95 % over rows", fontsize=9)


def _training(panel: Any, pictures: Pictures) -> None:
    steps = [step for step, _, _ in pictures.training]
    for which, (colour, label) in enumerate(COMPARED, start=1):
        by_step = [np.asarray(entry[which]) for entry in pictures.training]
        low, high = np.array([mean_interval(v) for v in by_step]).T
        panel.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0)
        panel.plot(steps, [v.mean() for v in by_step], "o-", color=colour, label=label)
    panel.set_yscale("log")
    panel.set_xlabel("training step", fontsize=8)
    panel.set_ylabel("nats\u00b2", fontsize=8)
    panel.set_title("Variance of the log-likelihood estimate over training, K = 2", fontsize=9)
    panel.legend(fontsize=8)


def _rows(panel: Any, pictures: Pictures) -> None:
    for variance_R, (colour, label) in zip(pictures.rows, COMPARED, strict=True):
        variance = np.sort(variance_R)
        share = (np.arange(len(variance)) + 1) / len(variance)
        panel.step(variance, share, where="post", color=colour, label=label)
    panel.set_xscale("log")
    panel.set_xlabel("variance of a completion's estimate (nats\u00b2)", fontsize=8)
    panel.set_ylabel("share of completions", fontsize=8)
    panel.set_title("Its distribution over rows, K = 2", fontsize=9)
    panel.legend(fontsize=8)


def _anchors(panel: Any, pictures: Pictures) -> None:
    tokens, variance, low, high = np.array(pictures.anchors).T
    panel.fill_between(SHARES, low, high, color=DARK, alpha=0.2, lw=0)
    panel.plot(SHARES, variance, "o-", color=DARK, label="variance, 95 % over rows")
    panel.plot(SHARES, tokens, "--", color=LIGHT, label="scored tokens: the length effect")
    panel.set_ylim(bottom=0)
    panel.set_xlabel("share of random anchors", fontsize=8)
    panel.set_ylabel("ratio to no anchors", fontsize=8)
    panel.set_title("Its ratio against the share of anchors (uniform_count, K = 2)", fontsize=9)
    panel.legend(fontsize=8)
