"""Names in an object store, with the part of `pathlib.Path` that an export needs.

An object store has neither locks nor renames. A file is written whole by one PUT under its final name, and a file that
several processes change is replaced on the condition that it is as this process read it last.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from index.bundle.store.object_store import ObjectChanged, ObjectStore
from index.bundle.store.opening import SCHEME
from index.errors import EventExportError, ExportUnavailable, RegistryError, StoreUnavailable

LARGEST_FILE: Final = 1 << 30
"""Bytes of a file of an export, far above any that is written."""

_URL: Final = re.compile(r"([a-z][a-z0-9+.-]+):/|(s3|kafka):", re.IGNORECASE)


class ExportObjectChanged(Exception):
    """Another process has written the file since it was read here."""


class ObjectPath:
    """A name in an object store.

    Args:
        store: of the export.
        key: the name within the store; empty for its root.
        versions: version of each name as it was read last, shared by all paths of a store; None: it did not exist.
    """

    def __init__(self, store: ObjectStore, key: str = "", versions: dict[str, str | None] | None = None) -> None:
        self._store, self._key = store, key
        self._versions = {} if versions is None else versions

    @classmethod
    def of_url(cls, url: str) -> Self:
        """The root of an export in S3; see `index.bundle.store.opening` for credentials and endpoint.

        Args:
            url: ``s3://bucket/prefix``.

        Raises:
            EventExportError: the URL has another form, the endpoint breaks a rule, or the extra is missing.
        """
        with _translated():
            return cls(ObjectStore(url))

    def __truediv__(self, part: str) -> "ObjectPath":
        """A name below this one."""
        return ObjectPath(self._store, f"{self._key}/{part}" if self._key else part, self._versions)

    def __str__(self) -> str:
        return f"{self._store.url}/{self._key}" if self._key else self._store.url

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self._key.rpartition("/")[2]

    def children(self) -> list["ObjectPath"]:
        """The files and folders directly below this name, by name.

        Raises:
            ExportUnavailable: the store does not answer, or refuses.
        """
        with _translated():
            return [self / name for name in self._store.names(self._key)]

    def read_bytes(self, limit: int = LARGEST_FILE) -> bytes:
        """The content, all of it; remembers its version.

        Args:
            limit: most bytes that it may have.

        Raises:
            FileNotFoundError: there is no such file.
            ExportUnavailable: the store does not answer, refuses, sends a part of the file, or more than allowed.
        """
        self._versions[self._key] = None
        with _translated():
            found = self._store.read(self._key, limit=limit)
        if found is None or found.content is None:
            raise FileNotFoundError(str(self))
        self._versions[self._key] = found.version
        return found.content

    def age_s(self) -> float:
        """Seconds since the file was written; 0 if there is none.

        Raises:
            ExportUnavailable: the store does not answer, or refuses.
        """
        with _translated():
            found = self._store.head(self._key)
        return 0.0 if found is None else (datetime.now(UTC) - found.modified).total_seconds()

    def write_new(self, content: bytes) -> None:
        """Write a file whose name no other process uses.

        Raises:
            ExportUnavailable: the store does not answer, or refuses; the file may have been written.
        """
        with _translated():
            self._store.write(self._key, content)

    def replace_read(self, content: bytes) -> None:
        """Replace a file, or make it, if it is as this process read it last.

        Raises:
            ExportObjectChanged: another process has written it since.
            ExportUnavailable: the store does not answer, or refuses; the file may have been written.
        """
        try:
            with _translated():
                self._store.replace(self._key, content, self._versions.get(self._key))
        except ObjectChanged:
            raise ExportObjectChanged(str(self)) from None

    def delete(self) -> None:
        """Delete a file; nothing if there is none.

        Raises:
            ExportUnavailable: the store does not answer, or refuses.
        """
        with _translated():
            self._store.delete([self._key])


ExportPath = Path | ObjectPath
"""A place of an export: on a file system or in an object store."""


def export_path(root: str | ExportPath) -> ExportPath:
    """The place that a command line names: a directory, or ``s3://bucket/prefix``.

    Raises:
        EventExportError: it is a URL of another kind, whose name a directory would get, or breaks a rule.
    """
    if not isinstance(root, str):
        return root
    found = _URL.match(root)
    if found is None:
        return Path(root)
    scheme = (found[1] or found[2]).lower()
    if scheme != SCHEME:
        raise EventExportError(f"{scheme}:… is no place of exported files: name a directory, or s3://BUCKET/PREFIX")
    return ObjectPath.of_url(root)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise ExportUnavailable(str(error)) from error
    except RegistryError as error:
        raise EventExportError(str(error)) from error
