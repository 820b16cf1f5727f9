"""`stp-rs inspect`: writes the viewer of a run's kept rollouts, all of them, as one page."""

import argparse
from pathlib import Path
from typing import Any

from stp_rs.text import show


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `stp-rs`."""
    parser = commands.add_parser("inspect", help="write the viewer of a run's kept rollouts", allow_abbrev=False)
    parser.add_argument("run_folder", metavar="RUN", help="run folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the page and print where it is; return the exit code."""
    from stp_rs.train.report import write_viewer

    show(str(write_viewer(Path(args.run_folder))))
    return 0
