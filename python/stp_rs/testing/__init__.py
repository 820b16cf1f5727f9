"""Exact checks for designs and losses of your own: a policy that is a table, and expectations by enumeration."""
