"""Reads a bundle's mapped files into the page cache, and detects later writes to them.

Searches read a graph in random order. From a cold disk the first searches wait for thousands of single pages, two
seconds in all for a million items; one sequential read takes a tenth of that. ``POSIX_FADV_WILLNEED`` does not help: on
Linux it reads a few MiB at most.

Reading a mapped page behind the end of its file ends the process with SIGBUS. A file that became shorter must therefore
be detected before such a page is read. Sizes are read from open descriptors, because the path may name another file by
then.
"""

import os
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

from index.errors import BundleInvalid

_LARGEST_SHARE = 0.5  # of the machine's memory; more would evict the pages of other processes
_PIECE_BYTES = 1 << 22


class MappedFiles:
    """Open descriptors of mapped files; closed with this object.

    Create it before the files are mapped, so that no write in between is missed.

    Args:
        paths: regular files.

    Raises:
        BundleInvalid: a file cannot be opened.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._descriptors: dict[Path, int] = {}
        self._last_state: dict[Path, tuple[int, int]] = {}
        weakref.finalize(self, _close, self._descriptors)
        for path in paths:
            try:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise BundleInvalid(f"{path}: cannot be opened ({error}); publish the bundle again") from error
            self._last_state[path] = _state(self._descriptors[path])
        self._sizes = {path: size for path, (size, _) in self._last_state.items()}

    def check_sizes(self) -> None:
        """Check that no file is shorter than when it was mapped; takes microseconds.

        Raises:
            BundleInvalid: a file is shorter; reading its mapping may end the process.
        """
        for path, descriptor in self._descriptors.items():
            size, _ = _state(descriptor)
            if size < self._sizes[path]:
                raise BundleInvalid(
                    f"{path}: has {size} bytes, but {self._sizes[path]} are mapped: it was written to in place; "
                    "publish bundles with `vlm2rec index publish`, or copy a file aside and rename it, not over one"
                )

    def written(self) -> bool:
        """Whether a file was written to since the previous call (the first call: since it was mapped).

        A write does not have to change the content; only the file's hash shows that.

        Raises:
            BundleInvalid: a file is shorter than when it was mapped.
        """
        self.check_sizes()
        state = {path: _state(descriptor) for path, descriptor in self._descriptors.items()}
        before, self._last_state = self._last_state, state
        return state != before


def read_ahead(paths: Iterable[Path]) -> None:
    """Read files into the system's page cache on a background thread, one after another.

    An unreadable file is skipped: the code that opens it reports the error. Nothing is read if the files together are
    larger than half of the machine's memory. The memory limit of a container is ignored: the kernel evicts cached pages
    there.

    Args:
        paths: verified regular files.
    """
    threading.Thread(target=_read, args=(tuple(paths),), name="read-ahead", daemon=True).start()


def _read(paths: tuple[Path, ...]) -> None:
    piece = bytearray(_PIECE_BYTES)
    try:
        if sum(path.stat().st_size for path in paths) > _LARGEST_SHARE * _memory_bytes():
            return
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(piece):  # releases the interpreter's lock
                    pass
    except OSError:
        return


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _state(descriptor: int) -> tuple[int, int]:
    """Size in bytes, and time of the last write in nanoseconds."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _close(descriptors: dict[Path, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
