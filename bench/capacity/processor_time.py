"""Reads from Linux what processor time threads have used, and how long they waited for a core."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

ROLES: Final = ("loop", "threads", "redis", "client")
"""Event loop and all other threads of the service, the Redis server, and the load generator."""


@dataclass(frozen=True)
class ProcessorTime:
    """Of some threads together, since they started.

    Attributes:
        used_s: seconds on a core.
        waited_s: seconds in which they could have run, but waited for a core.
    """

    used_s: float = 0.0
    waited_s: float = 0.0

    def __add__(self, other: Self) -> "ProcessorTime":
        return ProcessorTime(self.used_s + other.used_s, self.waited_s + other.waited_s)

    def __sub__(self, other: Self) -> "ProcessorTime":
        return ProcessorTime(self.used_s - other.used_s, self.waited_s - other.waited_s)


def by_role(service_pid: int, redis_pid: int) -> dict[str, ProcessorTime]:
    """The processor time of each of `ROLES`.

    Args:
        service_pid: the only process of the service.
        redis_pid: process of its Redis.
    """
    others = [thread for thread in _threads(service_pid) if thread != service_pid]
    return {
        "loop": thread_time(service_pid, service_pid),
        "threads": _sum(thread_time(service_pid, thread) for thread in others),
        "redis": _sum(thread_time(redis_pid, thread) for thread in _threads(redis_pid)),
        "client": thread_time(os.getpid(), os.getpid()),
    }


def thread_time(pid: int, thread: int) -> ProcessorTime:
    """Of a thread of a process; nothing where it has ended."""
    try:
        text = Path(f"/proc/{pid}/task/{thread}/schedstat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ProcessorTime()
    used_ns, waited_ns, _ = (int(field) for field in text.split())
    return ProcessorTime(used_ns / 1e9, waited_ns / 1e9)


def stolen_s() -> float:
    """Seconds, of all cores together, in which the host of this virtual machine ran something else."""
    return float(psutil.cpu_times().steal)


def _threads(pid: int) -> list[int]:
    return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]


def _sum(found: Iterable[ProcessorTime]) -> ProcessorTime:
    total = ProcessorTime()
    for one in found:
        total += one
    return total
