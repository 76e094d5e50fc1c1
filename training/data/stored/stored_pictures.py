"""Fetches pictures from an object store when they are read, and keeps them in a local directory of bounded size."""

import contextlib
import hashlib
import os
import posixpath
import tempfile
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path
from typing import Final, Literal, NamedTuple

import polars as pl

from index.bundle.store.object_store import StoredObject
from index.machine.disk import describe_disk_error
from training.data.stored.data_store import DataStore
from training.data.tables.mapped_table import CACHE_VARIABLE
from training.errors import DatasetError

_SECOND_NS: Final = 1_000_000_000
_LEFT_SHARE: Final = 0.9
_UNSEEN_SHARE: Final = 0.05
_SCHEMA: Final = {"key": pl.String(), "size": pl.Int64(), "seconds": pl.Int64(), "version": pl.String()}


class PictureStatus(NamedTuple):
    """What a listing says of a picture, named as in `os.stat_result`.

    Attributes:
        st_size: in bytes.
        st_mtime_ns: time of the write, nanoseconds since 1970 UTC; as stores give seconds, the rest is a hash of the
            entity tag.
    """

    st_size: int
    st_mtime_ns: int


class StoredPictures:
    """The pictures of a data set.

    Args:
        store: holds the data set.
        root: directory of the copies.
        limit_bytes: most bytes of all copies, which each of several processes may exceed by 5 %; those used longest ago
            are removed.
    """

    def __init__(self, store: DataStore, root: Path, limit_bytes: int) -> None:
        self._store, self._root, self._limit_bytes = store, root, limit_bytes
        self._lock = threading.Lock()
        self._listing: pl.DataFrame | None = None
        self._bytes: int | None = None  # of all copies, as this object knows
        self._unseen = 0  # bytes of copies since it looked for those of other processes

    def find(self, name: str | None) -> "StoredPicture | None":
        """A picture by its path below the prefix; None if there is none, or the path leads out of the prefix.

        The first call lists all objects of the data set.

        Raises:
            DatasetError: the store does not answer, or refuses.
        """
        if name is None or not name.strip() or name.startswith("/") or "\0" in name:
            return None
        key = posixpath.normpath(name)
        if key == "." or key.split("/")[0] == "..":
            return None
        listing = self._listed()
        place = int(listing["key"].search_sorted(key))
        if place == listing.height or listing["key"][place] != key:
            return None
        if listing["size"][place] == 0 and _is_folder(listing["key"], key):
            return None
        return StoredPicture(self, f"{self._store.url}/{key}", **listing.row(place, named=True))

    def open(self, picture: "StoredPicture") -> BufferedReader:
        """The content of a picture, fetched unless there is a copy; stays readable when the copy is removed.

        Raises:
            DatasetError: the picture was deleted or replaced since it was listed, or does not arrive; or the disk
                refuses it.
        """
        state = f"{picture.key}\0{picture.size}\0{picture.seconds}\0{picture.version}"
        digest = hashlib.sha256(state.encode()).hexdigest()[:32]
        path = self._root / digest[:2] / digest
        try:
            with contextlib.suppress(FileNotFoundError):
                file = path.open("rb")
                os.utime(path)  # used last now
                return file
            return self._fetched(picture, path)
        except OSError as error:
            remedy = f"name another directory with {CACHE_VARIABLE}, start again"
            raise DatasetError(describe_disk_error(error, self._root, remedy, what=str(picture))) from error

    def _fetched(self, picture: "StoredPicture", path: Path) -> BufferedReader:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._make_room(picture.size)
        stored = StoredObject(picture.key, picture.size, datetime.fromtimestamp(picture.seconds, UTC), picture.version)
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                self._store.fetch(stored, file)
            found = Path(partial).open("rb")  # noqa: SIM115 - given to the caller, before another process can remove it
            Path(partial).rename(path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        return found

    def _make_room(self, size: int) -> None:
        """Count a new copy; beyond the bound remove those used longest ago."""
        with self._lock:
            self._unseen += size
            if (
                self._bytes is not None
                and self._bytes + size <= self._limit_bytes
                and self._unseen <= _UNSEEN_SHARE * self._limit_bytes
            ):
                self._bytes += size
                return
            copies = sorted(self._copies())
            held = sum(bytes_ for _, bytes_, _ in copies)
            if held + size > self._limit_bytes:
                for _, bytes_, path in copies:
                    if held + size <= _LEFT_SHARE * self._limit_bytes:
                        break
                    path.unlink(missing_ok=True)
                    held -= bytes_
            self._bytes, self._unseen = held + size, 0

    def _copies(self) -> list[tuple[int, int, Path]]:
        """When each copy was used last, its size and path."""
        found = []
        for path in self._root.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):  # another process removes it
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return found

    def _listed(self) -> pl.DataFrame:
        """Key, size, time and entity tag of every object, by key."""
        with self._lock:
            if self._listing is None:
                blocks = [pl.DataFrame(schema=_SCHEMA)]
                for block in self._store.listed(""):
                    rows = [(one.key, one.size, int(one.modified.timestamp()), one.version) for one in block]
                    blocks.append(pl.DataFrame(rows, schema=_SCHEMA, orient="row"))
                self._listing = pl.concat(blocks).sort("key")
            return self._listing


def _is_folder(keys: pl.Series, key: str) -> bool:
    """Whether other keys, which are sorted, lie below one; stores mark folders with empty objects."""
    place = int(keys.search_sorted(f"{key}/"))
    return place < len(keys) and str(keys[place]).startswith(f"{key}/")


@dataclass(frozen=True)
class StoredPicture:
    """A picture in an object store, with the part of `pathlib.Path` that reading a picture needs.

    Attributes:
        pictures: of its data set.
        url: address, for messages.
        key: below the data set's URL.
        size: in bytes.
        seconds: time of the write, since 1970 UTC.
        version: entity tag, empty where the store gives none.
    """

    pictures: StoredPictures = field(repr=False, compare=False)
    url: str
    key: str
    size: int
    seconds: int
    version: str

    def open(self, _mode: Literal["rb"] = "rb") -> BufferedReader:
        """Its content, see :meth:`StoredPictures.open`."""
        return self.pictures.open(self)

    def stat(self) -> PictureStatus:
        """Size and time as they were listed, see :class:`PictureStatus`; nothing is fetched."""
        fraction = int.from_bytes(hashlib.sha256(self.version.encode()).digest()[:8]) % _SECOND_NS
        return PictureStatus(self.size, self.seconds * _SECOND_NS + fraction)

    def __str__(self) -> str:
        return self.url


PictureFile = Path | StoredPicture
"""A picture: a file, or an object of an object store."""
