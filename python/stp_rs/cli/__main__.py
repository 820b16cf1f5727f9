"""`python -m stp_rs.cli` is the command `stp-rs`."""

import sys

from stp_rs.cli.main import main

sys.exit(main())
