"""Reads from Linux what processor time threads have used, how long they waited for a core, and how often they slept."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import psutil

from bench.serving.running import RunningContender

ROLES: Final = ("loop", "threads", "redis", "client")
"""Event loops and all other threads of the workers, the Redis server, and the load generator."""


@dataclass(frozen=True)
class ProcessorTime:
    """Of some threads together, since they started.

    Attributes:
        used_s: seconds on a core.
        waited_s: seconds in which they could have run, but waited for a core.
        sleeps: how often they waited for something else.
    """

    used_s: float = 0.0
    waited_s: float = 0.0
    sleeps: int = 0

    def __add__(self, other: Self) -> "ProcessorTime":
        return ProcessorTime(self.used_s + other.used_s, self.waited_s + other.waited_s, self.sleeps + other.sleeps)

    def __sub__(self, other: Self) -> "ProcessorTime":
        return ProcessorTime(self.used_s - other.used_s, self.waited_s - other.waited_s, self.sleeps - other.sleeps)


def by_role(running: RunningContender, redis_pid: int) -> dict[str, ProcessorTime]:
    """The processor time of each of `ROLES`.

    Args:
        running: the service; its workers are its children, or it is the only one.
        redis_pid: process of its Redis.
    """
    workers = [child.pid for child in psutil.Process(running.pid).children()] or [running.pid]
    return {
        "loop": _sum(thread_time(pid, pid) for pid in workers),
        "threads": _sum(thread_time(pid, thread) for pid in workers for thread in _threads(pid) if thread != pid),
        "redis": _sum(thread_time(redis_pid, thread) for thread in _threads(redis_pid)),
        "client": thread_time(os.getpid(), os.getpid()),
    }


def thread_time(pid: int, thread: int) -> ProcessorTime:
    """Of a thread of a process; nothing where it has ended."""
    task = Path(f"/proc/{pid}/task/{thread}")
    try:
        used_ns, waited_ns, _ = (int(field) for field in (task / "schedstat").read_text().split())
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return ProcessorTime()
    return ProcessorTime(used_ns / 1e9, waited_ns / 1e9, int(status["voluntary_ctxt_switches"]))


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
