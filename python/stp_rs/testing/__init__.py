"""Exact checks on small policies: a policy that is a table, and expectations by enumeration."""
