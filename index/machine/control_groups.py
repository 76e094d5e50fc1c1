"""Finds the control groups that limit this process: its own and their parents, of version 1 and 2 (Linux)."""

from collections.abc import Iterator
from pathlib import Path


def group_directories(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Version and directory of each control group with a controller; a directory need not exist.

    Args:
        root: root of the file system with ``proc`` and the control groups.
        controller: such as ``cpu`` or ``memory``.
    """
    try:
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for line in mounts:
        fields, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        if kind != "cgroup2" and not (kind == "cgroup" and controller in options.split(",")):
            continue
        mounted_root, mount_point = fields.split(" ")[3:5]
        wanted = "" if kind == "cgroup2" else controller
        for _, controllers, path in groups:
            if wanted not in controllers.split(","):
                continue
            # Without a cgroup namespace the path is the host's, and the mount shows only its end.
            inside = Path(path.removeprefix(mounted_root).lstrip("/"))
            top = root / mount_point.lstrip("/")
            for directory in (inside, *inside.parents):
                yield (2 if kind == "cgroup2" else 1), top / directory
