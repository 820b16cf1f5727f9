"""Faults made on purpose: what docs/reliability.md says was tried, as commands (`make fuzz kills soak determinism`)."""
