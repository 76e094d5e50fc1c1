"""Permissions of a bundle's files: nobody writes into one by accident, and its directory can always be removed.

A service maps the files. A write in place changes what it answers, and a file that becomes shorter ends its process
(SIGBUS). Files are therefore read-only. A directory keeps its write permission: without it only its owner could remove
it, and a registry may be pruned by another user of the same group. Root ignores all of this.
"""

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

READ_ONLY = 0o444
_ALL_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def is_read_only(path: Path) -> bool:
    """Whether the file's mode lets nobody write to it."""
    return not path.stat().st_mode & _ALL_WRITE


def make_read_only(paths: Iterable[Path]) -> None:
    """Take away the write permission of files; those of another owner stay as they are."""
    for path in paths:
        if not is_read_only(path):
            with contextlib.suppress(PermissionError):
                path.chmod(READ_ONLY)


def remove_directory(directory: Path) -> None:
    """Remove a directory and all in it, also where the write permission of a directory was taken away.

    Raises:
        OSError: it cannot be removed; a directory without write permission belongs to another user.
    """
    allow_removal(directory)
    shutil.rmtree(directory)


def allow_removal(directory: Path) -> None:
    """Give the owner's write permission back to a directory and to those in it; the files stay read-only.

    Raises:
        PermissionError: a directory without write permission belongs to another user.
    """
    _restore(directory)
    for parent, names, _ in os.walk(directory):
        for name in names:
            _restore(Path(parent) / name)


def _restore(directory: Path) -> None:
    mode = directory.lstat().st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
        directory.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)
