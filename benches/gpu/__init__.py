"""Time whole rollouts and updates of policies of a given shape on one card; `python -m benches.gpu --help`."""
