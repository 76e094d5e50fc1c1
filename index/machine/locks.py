"""Locks between processes; the kernel releases a lock when the process that holds it ends, however it ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def file_lock(path: Path, *, wait: bool = False) -> "BaseFileLock":
    """The exclusive lock of a lock file, which is created when needed and stays.

    Args:
        path: of the lock file.
        wait: wait for the process that holds the lock instead of failing.

    Returns:
        A context manager. Entering raises ``filelock.Timeout`` if another holder has the lock and ``wait`` is false,
        and another ``OSError`` if the file cannot be opened or its file system has no locks.
    """
    from filelock import FileLock  # a serving process only reads a registry, so it needs no lock

    # Without flock, filelock would fall back to a file that a killed process leaves behind.
    return FileLock(path, blocking=wait, thread_local=False, fallback_to_soft=False)


@contextlib.contextmanager
def directory_lock(directory: Path, *, shared: bool = False) -> Iterator[int]:
    """Hold the lock of a directory itself while the block runs; leaves no file behind and never waits.

    Args:
        directory: an existing directory, not a link.
        shared: share the lock with others that share it.

    Yields:
        A descriptor of the directory.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: there is no such directory, or its file system has no locks.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except PermissionError as error:  # some network file systems say so of a lock that is taken
            raise BlockingIOError(error.errno, "the lock is taken", str(directory)) from error
        yield descriptor
    finally:
        os.close(descriptor)
