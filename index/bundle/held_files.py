"""HeldFiles: the mapped files of a bundle, held open to see whether somebody writes to them.

A page of a mapped file that lies behind the file's end cannot be read: the kernel ends the process with SIGBUS. So a
file that became shorter must be noticed before such a page is touched. The files are asked through descriptors, because
a path may name another file by then.
"""

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from index.errors import BundleInvalid


class HeldFiles:
    """Descriptors of files, from the moment at which they are mapped; closed with this object.

    Args:
        paths: of regular files.

    Raises:
        BundleInvalid: a file cannot be opened.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[Path, int] = {}
        self._seen: dict[Path, tuple[int, int]] = {}
        weakref.finalize(self, _close, self._files)
        for path in paths:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise BundleInvalid(f"{path}: cannot be opened ({error}); publish the bundle again") from error
            self._seen[path] = _state(self._files[path])
        self._sizes = {path: size for path, (size, _) in self._seen.items()}

    def check_sizes(self) -> None:
        """Hold every file to the size that it had when it was mapped; takes microseconds.

        Raises:
            BundleInvalid: a file is shorter now; reading what is mapped of it may end the process.
        """
        for path, descriptor in self._files.items():
            size, _ = _state(descriptor)
            if size < self._sizes[path]:
                raise BundleInvalid(
                    f"{path}: has {size} bytes, but {self._sizes[path]} are mapped: it was written to in place; "
                    "publish bundles with `vlm2rec index publish`, or copy a file aside and rename it, not over one"
                )

    def written(self) -> bool:
        """Whether a file was written to since the last call, or since it was mapped; its hash then says what is true.

        Raises:
            BundleInvalid: a file is shorter now, as for :meth:`check_sizes`.
        """
        self.check_sizes()
        now = {path: _state(descriptor) for path, descriptor in self._files.items()}
        before, self._seen = self._seen, now
        return now != before


def _state(descriptor: int) -> tuple[int, int]:
    """Size in bytes and time of the last write in nanoseconds."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _close(files: dict[Path, int]) -> None:
    for descriptor in files.values():
        os.close(descriptor)
