"""The command line `stp-rs`, one file per command."""
