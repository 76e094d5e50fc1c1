"""Checks before a job that its outputs can be written, so that the work of hours is not lost at its end.

A file without a name is made where the output will lie: permissions, mounts and full disks have many causes, and only
an attempt meets them all. It is gone when it is closed, also where the process is killed.
"""

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from index.errors import DiskError
from index.machine.disk import describe_disk_error, is_stream

_AGAIN: Final = "start the same command again"


def check_directory_writable(*paths: Path) -> None:
    """Check that files can be made in directories; nothing is left behind.

    Args:
        paths: directories; of one that does not exist, the nearest existing parent is checked.

    Raises:
        DiskError: files cannot be made there, or something that is no directory is in the way.
    """
    for path in paths:
        try:
            _try(path, in_the_way=errno.EEXIST)
        except OSError as error:
            raise DiskError(describe_disk_error(error, path, _AGAIN)) from error


def check_file_writable(path: Path) -> None:
    """Check that a file can be written under a temporary name and renamed; a device or a pipe is not touched.

    Args:
        path: of the file.

    Raises:
        DiskError: it is a directory, its directory cannot be written, or a device without permission to write.
    """
    try:
        if is_stream(path):
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        _try(path.parent, in_the_way=errno.ENOTDIR)
    except OSError as error:
        raise DiskError(describe_disk_error(error, path, _AGAIN)) from error


def _try(directory: Path, in_the_way: int) -> None:
    """Make a file without a name in a directory, or where it can be made; ``in_the_way``: errno where it is none."""
    existing = directory.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        with contextlib.suppress(FileNotFoundError):  # of a link to nothing
            existing.stat()  # raises where links form a circle
        code = in_the_way if existing == directory.absolute() else errno.ENOTDIR
        raise OSError(code, os.strerror(code), str(existing))
    with tempfile.TemporaryFile(dir=existing):
        pass
