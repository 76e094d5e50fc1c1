"""Shares the state of the worker processes of one service: who is ready, and which bundles each has mapped.

It is a small file that all of them map. Every number in it is written by one process at a time and is one aligned word,
so that readers need no lock: they see the number before or after a write.
"""

import fcntl
import hashlib
import mmap
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from time import monotonic
from typing import Final

from index.machine.disk import allocate
from service.errors import NotReady

_FILE: Final = "board"
_FIELDS: Final = 9  # numbers of a worker
_STATE, _BEAT_MS, _RESTARTS, _WANTS_ROOM, _CONNECTIONS, _FIRST_BUNDLE = range(6)
_MOST_BUNDLES: Final = 3  # the active one, the one before, and one that a request still uses
_WORD: Final = 8
LATE_S: Final = 5.0
"""Seconds without a sign of life after which a worker counts as not ready."""


class WorkerState(IntEnum):
    """What a worker does."""

    STARTING = 0
    READY = 1
    LEAVING = 2


class WorkerBoard:
    """The state of all workers.

    Args:
        directory: shared by the workers; the file is made there if it does not exist.
        count: number of workers.

    Attributes:
        count: as given.
    """

    def __init__(self, directory: Path, count: int) -> None:
        self.count = count
        size = count * _FIELDS * _WORD
        descriptor = os.open(directory / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(descriptor).st_size < size:
            allocate(directory / _FILE, descriptor, size)
        self._descriptor = descriptor
        self._numbers = memoryview(mmap.mmap(descriptor, size)).cast("q")

    def close(self) -> None:
        """Close the file; the mapping stays until it is freed."""
        os.close(self._descriptor)

    def state(self, number: int) -> WorkerState:
        """What a worker does; workers are numbered from 1."""
        return WorkerState(self._numbers[self._at(number, _STATE)])

    def set_state(self, number: int, state: WorkerState) -> None:
        """Set what a worker does: by the worker itself, or by the parent process after its end."""
        self._numbers[self._at(number, _STATE)] = state

    def reset(self, number: int) -> None:
        """Forget a worker that has ended: it is not ready, and maps no bundle."""
        self.set_state(number, WorkerState.STARTING)
        self.set_bundles(number, ())
        self.set_wants_room(number, False)
        self.set_connections(number, 0)
        self.beat(number)

    def beat(self, number: int) -> None:
        """Give a sign of life; the worker does so several times a second."""
        self._numbers[self._at(number, _BEAT_MS)] = int(monotonic() * 1000.0)

    def silence_s(self, number: int) -> float:
        """Seconds since the last sign of life."""
        return max(0.0, monotonic() - self._numbers[self._at(number, _BEAT_MS)] / 1000.0)

    def count_restart(self, number: int) -> None:
        """Count a worker that was started again."""
        self._numbers[self._at(number, _RESTARTS)] += 1

    def restarts(self) -> int:
        """Workers that were started again since the start of the service."""
        return sum(self._numbers[self._at(number, _RESTARTS)] for number in self._all)

    def ready_count(self) -> int:
        """Workers that are ready and give signs of life."""
        return sum(self._fault_of(number) is None for number in self._all)

    def check_ready(self) -> None:
        """Check that every worker is ready.

        Raises:
            NotReady: one starts, ends or hangs; the message has its number.
        """
        for number in self._all:
            fault = self._fault_of(number)
            if fault is not None:
                raise NotReady(f"worker {number} of {self.count} {fault}; try again soon")

    def bundles(self) -> frozenset[int]:
        """Digests of all bundles that are mapped by any worker, or are about to be."""
        first = [self._at(number, _FIRST_BUNDLE) for number in self._all]
        return frozenset(
            found for at in first for found in self._numbers[at : at + _MOST_BUNDLES].tolist() if found != 0
        )

    def set_bundles(self, number: int, bundle_ids: Collection[str]) -> None:
        """Set which bundles a worker has mapped, or is about to map."""
        digests = [bundle_digest(bundle_id) for bundle_id in bundle_ids][:_MOST_BUNDLES]
        for place in range(_MOST_BUNDLES):
            at = self._at(number, _FIRST_BUNDLE + place)
            self._numbers[at] = digests[place] if place < len(digests) else 0

    def set_wants_room(self, number: int, wanted: bool) -> None:
        """Set whether a worker waits until others free a bundle."""
        self._numbers[self._at(number, _WANTS_ROOM)] = wanted

    def room_is_wanted(self, number: int) -> bool:
        """Whether another worker than this one waits until others free a bundle."""
        return any(self._numbers[self._at(other, _WANTS_ROOM)] for other in self._all if other != number)

    def set_connections(self, number: int, count: int) -> None:
        """Set how many connections a worker has open."""
        self._numbers[self._at(number, _CONNECTIONS)] = count

    def connections(self, number: int) -> int:
        """Connections that a worker has open."""
        return self._numbers[self._at(number, _CONNECTIONS)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the board for a moment; it is freed when its holder dies."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    @property
    def _all(self) -> range:
        return range(1, self.count + 1)

    def _at(self, number: int, field: int) -> int:
        return (number - 1) * _FIELDS + field

    def _fault_of(self, number: int) -> str | None:
        state = self.state(number)
        if state is not WorkerState.READY:
            return "starts" if state is WorkerState.STARTING else "is ending"
        silence_s = self.silence_s(number)
        return f"has not responded for {silence_s:.0f} seconds" if silence_s > LATE_S else None


def bundle_digest(bundle_id: str) -> int:
    """Number that stands for a bundle on the board, never 0."""
    return int.from_bytes(hashlib.blake2b(bundle_id.encode(), digest_size=7).digest()) or 1
