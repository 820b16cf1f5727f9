"""Studies of algorithms: run from a checkout, no part of the installed library."""
