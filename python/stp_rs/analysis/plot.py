"""The variance study as one figure; needs matplotlib (the `plot` extra)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stp_rs.analysis.pictures import SHARES
from stp_rs.analysis.table import Cell, ratio
from stp_rs.errors import ConfigError

LIGHT, DARK = "#9aa5b1", "#1f6f8b"


@dataclass(frozen=True)
class Pictures:
    """What the figure shows beside the table's cells."""

    training: Sequence[tuple[int, float, float]]
    """(step, variance unpruned, variance pruned) of the checkpoints."""
    anchors: Sequence[tuple[float, float]]
    """(scored tokens, variance) relative to no anchors, for each of `SHARES`."""


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


def draw(cells: Sequence[Cell], pictures: Pictures, path: Path) -> None:
    """Write the figure: designs at K = 2, variance over training, over rows, and against the share of anchors."""
    figure = require_matplotlib()(figsize=(10, 7), layout="constrained")
    (designs, training), (rows, anchors) = figure.subplots(2, 2)
    by_key = {cell.key: cell for cell in cells}
    _designs(designs, by_key)
    _training(training, pictures)
    _rows(rows, by_key)
    _anchors(anchors, pictures)
    for panel in (designs, training, rows, anchors):
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _designs(panel: Any, by_key: dict[tuple[str, int, str], Cell]) -> None:
    base = by_key[("uniform_count", 2, "none")]
    bars = [
        (f"{cell.design.name}, {cell.pruning}", *ratio(cell.trace_R, base.trace_R), cell.pruning)
        for cell in by_key.values()
        if cell.design.num_mc == 2 and cell.pruning in ("none", "both") and cell.trace_R.sum() > 0
    ]
    bars.sort(key=lambda bar: -bar[1])
    at = np.arange(len(bars))
    middle, low, high = (np.array([bar[i] for bar in bars]) for i in (1, 2, 3))
    colours = [DARK if bar[4] == "both" else LIGHT for bar in bars]
    panel.barh(at, middle, xerr=[middle - low, high - middle], color=colours, error_kw={"lw": 0.8})
    panel.set_yticks(at, [bar[0] for bar in bars], fontsize=6)
    panel.set_xscale("log")
    panel.set_title("Gradient noise at two passes (trace; unpruned counts = 1)", fontsize=9)


def _training(panel: Any, pictures: Pictures) -> None:
    step, unpruned, pruned = np.array(pictures.training).T
    panel.plot(step, unpruned, "o-", color=LIGHT, label="uniform_count, unpruned")
    panel.plot(step, pruned, "o-", color=DARK, label="cover, pruned")
    panel.set_yscale("log")
    panel.set_xlabel("training step")
    panel.set_title("Variance of the log-likelihood estimate (nats², K = 2)", fontsize=9)
    panel.legend(fontsize=8)


def _rows(panel: Any, by_key: dict[tuple[str, int, str], Cell]) -> None:
    for key, colour in ((("uniform_count", 2, "none"), LIGHT), (("cover", 2, "both"), DARK)):
        variance = np.sort(by_key[key].variance_R)
        share = (np.arange(len(variance)) + 1) / len(variance)
        panel.step(variance, share, where="post", color=colour, label=f"{key[0]}, {key[2]}")
    panel.set_xscale("log")
    panel.set_xlabel("variance of a row (nats²)")
    panel.set_title("Distribution over rows", fontsize=9)
    panel.legend(fontsize=8)


def _anchors(panel: Any, pictures: Pictures) -> None:
    tokens, variance = np.array(pictures.anchors).T
    panel.plot(SHARES, variance, "o-", color=DARK, label="variance")
    panel.plot(SHARES, tokens, "--", color=LIGHT, label="scored tokens: the length effect")
    panel.set_xlabel("share of anchors")
    panel.set_title("Variance over that without anchors (uniform_count, K = 2)", fontsize=9)
    panel.legend(fontsize=8)
