"""Thumbnails: a small picture of each item in one file, mapped instead of read.

``thumbnails.npy`` is an npy file of bytes: first n + 1 offsets (int64, little-endian, ascending from 0), then all
pictures one after the other, that of row r from offset r to offset r + 1. Two equal offsets: the item has none. Every
picture is a JPEG of at most :data:`MAX_SIDE` pixels a side. How they are made is not of this package.
"""

import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from index.errors import ItemTableError
from index.items.mapped_array import view_array

THUMBNAILS_FILE = "thumbnails.npy"
MEDIA_TYPE = "image/jpeg"
MAX_SIDE: Final = 256
"""Pixels of the longer side, at most."""
_HEADER_BYTES = 128
_OFFSET = np.dtype("<i8")


class Thumbnails:
    """The pictures of n items, read-only; make one with :meth:`load`.

    Args:
        path: the file.
        offsets: (n + 1,) int64 into ``pictures``.
        pictures: (bytes,) uint8, one after the other.
    """

    def __init__(self, path: Path, offsets: NDArray[np.int64], pictures: NDArray[np.uint8]) -> None:
        self._path = path
        self._offsets = offsets
        self._pictures = pictures

    def __len__(self) -> int:
        """Rows, those without a picture too."""
        return int(self._offsets.shape[0]) - 1

    @property
    def count(self) -> int:
        """Rows with a picture."""
        return int(np.count_nonzero(np.diff(self._offsets)))

    def has(self, row: int) -> bool:
        """Whether a row has a picture; raises as :meth:`get`."""
        self._check_row(row)
        return bool(self._offsets[row] != self._offsets[row + 1])

    def get(self, row: int) -> bytes | None:
        """The picture of a row, a JPEG; None if it has none.

        Raises:
            ItemTableError: there is no such row.
        """
        self._check_row(row)
        return self._pictures[self._offsets[row] : self._offsets[row + 1]].tobytes() or None

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise ItemTableError(f"rows must lie in 0 … {len(self) - 1}, got {row}")

    def copy_to(self, path: Path) -> None:
        """Copy the file, aside first; over itself does nothing."""
        if path.exists() and path.samefile(self._path):
            return
        partial = path.with_name(f"{path.name}.part")
        shutil.copyfile(self._path, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, rows: int) -> "Thumbnails":
        """Map a file and check every offset in it.

        Args:
            path: what :class:`ThumbnailWriter` wrote.
            rows: that it must have.

        Raises:
            ItemTableError: the file cannot be read, or is not of that form.
        """
        try:
            with path.open("rb") as file:
                content = view_array(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise ItemTableError(f"the thumbnails cannot be read ({error})") from error
        head = (rows + 1) * _OFFSET.itemsize
        if content.dtype != np.uint8 or content.ndim != 1 or content.shape[0] < head:
            raise ItemTableError(f"thumbnails of {rows} rows must be at least {head} bytes, got {content.shape}")
        offsets, pictures = content[:head].view(_OFFSET), content[head:]
        if offsets[0] != 0 or offsets[-1] != pictures.shape[0] or (offsets[1:] < offsets[:-1]).any():
            raise ItemTableError(f"the offsets of thumbnails must ascend from 0 to {pictures.shape[0]}")
        return cls(path, offsets.astype(np.int64, copy=False), pictures)


class ThumbnailWriter:
    """Writes the pictures row by row, so that never more than one is in memory; use :func:`write_thumbnails`.

    Args:
        file: empty, open for writing.
        rows: how many there will be.
    """

    def __init__(self, file: BinaryIO, rows: int) -> None:
        self._file = file
        self._offsets = np.zeros(rows + 1, dtype=_OFFSET)
        self._next = 0
        file.seek(_HEADER_BYTES + self._offsets.nbytes)

    def add(self, picture: bytes | None) -> None:
        """Write the picture of the next row, a JPEG; None where it has none."""
        self._file.write(picture or b"")
        self._offsets[self._next + 1] = self._offsets[self._next] + len(picture or b"")
        self._next += 1

    def finish(self) -> None:
        """Write header and offsets.

        Raises:
            ItemTableError: not every row was added.
        """
        rows = self._offsets.shape[0] - 1
        if self._next != rows:
            raise ItemTableError(f"{rows} thumbnails must be written, got {self._next}; make them again")
        size = self._offsets.nbytes + int(self._offsets[-1])
        text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}".encode()
        length = _HEADER_BYTES - 10
        header = b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1) + b"\n"
        self._file.seek(0)
        self._file.write(header + self._offsets.tobytes())


@contextmanager
def write_thumbnails(path: Path, rows: int) -> Iterator[ThumbnailWriter]:
    """Write a file of thumbnails aside; it is flushed to the disk and put in place when every row was added.

    Args:
        path: where it goes; its directory exists.
        rows: how many there will be.

    Raises:
        ItemTableError: not every row was added.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        with partial.open("wb") as file:
            writer = ThumbnailWriter(file, rows)
            yield writer
            writer.finish()
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
