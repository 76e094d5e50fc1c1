"""Bundles on disk, the gate and the registry."""
