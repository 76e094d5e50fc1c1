"""Holds what all jobs on a run share: checkpoints, the learning rate and the lock."""
