"""Makes a bundle's files read-only and removes its directory, whatever its permissions.

A service maps the files: a write in place would change its answers, and a file that becomes shorter ends its process
with SIGBUS. Files are therefore read-only. Directories stay writable, because otherwise only the owner could remove
them, and another user of the same group may prune the registry. Root ignores permissions.
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
    """Whether a file's mode has no write permission."""
    return not path.stat().st_mode & _ALL_WRITE


def make_read_only(paths: Iterable[Path]) -> None:
    """Remove the write permission of files; files of another owner are left unchanged."""
    for path in paths:
        if not is_read_only(path):
            with contextlib.suppress(PermissionError):
                path.chmod(READ_ONLY)


def remove_directory(directory: Path) -> None:
    """Remove a directory with its content, even if directories in it lack write permission; of a link only the link.

    Raises:
        OSError: it cannot be removed, as when a directory without write permission belongs to another user.
    """
    if directory.is_symlink():
        directory.unlink()
        return
    allow_removal(directory)
    shutil.rmtree(directory)


def allow_removal(directory: Path) -> None:
    """Restore the owner's write permission of a directory and its subdirectories; files stay read-only.

    A link can be removed whatever its target permits, so nothing is changed there.

    Raises:
        PermissionError: a directory without write permission belongs to another user.
    """
    if directory.is_symlink():
        return
    _restore(directory)
    for parent, names, _ in os.walk(directory):
        for name in names:
            _restore(Path(parent) / name)


def _restore(directory: Path) -> None:
    mode = directory.lstat().st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
        directory.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)
