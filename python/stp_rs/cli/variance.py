"""`stp-rs variance`: bias, variance and gradient noise of every likelihood design on a policy's own rollouts."""

import argparse
from typing import Any

from stp_rs._core import Design
from stp_rs.cli.terminal import at_least


def add_parser(commands: Any) -> None:
    """Add the command to the parser of `stp-rs`."""
    names = [name for name, _ in Design.names()]
    parser = commands.add_parser(
        "variance", help="bias and noise of every likelihood design on a policy's own rollouts", allow_abbrev=False
    )
    parser.add_argument("--model", required=True, help="run folder, a checkpoint of it, or its warmup folder")
    parser.add_argument("--json", default="", help="write the table here: a list of rows")
    parser.add_argument("--plot", default="", help="write the figure here (needs the plot extra)")
    parser.add_argument(
        "--rows",
        type=at_least(0),
        default=48,
        help="completions, each of its own training prompt; 0: only the alignment",
    )
    parser.add_argument(
        "--resamples", type=at_least(2), default=4, help="draws of the masks per completion, at least 2"
    )
    parser.add_argument(
        "--designs",
        default="",
        help="these, joined by commas (with rows, uniform_count and cover beside them to compare with), of "
        + ", ".join(names),
    )
    parser.add_argument(
        "--passes", default="1,2,4,8", help="only these K, joined by commas; with rows, 2 is always among them"
    )
    parser.add_argument("--seed", type=at_least(0), default=0)
    parser.add_argument(
        "--batches",
        type=at_least(0),
        default=8,
        help="batches of the run's size for the alignment, at least 2; 0: none",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write what was asked for; return the exit code."""
    from stp_rs.cli.measure import run as measure

    return measure(args)
