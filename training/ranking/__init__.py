"""Ranks catalogues for held-out targets: metrics, baselines and score tables."""
