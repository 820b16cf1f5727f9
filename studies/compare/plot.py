"""The curves of a comparison as a figure: equal rollouts beside equal compute, a row per task. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stp_rs.eval.plot import require_matplotlib
from studies.compare.curves import Record, band, by_variant, clock_of, column, shared_end

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
"""Okabe and Ito's, told apart without colour vision; yellow is left out, which is none on white."""
BAND_SEEDS = 4
"""From here on a variant's interval is drawn; below, where Student's is as wide as the panel, its runs are."""
STYLES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_FAINT = "#7b848d"
AXIS_TITLES = {
    "rollouts": "completions sampled",
    "forward_equivalents": "forwards (with gradient: x 3)",
    "cpu_seconds": "CPU seconds of training, evaluation left out",
    "gpu_seconds": "GPU seconds of training, evaluation left out",
}


def draw(records: Sequence[Record], path: Path, x: str = "") -> None:
    """Write the figure; the file's ending says the format.

    Args:
        records: runs of one or more tasks.
        path: .svg, .png or .pdf.
        x: axis of the right panel; by default the seconds of the device that computed.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    tasks = list(dict.fromkeys(str(record["task"]) for record in records))
    names = list(dict.fromkeys(str(record["variant"]) for record in records))
    figure = require_matplotlib()(figsize=(10.5, 0.7 + 3.6 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False)
    for task, (left, right) in zip(tasks, panels, strict=True):
        runs = [record for record in records if record["task"] == task]
        for panel, axis in ((left, "rollouts"), (right, x or clock_of(runs))):
            _panel(panel, runs, axis, names)
        left.set_ylabel(f"{task}: solved, free decode" if len(tasks) > 1 else "solved (validation, free decode)")
        right.sharey(left)
        right.tick_params(labelleft=False)
    panels[0][0].set_title("Equal rollouts", loc="left", fontsize=11)
    panels[0][1].set_title("Equal compute", loc="left", fontsize=11)
    drawn = [panel.get_legend_handles_labels() for row in panels for panel in row[:1]]
    unique = {label: handle for found, names in drawn for handle, label in zip(found, names, strict=True)}
    labels, handles = list(unique), list(unique.values())
    order = np.argsort([-_final(records, label) for label in labels], kind="stable")
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        handlelength=2.6,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


BAND_VARIANTS = 8
"""More bands, or single runs, than of this many variants hide each other; the table has the intervals."""


def _panel(panel: Any, runs: Sequence[Record], axis: str, names: Sequence[str]) -> None:
    variants = by_variant(runs)
    for name, own in variants.items():
        index = names.index(name)
        colour = COLOURS[index % len(COLOURS)]
        style = STYLES[index // len(COLOURS) % len(STYLES)]
        # as far as all runs of this variant go, also where others stop earlier
        grid = np.linspace(0.0, shared_end(own, axis), 101)
        curve = band(own, axis, grid)
        panel.plot(grid, curve["mean"], color=colour, linestyle=style, linewidth=1.8, label=name)
        panel.plot(grid[-1:], curve["mean"][-1:], "o", color=colour, markersize=3.5)
        ends = [column(run, "solved_free")[-1] for run in own]
        panel.plot([column(run, axis)[-1] for run in own], ends, ".", color=colour, markersize=4, alpha=0.6)
        if len(variants) > BAND_VARIANTS:
            continue
        if len(own) >= BAND_SEEDS:
            panel.fill_between(
                grid, curve["low"], curve["high"], color=colour, alpha=_alpha(len(variants)), linewidth=0
            )
        elif len(own) > 1:
            for run in own:
                panel.plot(column(run, axis), column(run, "solved_free"), color=colour, linewidth=0.7, alpha=0.4)
    end = shared_end(runs, axis)
    if end < max(shared_end(own, axis) for own in variants.values()):
        panel.axvline(end, color=_FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        panel.annotate(
            "all runs got here", (end, 0), xytext=(4, 4), textcoords="offset points", fontsize=8, color=_FAINT
        )
    panel.set_xlabel(AXIS_TITLES[axis])
    panel.set_xlim(left=0)
    panel.set_ylim(0, 1)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25, linewidth=0.6)


def _alpha(variants: int) -> float:
    """Return how opaque a band is: many overlap."""
    return 0.16 if variants <= 4 else 0.08


def _final(records: Sequence[Record], name: str) -> float:
    return float(np.mean([r["curve"][-1]["solved_free"] for r in records if r["variant"] == name]))
