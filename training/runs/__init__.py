"""Checkpoints and the lock of a run directory."""
