"""Opens the place of a data set: a directory, or a prefix of an object store."""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from training.data.event_weights import EVENTS_FILE
from training.data.stored.data_store import DataStore
from training.data.stored.object_copies import ObjectCopy
from training.data.stored.stored_pictures import PictureFile, StoredPictures
from training.data.stored.table_objects import table_objects
from training.data.tables.mapped_table import data_cache
from training.errors import DatasetError

TABLES: Final[Mapping[str, Sequence[str]]] = {"items": ("csv", "jsonl", "parquet"), "interactions": ("csv", "parquet")}
"""The tables of a data set and their suffixes."""

_LIMIT_VARIABLE: Final = "VLM2REC_DATA_CACHE_MB"
_DEFAULT_LIMIT_MB: Final = 20_000
_URL: Final = re.compile(r"([a-z][a-z0-9+.-]*)://|(s3):", re.IGNORECASE)


@dataclass(frozen=True)
class DataPlace:
    """Where a data set lies.

    Attributes:
        name: the path, or the URL of an object store; messages and records name it.
        directory: of the tables; of an object store, a copy of them.
        pictures: those of an object store; None: they lie in the directory.
    """

    name: str
    directory: Path
    pictures: StoredPictures | None = None
    _copy: ObjectCopy | None = field(default=None, repr=False)

    @classmethod
    def open(cls, data: "AnyPlace") -> "DataPlace":
        """Open a place; the tables of an object store are copied first, unless they have not changed since.

        Args:
            data: a directory, its ``file://`` URL, or ``s3://bucket/prefix``; or a place that is open.

        Raises:
            DatasetError: the URL has another form, or the tables cannot be copied.
        """
        if isinstance(data, DataPlace):
            return data
        found = _URL.match(data) if isinstance(data, str) else None
        if found is None:
            return cls(str(data), Path(data))
        scheme = (found[1] or found[2]).lower()
        if scheme == "file":
            parts = urlsplit(str(data))
            if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
                raise DatasetError("a data set on this machine must be named as file:///path, or by its path")
            return cls(unquote(parts.path), Path(unquote(parts.path)))
        if scheme != "s3":
            raise DatasetError(f"{scheme}:… is no place of a data set: name a directory, or s3://BUCKET/PREFIX")
        return cls._stored(DataStore(str(data)))

    @classmethod
    def _stored(cls, store: DataStore) -> "DataPlace":
        root = data_cache() / hashlib.sha256(store.url.encode()).hexdigest()[:12]
        copy = ObjectCopy(store, root, "tables", table_objects(store, TABLES, [EVENTS_FILE]))
        return cls(store.url, copy.directory, StoredPictures(store, root / "pictures", _limit_bytes()), copy)

    @property
    def short_name(self) -> str:
        """The last part of the name."""
        return Path(self.name).resolve().name if self.pictures is None else self.name.rpartition("/")[2]

    def absolute(self) -> str:
        """The name for a process in another directory."""
        return str(Path(self.name).resolve()) if self.pictures is None else self.name

    def picture(self, name: str | None) -> PictureFile | None:
        """The picture at a path below the place; None if there is none, or the path leads out of it.

        Raises:
            DatasetError: the object store does not answer, or refuses.
        """
        return confined_file(self.directory, name) if self.pictures is None else self.pictures.find(name)

    def named(self, message: str) -> str:
        """A message that names the object store in place of the copy."""
        return message if self.pictures is None else message.replace(str(self.directory), self.name)

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Errors of the block name the object store in place of the copy.

        Raises:
            DatasetError: the one of the block.
        """
        try:
            yield
        except DatasetError as error:
            if self.named(str(error)) == str(error):
                raise
            raise DatasetError(self.named(str(error))) from error


AnyPlace = str | Path | DataPlace
"""A place, open or by its path or URL."""


def confined_file(directory: Path, name: str | None) -> Path | None:
    """The existing file ``name`` inside ``directory``; None if there is none or the path leads out of it."""
    if name is None or not name.strip():
        return None
    try:
        root = directory.resolve()
        path = (root / name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def _limit_bytes() -> int:
    text = os.environ.get(_LIMIT_VARIABLE, "").strip() or str(_DEFAULT_LIMIT_MB)
    if not re.fullmatch(r"[1-9]\d{0,9}", text):
        raise DatasetError(f"{_LIMIT_VARIABLE} must be a number of MiB of at least 1, got {text[:20]!r}; correct it")
    return int(text) << 20
