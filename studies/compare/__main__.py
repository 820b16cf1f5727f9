"""`python -m studies.compare`, from the root of a checkout."""

import sys
from collections.abc import Sequence

from stp_rs.cli.main import run_command
from studies.compare.command import build_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison that the arguments describe; return the exit code."""
    return run_command(build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
