"""Counts the cores that this process may use, by its CPU affinity and the CPU quotas of its control groups.

``os.cpu_count`` counts the cores of the host. A container with a quota of two cores on a host of 64 would start 64
threads, use up its quota in the first milliseconds of each period, and be suspended for the rest.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from index.machine.control_groups import group_directories


def available_cores(root: Path = Path("/")) -> int:
    """Number of threads that can run at the same time, at least 1; a quota is rounded down to whole cores.

    Args:
        root: root of the file system with ``proc`` and the control groups.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Cores by each quota that applies: of this process's control group and of its parents."""
    for version, directory in group_directories(root, "cpu"):
        quota = _quota_v2(directory) if version == 2 else _quota_v1(directory)
        if quota is not None:
            yield quota


def _quota_v2(directory: Path) -> float | None:
    """Cores that ``cpu.max`` allows, as in ``150000 100000``; None if unlimited or without such a group."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(directory: Path) -> float | None:
    """Cores that ``cpu.cfs_quota_us`` allows, −1 = unlimited; None if unlimited or without such a group."""
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        period = int((directory / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
