"""Checkpoints, lock and disk errors of a run directory."""
