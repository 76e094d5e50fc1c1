"""Measures the pauses of a core, such as those in which the host of a virtual machine runs something else.

    python -m bench.capacity.pauses --core 0

A process sleeps for a millisecond and writes a line where it wakes late: the moment (perf_counter seconds) and the
milliseconds. It runs at real-time priority, so that it does not wait for other processes; that takes about a hundredth
of the core. Without the right to that priority it ends at once, and no pauses are known.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PERIOD_S: Final = 0.001
SHORTEST_S: Final = 0.0003
"""A thread may wake so late for other reasons, such as interrupts and the kernel's own work."""

Pause = tuple[float, float]
"""When it was noticed (perf_counter seconds), and its milliseconds."""


class PauseMeters:
    """A meter on each of some cores, for as long as the context lasts.

    Args:
        cores: their numbers.
    """

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = cores

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="vlm2rec-pauses-")
        self._meters = []
        for core in self._cores:
            with self._file(core).open("wb") as file:
                command = [sys.executable, "-m", "bench.capacity.pauses", "--core", str(core)]
                self._meters.append(subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for meter in self._meters:
            meter.terminate()
            meter.wait()
        self._directory.cleanup()

    @property
    def running(self) -> bool:
        """Whether pauses are known."""
        return all(meter.poll() is None for meter in self._meters)

    def between(self, began_s: float, ended_s: float) -> list[list[float]]:
        """Of each core the milliseconds of the pauses between two moments (perf_counter seconds)."""
        return [
            [length_ms for moment_s, length_ms in read(self._file(core)) if began_s <= moment_s < ended_s]
            for core in self._cores
        ]

    def _file(self, core: int) -> Path:
        return Path(self._directory.name) / str(core)


def read(file: Path) -> list[Pause]:
    """The pauses of a meter so far.

    Half a period is added to what it was late: on average a pause begins in the middle of its sleep.
    """
    pauses = []
    for line in file.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # the last may be written just now
            moment_s, late_ms = map(float, line.split())
            pauses.append((moment_s, late_ms + 1_000 * PERIOD_S / 2))
    return pauses


def main() -> None:
    """Measure until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, required=True)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    while True:
        due_s = time.perf_counter() + PERIOD_S
        time.sleep(PERIOD_S)
        now_s = time.perf_counter()
        if now_s - due_s >= SHORTEST_S:
            print(f"{now_s:.6f} {1_000 * (now_s - due_s):.3f}", flush=True)


if __name__ == "__main__":
    main()
