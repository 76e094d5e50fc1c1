"""Makes the directory of the files that the workers of a service map.

The parent locks the directory and the workers inherit the lock. So where all of them were killed at once, as by a
control group that ran out of memory, the next service finds the directory unlocked and removes it: the files take
memory for as long as they are there.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Final

_MEMORY: Final = "/dev/shm"  # noqa: S108 - a file there has a name of its own
_SHARED_BYTES: Final = 4 << 20  # of each worker, and of what all share; far more than they begin with
_PREFIX: Final = "vlm2rec-shared-"
_UNLOCKED_PREFIX: Final = "vlm2rec-new-"  # until it is locked, so that another service does not remove it
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def shared_directory(count: int) -> Iterator[Path]:
    """A directory for as long as the context lasts: in memory, if there is room.

    Directories of services that were killed are removed.

    Args:
        count: number of workers.

    Raises:
        OSError: no directory for temporary files can be written.
    """
    _remove_left()
    try:
        has_room = shutil.disk_usage(_MEMORY).free > _SHARED_BYTES * (1 + count)  # 64 MiB in a container of Docker
        directory, lock = _made(_MEMORY if has_room else None)
    except OSError:
        directory, lock = _made(None)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _made(parent: str | None) -> tuple[Path, int]:
    """A new directory, and the file descriptor that locks it; processes made by a fork hold the lock too."""
    made = Path(tempfile.mkdtemp(prefix=_UNLOCKED_PREFIX, dir=parent))
    lock = os.open(made, _FLAGS)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return made.rename(made.with_name(made.name.replace(_UNLOCKED_PREFIX, _PREFIX, 1))), lock


def _remove_left() -> None:
    """Remove the directories of this user that no process has locked."""
    places = dict.fromkeys((Path(_MEMORY), Path(tempfile.gettempdir())))
    for directory in chain.from_iterable(place.glob(f"{_PREFIX}*") for place in places):
        with suppress(OSError):  # locked, of another user, or gone meanwhile
            lock = os.open(directory, _FLAGS)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.geteuid():
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(lock)
