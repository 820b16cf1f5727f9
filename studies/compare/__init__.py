"""Comparisons: variants of one task's training over seeds, at equal rollouts and at equal compute.

`variants` and `plan` say what runs, `runner` and `worker` run it, `curves` adds the runs up, `table` and `plot` show
them, `command` is the command line.
"""
