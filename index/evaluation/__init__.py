"""Recall, latency and catalogue figures of a bundle, and its report."""
