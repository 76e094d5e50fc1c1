"""Translates disk errors of Python and libraries into one line: the reason, the file, the free space and the remedy.

Libraries report a full disk in several ways: Python by ``errno``, Rust libraries by "(os error 28)" in the text of
their own error, NumPy by the number of values that it could write. :func:`translate_disk_errors` translates them all.
"""

import contextlib
import errno
import os
import re
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from index.errors import DiskError

RESUME_HINT = "start the same command again, it continues where it stopped"
_SHORT_WRITE_CODE = -1  # stands for the errno that NumPy does not report
_SPACE, _PATH, _MOUNT = "free some space", "choose another path", "check the disk and its mount"
_REMEDIES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: "free some space or raise the quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EROFS: "make it writable, or choose another path",
    errno.EACCES: "check owner and permissions",
    errno.EPERM: "check owner and permissions",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the limit on open files (fs.file-max)",
    errno.ENOTDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.EISDIR: _PATH,
    errno.ENAMETOOLONG: _PATH,
    errno.ELOOP: _PATH,
    errno.EIO: _MOUNT,
    errno.ENXIO: _MOUNT,
    errno.ENODEV: _MOUNT,
    errno.ESTALE: _MOUNT,
    errno.ENOTCONN: _MOUNT,
    errno.ETIMEDOUT: _MOUNT,
    _SHORT_WRITE_CODE: "free some space or raise the limit on the size of a file (ulimit -f)",
}
_OF_THE_NAME = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES)  # its directory answers
_CODE = re.compile(r"\(os error (\d+)\)")
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_UNITS = ("KiB", "MiB", "GiB", "TiB")
_NO_ALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def is_disk_error(error: BaseException) -> bool:
    """Whether an error means that a file cannot be written because of the disk, a limit or a permission."""
    return _code(error) in _REMEDIES


def describe_disk_error(error: BaseException, path: Path, again: str = "try again", *, what: str = "") -> str:
    """One line that says what cannot be written, why, how much space is free, and what to do.

    Args:
        error: error of the operating system, or of a library that reports one.
        path: the directory or file that was being written.
        again: what to do once the cause is fixed.
        what: name of the thing that was being written; empty if the path is clear enough.
    """
    code = _code(error)
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)  # a copy names its source first
    file = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else None
    reason = str(error) if code is None or code == _SHORT_WRITE_CODE else os.strerror(code)
    which = f" ({file})" if code is not None and file is not None and file != path else ""
    remedy = _PATH if code == errno.ENOENT else _REMEDIES.get(code or 0, "check the path and the space left")
    subject = f"{what} cannot" if what else "cannot"
    return (
        f"{path}: {subject} be written: {reason}{which}; {_free_text(code, file or path)}. "
        f"{_capitalised(remedy)}, then {again}"
    )


def describe_file_error(error: OSError) -> str | None:
    """One line for an error that nobody expected where it occurred: the file, the reason and the remedy.

    Args:
        error: of the operating system, from reading or writing.

    Returns:
        None if the error names no file and does not come from a disk.
    """
    named = error.filename2 or error.filename
    if not isinstance(named, str | bytes) or error.errno is None:
        return describe_disk_error(error, Path()) if is_disk_error(error) else None
    path = Path(os.fsdecode(named))
    if error.errno in _REMEDIES and _REMEDIES[error.errno] != _PATH:
        return describe_disk_error(error, path)
    return f"{path}: {os.strerror(error.errno)}; check the path, or choose another one"


@contextlib.contextmanager
def translate_disk_errors(path: Path, *also: type[Exception], again: str = RESUME_HINT) -> Iterator[None]:
    """Raise disk errors of the block as :class:`index.errors.DiskError`; other errors pass unchanged.

    Args:
        path: the directory or file that is being written, for the message.
        also: library errors whose text may have an error number of the operating system.
        again: what to do once the cause is fixed.

    Raises:
        DiskError: a file cannot be written.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        # A directory that is missing itself was removed meanwhile, or cannot be made, as in /proc.
        gone = isinstance(error, FileNotFoundError) and not path.exists()
        if not gone and not is_disk_error(error):
            raise
        raise DiskError(describe_disk_error(error, path, again)) from error


def new_array_file(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create an npy file mapped for writing, with all of its space allocated.

    Without the allocation a full disk would end the process with SIGBUS when a page is written back.

    Args:
        path: path of the file.
        dtype: dtype of the array.
        shape: shape of the array.

    Returns:
        The mapped array, all zero.

    Raises:
        OSError: the file cannot be created, or there is not enough space.
    """
    mapped: np.memmap[Any, Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(path.stat().st_size, 1))
        except OSError as error:
            if error.errno not in _NO_ALLOCATION:  # a file system without it allocates space page by page
                raise
    return mapped


def allocate(path: Path, descriptor: int, size: int) -> None:
    """Allocate the space of an open file, as a full disk would end the process with SIGBUS at a later write.

    Args:
        path: of the file, for the error.
        descriptor: of the file, open for writing.
        size: bytes from its beginning.

    Raises:
        OSError: there is not enough space; it names the file, as the call of the system does not.
    """
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_stream(path: Path) -> bool:
    """Whether a path is a device, pipe or socket, or an open file such as ``/dev/stdout``.

    It is written as it is: a file that is renamed to its name would replace it, a device for every process.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    opened = os.path.realpath(path.parent).startswith("/proc/") or path.parent == Path("/dev")
    return opened or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def free_space(path: Path) -> str:
    """Free space for this user on the file system of a path, in words."""
    return _free_text(None, path)


def _code(error: BaseException) -> int | None:
    """The errno of an error, also from the text of a library's error; None if there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = _CODE.search(str(error))
    if match is not None:
        return int(match[1])
    return _SHORT_WRITE_CODE if isinstance(error, OSError) and _SHORT_WRITE.fullmatch(str(error)) else None


def _free_text(code: int | None, path: Path) -> str:
    status = _file_system(path)
    if status is None:
        return "its file system does not answer"
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        return f"a file may have {'any size' if limit == resource.RLIM_INFINITY else _size(limit)} here"
    room = f"{_size(status.f_bavail * status.f_frsize)} are free there"
    return (
        f"{room}, but no more files can be made (no inode is left)" if status.f_files and not status.f_favail else room
    )


def _file_system(path: Path) -> os.statvfs_result | None:
    for existing in (path.absolute(), *path.absolute().parents):
        try:
            return os.statvfs(existing)
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                return None
    return None


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, len(_UNITS))
    return f"{count / 1024**power:.1f} {_UNITS[power - 1]}"


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
