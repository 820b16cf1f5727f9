"""`stp-rs report`: writes the report of a run folder, finished or not."""

import argparse
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

    show(str(write_report(Path(args.run_folder))))
    return 0
