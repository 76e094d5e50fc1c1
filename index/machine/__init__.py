"""Cores and disks of the machine."""
