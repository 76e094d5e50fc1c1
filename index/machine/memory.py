"""Finds the memory that this process may use, by the machine and by the limits of its control groups."""

from collections.abc import Iterator
from pathlib import Path

from index.machine.control_groups import group_directories


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of memory that all processes of this control group may use together; None where it cannot be found out.

    Args:
        root: root of the file system with ``proc`` and the control groups.
    """
    limits = [*_of_machine(root), *_of_groups(root)]
    return min(limits, default=None)


def _of_machine(root: Path) -> Iterator[int]:
    try:
        total = (root / "proc/meminfo").read_text().partition("MemTotal:")[2].split()
        yield int(total[0]) * 1024
    except (OSError, ValueError, IndexError):  # not on Linux
        return


def _of_groups(root: Path) -> Iterator[int]:
    for version, directory in group_directories(root, "memory"):
        try:
            yield int((directory / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text())
        except (OSError, ValueError):  # there is no such group, or its limit is "max"
            continue
