"""RunLock: one job at a time writes to a run directory."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from training.errors import ReindexError, RunBusy

_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


@contextlib.contextmanager
def run_lock(run: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a run directory while the block runs; never waits.

    The lock is on the directory itself (``flock``), so it leaves no file behind, and the kernel drops it with the
    process, however that ends.

    Args:
        run: an existing directory.
        shared: for a reader: fails only while a writer is at work.

    Raises:
        RunBusy: another process holds it.
        ReindexError: there is no such directory, or its file system has no locks.
    """
    descriptor = None
    try:
        descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (OSError, ValueError) as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, OSError) and error.errno in _TAKEN:
            raise RunBusy(f"{run}: another job is at work on this run; try again when it has ended") from error
        raise ReindexError(f"{run}: the run directory cannot be locked ({error}); check the path") from error
    try:
        yield
    finally:
        os.close(descriptor)
