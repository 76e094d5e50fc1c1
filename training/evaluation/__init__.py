"""Evaluates runs: ranks of every system on held-out events."""
