"""The graders in Python: published ones, math-verify in a process of its own, and both modes side by side."""
