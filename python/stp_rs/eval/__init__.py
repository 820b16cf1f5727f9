"""Evaluation: scores of a policy, variance of its likelihood estimates, and the report of a run."""
