"""Errors of the disk as one clear line: what the operating system said, of which file, and how much space is free.

Libraries report a full disk in several ways: Python by ``errno``, those written in Rust by "(os error 28)" in the text
of an error of their own, NumPy by the number of values that it could write. :func:`writing` translates all of them.
"""

import contextlib
import errno
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from index.errors import DiskError

GOES_ON = "start the same command again, it goes on where it was"
_CUT = -1  # stands for the number that NumPy does not pass on
_SPACE, _PLACE, _MOUNT = "free some space", "choose another place", "check the disk and how it is mounted"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "free some space or raise the quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "make it writable, or choose another place",
    errno.EACCES: "check owner and permissions",
    errno.EPERM: "check owner and permissions",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files (fs.file-max)",
    errno.ENOTDIR: _PLACE,
    errno.EISDIR: _PLACE,
    errno.ENAMETOOLONG: _PLACE,
    errno.ELOOP: _PLACE,
    errno.EIO: _MOUNT,
    errno.ENXIO: _MOUNT,
    errno.ENODEV: _MOUNT,
    errno.ESTALE: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.ETIMEDOUT: _MOUNT,
    _CUT: "free some space or raise the limit on the size of a file (ulimit -f)",
}
_CODE = re.compile(r"\(os error (\d+)\)")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_UNITS = ("KiB", "MiB", "GiB", "TiB")
_NO_ALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def is_disk_error(error: BaseException) -> bool:
    """Whether an error says that a file cannot be written because of the disk, its limits, or its permissions."""
    return _code(error) in _REMEDIES


def explain(error: BaseException, place: Path, again: str = "try again", *, what: str = "") -> str:
    """One line that says what cannot be written, why, how much is free, and what to do.

    Args:
        error: of the operating system, or of a library that met one.
        place: the directory or file that was being written.
        again: what to do once the cause is mended.
        what: the thing that was being written; empty where the place says it.
    """
    code = _code(error)
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)  # a copy names its source first
    file = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else None
    reason = str(error) if code is None or code == _CUT else os.strerror(code)
    which = f" ({file})" if code is not None and file is not None and file != place else ""
    remedy = _REMEDIES.get(code or 0, "check the path and the space left")
    subject = f"{what} cannot" if what else "cannot"
    return (
        f"{place}: {subject} be written: {reason}{which}; {_room(code, file or place)}. {_upper(remedy)}, then {again}"
    )


@contextlib.contextmanager
def writing(place: Path, *also: type[Exception], again: str = GOES_ON) -> Iterator[None]:
    """Errors of the disk within the block become a :class:`index.errors.DiskError`; all others pass.

    Args:
        place: the directory or file that is being written, for the message.
        also: errors of libraries that carry one of the operating system in their text.
        again: what to do once the cause is mended.

    Raises:
        DiskError: something cannot be written.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        if not is_disk_error(error):
            raise
        raise DiskError(explain(error, place, again)) from error


def new_array_file(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new npy file mapped for writing, all of its space taken beforehand.

    Without that, a disk that is full would be noticed when a page is written back, and end the process by SIGBUS.

    Args:
        path: of the file.
        dtype: of the array.
        shape: of the array.

    Returns:
        The array, zero everywhere.

    Raises:
        OSError: there is no space for it.
    """
    mapped: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(path.stat().st_size, 1))
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:  # a file system without it gives space page by page, as ever
                raise
    return mapped


def free_space(place: Path) -> str:
    """How much is free for this user on the file system of a path, in words."""
    return _room(None, place)


def _code(error: BaseException) -> int | None:
    """The operating system's number of an error, from wherever it stands."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = _CODE.search(str(error))
    if told is not None:
        return int(told[1])
    return _CUT if isinstance(error, OSError) and _SHORT_WRITE.fullmatch(str(error)) else None


def _room(code: int | None, place: Path) -> str:
    status = _file_system(place)
    if status is None:
        return "its file system does not answer"
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return f"a file may have {'any size' if limit == resource.RLIM_INFINITY else _size(limit)} here"
    room = f"{_size(status.f_bavail * status.f_frsize)} are free there"
    return (
        f"{room}, but no more files can be made (no inode is left)" if status.f_files and not status.f_favail else room
    )


def _file_system(place: Path) -> os.statvfs_result | None:
    for path in (place.absolute(), *place.absolute().parents):
        try:
            return os.statvfs(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return None
    return None


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**power:.1f} {_UNITS[power - 1]}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
