"""`stp-rs report`: writes the report of a run folder, finished or not."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from stp_rs.text import show


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `stp-rs`."""
    parser = commands.add_parser("report", help="write the report of a run: one HTML file", allow_abbrev=False)
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and print where it is; return the exit code."""
    from stp_rs.train.report import write_report

    folder = Path(args.run_folder)
    for problem in torn(folder):
        show(f"stp-rs: {problem}", file=sys.stderr)
    show(str(write_report(folder)))
    return 0


def torn(folder: Path) -> list[str]:
    """Return what of a run's numbers cannot be read and is left out of its report, a sentence a file."""
    from stp_rs.train.metrics import lines_until

    found = []
    metrics, summary = folder / "metrics.jsonl", folder / "summary.json"
    if metrics.is_file():
        lines = [line for line in metrics.read_text(encoding="utf-8", errors="replace").split("\n") if line.strip()]
        bad = len(lines) - len(lines_until(metrics, math.inf))
        if bad:
            found.append(f"{metrics}: {bad} of {len(lines)} lines are cut short or no metrics, and left out")
    try:
        whole = not summary.is_file() or isinstance(json.loads(summary.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        whole = False
    if not whole:
        found.append(f"{summary}: is cut short or no summary, and left out")
    return found
