"""Keeps the token buckets of callers: in this process, or in a file that all worker processes map.

A caller's requests may come over few connections that all lead to one worker, or over many that lead to all. Only a
count of all workers together limits both alike, so the limit is not divided among them (docs/adr/0030).
"""

import fcntl
import hashlib
import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from index.machine.disk import allocate

Caller = bytes | str

MOST_CALLERS: Final = 65_536
_FILE: Final = "rates"
_KEY_BYTES: Final = 16
_WORD: Final = 8
_WAYS: Final = 8
_TRIES: Final = 200


class Buckets(Protocol):
    """The time at which each caller's token bucket is full again, in monotonic seconds."""

    def update(self, caller: Caller, now: float, change: Callable[[float], float]) -> float:
        """Change the time of one caller; where there are too many callers, another one is forgotten.

        Args:
            caller: whose bucket.
            now: the time of a caller that is not known.
            change: from the old time to the new one.

        Returns:
            The old time.
        """
        ...


class LocalBuckets:
    """The buckets of one process; the least recent ones are dropped where there are too many.

    Args:
        most: most buckets; a bucket takes about 200 bytes.
    """

    def __init__(self, most: int = MOST_CALLERS) -> None:
        self._most = most
        # Ordered: finding the first key of a plain dict is slow after many removals at its front.
        self._full_at: OrderedDict[Caller, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._full_at)

    def update(self, caller: Caller, now: float, change: Callable[[float], float]) -> float:
        """See `Buckets.update`; newest last, so that the first is the least recent."""
        old = self._full_at.pop(caller, now)
        if len(self._full_at) >= self._most:
            self._full_at.popitem(last=False)
        self._full_at[caller] = change(old)
        return old


class SharedBuckets:
    """The buckets of all worker processes, in a table of 65,536 places that is divided into sets of eight.

    A caller's digest chooses its set. Where no place of the set is free, the bucket that is full soonest gives way. The
    digest is keyed with random bytes, so that nobody can choose addresses that push out another's.

    The lock is held for microseconds and is freed when its holder dies. One that is not free after 200 tries, since its
    holder was stopped, is passed over: at worst one request is not counted.

    Args:
        directory: shared by the workers; the file is made there if it does not exist.
        most: places, a multiple of eight.
    """

    def __init__(self, directory: Path, most: int = MOST_CALLERS) -> None:
        self._sets = most // _WAYS
        size = _KEY_BYTES + most * 2 * _WORD
        self._descriptor = os.open(directory / _FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            if os.fstat(self._descriptor).st_size < size:
                allocate(directory / _FILE, self._descriptor, size)
                os.pwrite(self._descriptor, os.urandom(_KEY_BYTES), 0)
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        mapped = memoryview(mmap.mmap(self._descriptor, size))
        self._key = bytes(mapped[:_KEY_BYTES])
        self._digests = mapped[_KEY_BYTES:].cast("Q")
        self._times = mapped[_KEY_BYTES:].cast("d")

    def update(self, caller: Caller, now: float, change: Callable[[float], float]) -> float:
        """See `Buckets.update`."""
        name = caller if isinstance(caller, bytes) else caller.encode()
        digest = int.from_bytes(hashlib.blake2b(name, digest_size=8, key=self._key).digest()) or 1
        first = digest % self._sets * _WAYS * 2
        places = range(first, first + _WAYS * 2, 2)
        with self.locked():
            for place in places:
                if self._digests[place] == digest:
                    old = float(self._times[place + 1])
                    break
            else:  # a place that was never used holds 0.0, so it is the soonest
                place = min(places, key=lambda place: self._times[place + 1])
                self._digests[place], old = digest, now
            self._times[place + 1] = change(old)
        return old

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other workers from reading and writing."""
        held = False
        for _ in range(_TRIES):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.sched_yield()
            else:
                held = True
                break
        try:
            yield
        finally:
            if held:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
