"""Reads and writes files of an export, on a file system or in an object store."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from index.bundle.integrity import sync_directory, write_durably
from index.errors import EventExportError
from index.event_export.object_path import LARGEST_FILE, ExportPath
from index.machine.disk import translate_disk_errors

_OLD_S: Final = 86_400.0


def children(path: ExportPath) -> "list[ExportPath]":
    """The files and directories directly below a path, by name; none if it does not exist."""
    if not isinstance(path, Path):
        return list(path.children())
    return [*sorted(path.iterdir())] if path.is_dir() else []


def content_of(path: ExportPath, *, limit: int = LARGEST_FILE, size: int | None = None) -> bytes:
    """The content of a file, all of it.

    Args:
        path: the file.
        limit: most bytes that it may have.
        size: bytes that it must have; None: it is not known.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        ExportUnavailable: the object store does not answer, refuses, sends a part of the file, or more than allowed.
        EventExportError: it has another size, more bytes than allowed, or is a pipe or a device, which may never end.
    """
    if not isinstance(path, Path):
        content = path.read_bytes(limit)
        check_size(path, len(content), size)
        return content
    status = path.stat()
    found = status.st_size
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise EventExportError(f"{path}: is no regular file; restore it from a copy")
    check_size(path, found, size)
    if found > limit:
        raise EventExportError(f"{path}: has {found:,} bytes, at most {limit:,} are allowed; restore it from a copy")
    return path.read_bytes()


def check_size(path: ExportPath, found: int, size: int | None) -> None:
    """Check the bytes of a file against its manifest.

    Raises:
        EventExportError: they differ.
    """
    if size is not None and found != size:
        raise EventExportError(f"{path}: has {found:,} bytes, the manifest says {size:,}; restore it from a copy")


def write_new(path: ExportPath, content: bytes) -> None:
    """Write a new file, whole or not at all; the caller flushes the directory by :func:`sync`.

    Raises:
        OSError: it cannot be written.
        ExportUnavailable: the object store does not answer, or refuses.
    """
    if isinstance(path, Path):
        write_durably(path, content, flush_name=False)
    else:
        path.write_new(content)


def replace_read(path: ExportPath, content: bytes) -> None:
    """Replace a file that this process has read, in one step. On a file system the caller holds the writers' lock.

    Raises:
        OSError: it cannot be written; the old one stays.
        ExportObjectChanged: another process has written it in the object store since it was read.
        ExportUnavailable: the object store does not answer, or refuses.
    """
    if isinstance(path, Path):
        write_durably(path, content)
    else:
        path.replace_read(content)


def delete(path: ExportPath) -> None:
    """Delete a file; nothing if there is none."""
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
    else:
        path.delete()


def is_of_a_killed_job(path: ExportPath) -> bool:
    """Whether a file that no manifest names is of a job that has ended.

    On a file system the caller holds the lock of all jobs that may write such a file. An object store has none. There a
    file counts within an hour of its writing, see `index.event_export.directory`, so one that is a day old never will.
    """
    return isinstance(path, Path) or path.age_s() > _OLD_S


def make_directory(path: ExportPath) -> None:
    """Make a directory below the root of an export; an object store has none."""
    if isinstance(path, Path) and not path.is_dir():
        path.mkdir()
        sync_directory(path.parent)


def sync(directory: ExportPath) -> None:
    """Flush the names of a directory to the disk."""
    if isinstance(directory, Path):
        sync_directory(directory)


@contextmanager
def disk_errors(root: ExportPath) -> Iterator[None]:
    """Raise disk errors of the block as `DiskError`; an object store has its own."""
    if isinstance(root, Path):
        with translate_disk_errors(root):
            yield
    else:
        yield
