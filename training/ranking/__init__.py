"""Ranking metrics, baselines and score tables."""
