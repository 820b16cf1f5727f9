"""The run's report: one HTML file that opens from disk and fetches nothing, drawn from what the run folder holds.

`facts` makes plain values of the folder; `assets/report.js` lays them out, with uPlot for the curves. Whatever a model
or a data set wrote reaches the page as text nodes, and its policy lets no other script run.
"""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from stp_rs.errors import CheckpointError
from stp_rs.text import inert
from stp_rs.train.checkpoint import atomic_file
from stp_rs.train.kept import kept_files, read_scenes
from stp_rs.train.report.facts import KEPT_NOTE, collect


def write_report(run: Path) -> Path:
    """Write `report.html` of a run folder, finished or not; return its path.

    Raises:
        CheckpointError: the folder holds no run.
    """
    return _write(run / "report.html", collect(run))


def write_viewer(run: Path) -> Path:
    """Write `rollouts.html`, the viewer of every kept rollout of a run folder; return its path.

    Raises:
        CheckpointError: nothing was kept.
    """
    files = kept_files(run)
    if not files:
        raise CheckpointError(f"{run}: no kept rollouts in it; train with stp_keep_rollouts above 0")
    data = {"title": inert(run.resolve().name), "about": f"{len(files)} kept rollouts", "kept_note": KEPT_NOTE}
    return _write(run / "rollouts.html", data | {"kept": [read_scenes(file) for file in files]})


def _write(path: Path, data: dict[str, Any]) -> Path:
    with atomic_file(path) as temporary:
        temporary.write_text(page(json.dumps(data)), encoding="utf-8")
    return path


def page(data: str) -> str:
    """Return the page that shows JSON data: a report, or a viewer alone."""
    assets = resources.files("stp_rs.train.report") / "assets"
    read = {name: (assets / name).read_text(encoding="utf-8") for name in _PARTS}
    scripts = [read[name] for name in _PARTS if name.endswith(".js")]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}"
    enclosed = data.replace("<", "\\u003c")  # no text can end the element that holds it
    return "".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8>",
            f'<meta http-equiv=Content-Security-Policy content="{policy}">',
            "<meta name=viewport content='width=device-width, initial-scale=1'><title>stp_rs</title>",
            "<link rel=icon href='data:,'>",
            f"<style>{read['uplot.min.css']}{read['report.css']}</style>",
            "<main id=page></main><noscript>A script draws this report, and scripts are off here.</noscript>",
            f"<!-- uPlot: {read['uplot.LICENSE']} -->",
            f"<script type=application/json id=data>{enclosed}</script>",
            *(f"<script>{script}</script>" for script in scripts),
            "</html>\n",
        ]
    )


_PARTS = ("uplot.min.css", "report.css", "uplot.LICENSE", "uplot.min.js", "charts.js", "viewer.js", "report.js")
