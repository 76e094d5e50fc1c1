"""Reads and writes the thumbnails of all items in one memory-mapped file.

``thumbnails.npy`` is an npy file of bytes: n + 1 offsets (int64, little-endian, ascending from 0), then all pictures in
row order. The picture of row r lies between offsets r and r + 1; equal offsets mean that the item has no picture. Every
picture is a JPEG of at most :data:`MAX_SIDE` pixels per side. This package does not make the pictures.
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
"""Most pixels of the longer side."""
_HEADER_BYTES = 128
_OFFSET = np.dtype("<i8")


class Thumbnails:
    """The pictures of n items, read-only; create it with :meth:`load`.

    Args:
        path: the file.
        offsets: (n + 1,) int64 offsets into ``pictures``.
        pictures: (bytes,) uint8, all pictures in row order.
    """

    def __init__(self, path: Path, offsets: NDArray[np.int64], pictures: NDArray[np.uint8]) -> None:
        self._path = path
        self._offsets = offsets
        self._pictures = pictures

    def __len__(self) -> int:
        """Number of rows, with or without a picture."""
        return int(self._offsets.shape[0]) - 1

    @property
    def count(self) -> int:
        """Number of rows with a picture."""
        return int(np.count_nonzero(np.diff(self._offsets)))

    def has(self, row: int) -> bool:
        """Whether a row has a picture.

        Raises:
            ItemTableError: the row does not exist.
        """
        self._check_row(row)
        return bool(self._offsets[row] != self._offsets[row + 1])

    def get(self, row: int) -> bytes | None:
        """The JPEG picture of a row; None if it has none.

        Raises:
            ItemTableError: the row does not exist.
        """
        self._check_row(row)
        return self._pictures[self._offsets[row] : self._offsets[row + 1]].tobytes() or None

    def _check_row(self, row: int) -> None:
        if not 0 <= row < len(self):
            raise ItemTableError(f"rows must lie in 0 … {len(self) - 1}, got {row}")

    def copy_to(self, path: Path) -> None:
        """Copy the file to a path, replacing it atomically; does nothing if the path is this file."""
        if path.exists() and path.samefile(self._path):
            return
        partial = path.with_name(f"{path.name}.part")
        shutil.copyfile(self._path, partial)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, rows: int) -> "Thumbnails":
        """Map a file and check every offset in it.

        Args:
            path: a file that :func:`write_thumbnails` wrote.
            rows: the expected number of rows.

        Raises:
            ItemTableError: the file cannot be read, or has another form or number of rows.
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
    """Writes pictures row by row, with one in memory at a time; use :func:`write_thumbnails`.

    Args:
        file: empty, open for writing.
        rows: number of rows to write.
    """

    def __init__(self, file: BinaryIO, rows: int) -> None:
        self._file = file
        self._offsets = np.zeros(rows + 1, dtype=_OFFSET)
        self._next = 0
        file.seek(_HEADER_BYTES + self._offsets.nbytes)

    def add(self, picture: bytes | None) -> None:
        """Write the JPEG picture of the next row; None if it has none."""
        self._file.write(picture or b"")
        self._offsets[self._next + 1] = self._offsets[self._next] + len(picture or b"")
        self._next += 1

    def finish(self) -> None:
        """Write header and offsets.

        Raises:
            ItemTableError: fewer rows than expected were added.
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
    """Write a file of thumbnails; it is flushed to the disk and renamed to its path once every row was added.

    Args:
        path: the file; its directory must exist.
        rows: number of rows to write.

    Raises:
        ItemTableError: fewer rows than expected were added.
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
