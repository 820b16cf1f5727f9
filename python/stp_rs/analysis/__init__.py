"""Variance and bias of likelihood estimates: exact by enumeration, measured by resampling masks."""
