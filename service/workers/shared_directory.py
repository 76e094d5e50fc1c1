"""Makes the directory of the files that the workers of a service map.

The parent locks the directory and the workers inherit the lock. So where all of them were killed at once, as by a
control group that ran out of memory, the next service finds the directory unlocked and removes it: the files take
memory for as long as they are there.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Final

from service.errors import StartError

_MEMORY: Final = "/dev/shm"  # noqa: S108 - a file there has a name of its own
_SHARED_BYTES: Final = 4 << 20  # of each worker, and of what all share; far more than they begin with
_PREFIX: Final = "vlm2rec-shared-"
_UNLOCKED_PREFIX: Final = "vlm2rec-new-"  # until it is locked, so that another service does not remove it
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def shared_directory(count: int) -> Iterator[Path]:
    """A directory for as long as the context lasts: in memory, if there is room.

    Directories of services that were killed are removed.

    Args:
        count: number of workers.

    Raises:
        StartError: neither has room, or no directory for temporary files can be written.
    """
    _remove_left()
    try:
        has_room = shutil.disk_usage(_MEMORY).free > _SHARED_BYTES * (1 + count)  # 64 MiB in a container of Docker
        directory, lock = _made(_MEMORY if has_room else None)
    except OSError:
        try:
            directory, lock = _made(None)
        except OSError as error:
            raise StartError(f"{_no_room(count, None)}; no directory for temporary files: {error}") from error
    try:
        yield directory
    except OSError as error:
        if (reason := shortage(error, directory, count)) is None:
            raise
        raise StartError(reason) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def shortage(error: OSError, directory: Path, count: int) -> str | None:
    """What to tell operators of an error, where a file in the directory of the workers found no room.

    Args:
        error: of the operating system.
        directory: of the workers.
        count: number of workers.

    Returns:
        None for any other error.
    """
    is_shared = error.filename is not None and Path(error.filename).parent == directory
    return _no_room(count, directory.parent) if is_shared and error.errno in _FULL else None


def _no_room(count: int, other: Path | None) -> str:
    """The message where neither the memory nor the other directory has room; None: there is no other."""
    places = dict.fromkeys([Path(_MEMORY), *([] if other is None else [other])])
    free = ", ".join(f"{place} has {_free(place)}" for place in places)
    return (
        f"no room for the files that {count} workers share: {_SHARED_BYTES * (1 + count):,} bytes are needed, {free}; "
        f"give {_MEMORY} more (docker run --shm-size 256m; Kubernetes: an emptyDir of medium Memory), free some space, "
        "or start fewer --workers"
    )


def _free(place: Path) -> str:
    try:
        return f"{shutil.disk_usage(place).free:,} bytes free"
    except OSError as error:
        return f"none ({error.strerror})"


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
