"""Rollouts: completions decoded under a plan and a law, scored by rewards, kept as trajectories."""
