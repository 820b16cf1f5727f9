"""Training: the loop, its updates, its checkpoints and its metrics."""
