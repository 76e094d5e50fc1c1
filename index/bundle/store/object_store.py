"""Reads and writes the objects below one URL of an object store, with conditional writes and bounded waiting.

Errors of the library become :class:`index.errors.StoreUnavailable`, with neither credentials nor the body of an answer
in the message.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from index.bundle.store.opening import StoreUrl, error_detail, open_store
from index.errors import RegistryError, StoreUnavailable

BLOCK_BYTES: Final = 8 << 20
"""Bytes of one request of a download and of one part of an upload."""

PATIENCE_S: Final = 60
_PARALLEL_PARTS: Final = 4
_LISTED_AT_ONCE: Final = 10_000


class ObjectChanged(Exception):
    """An object is another one than the caller has read or listed."""


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it.

    Attributes:
        key: below the URL of the store.
        size: in bytes.
        modified: time of the write, aware; some stores give fractions of a second in listings alone.
        version: entity tag, empty where it is not known.
    """

    key: str
    size: int
    modified: datetime
    version: str = ""


@dataclass(frozen=True)
class ObjectContent:
    """An object that was read.

    Attributes:
        content: all of it; None: it is the version that the reader knows.
        version: entity tag, for a conditional write.
    """

    content: bytes | None
    version: str


class ObjectStore:
    """The objects below one URL.

    Args:
        url: ``s3://bucket/prefix``.
        patience_s: longest time of one request in seconds; it is not tried again where this is below 10.
        opened: a store of obstore in place of the one that the URL names, such as one in memory; then the URL is only
            what messages call it.

    Attributes:
        url: the URL, without a slash at the end.

    Raises:
        RegistryError: the URL has another form, a profile is named, the endpoint breaks a rule, or the extra is
            missing.
    """

    def __init__(self, url: str, *, patience_s: int = PATIENCE_S, opened: Any = None) -> None:  # noqa: ANN401 - see above
        if opened is None:
            named = StoreUrl.parse(url)
            url, opened = str(named), open_store(named, patience_s=patience_s)
        import obstore

        self.url = url.rstrip("/")
        self._api = obstore
        self._store = opened

    def read(self, key: str, *, limit: int, known: str | None = None) -> ObjectContent | None:
        """Read a small object.

        Args:
            key: below the URL.
            limit: most bytes that it may have.
            known: version that the caller has; its content is not sent again.

        Returns:
            None: there is no such object.

        Raises:
            StoreUnavailable: the store does not answer, sends half of the object, or sends too much.
        """
        from obstore.exceptions import NotModifiedError

        try:
            with self._translated(key):
                try:
                    found = self._api.get(self._store, key, options={} if known is None else {"if_none_match": known})
                except NotModifiedError:
                    return ObjectContent(None, known or "")
                size = found.meta["size"]
                if size > limit:
                    raise StoreUnavailable(f"{self.url}/{key}: has {size} bytes, at most {limit} are allowed")
                content = found.bytes().to_bytes()
                if len(content) != size:
                    raise StoreUnavailable(f"{self.url}/{key}: {len(content)} of {size} bytes arrived; try again")
                return ObjectContent(content, found.meta["e_tag"] or "")
        except FileNotFoundError:
            return None

    def read_range(self, key: str, start: int, length: int) -> memoryview:
        """Read a part of an object; its bytes are not copied, so other threads go on.

        Args:
            key: below the URL.
            start: first byte.
            length: number of bytes, which the object must have.

        Raises:
            FileNotFoundError: there is no such object.
            StoreUnavailable: the store does not answer, or sends fewer bytes.
        """
        with self._translated(key):
            content = memoryview(self._api.get_range(self._store, key, start=start, length=length))
        if len(content) != length:
            raise StoreUnavailable(f"{self.url}/{key}: {len(content)} of {length} bytes arrived; try again")
        return content

    def read_listed(self, listed: StoredObject, start: int, length: int) -> memoryview:
        """Read a part of an object that is still the one of a listing.

        Args:
            listed: the object.
            start: first byte.
            length: number of bytes, which the object must have.

        Raises:
            FileNotFoundError: it was deleted since.
            ObjectChanged: it was replaced since.
            StoreUnavailable: the store does not answer, or sends fewer bytes.
        """
        with self._translated(listed.key):
            found = self._api.get(self._store, listed.key, options={"range": (start, start + length)})
            meta = found.meta
            then = (listed.size, listed.modified.replace(microsecond=0), listed.version or meta["e_tag"] or "")
            if then != (meta["size"], meta["last_modified"].replace(microsecond=0), meta["e_tag"] or ""):
                raise ObjectChanged(listed.key)
            content = memoryview(found.bytes())
        if len(content) != length:
            raise StoreUnavailable(f"{self.url}/{listed.key}: {len(content)} of {length} bytes arrived; try again")
        return content

    def head(self, key: str) -> StoredObject | None:
        """Size and time of an object; None: there is no such object.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        try:
            with self._translated(key):
                found = self._api.head(self._store, key)
        except FileNotFoundError:
            return None
        return StoredObject(key, int(found["size"]), found["last_modified"], found["e_tag"] or "")

    def write(self, key: str, source: bytes | Path) -> None:
        """Write an object whole, in parts where it is large.

        Raises:
            StoreUnavailable: the store does not take it.
        """
        with self._translated(key):
            self._api.put(self._store, key, source, chunk_size=BLOCK_BYTES, max_concurrency=_PARALLEL_PARTS)

    def replace(self, key: str, content: bytes, version: str | None) -> None:
        """Write a small object unless another writer was faster.

        A write whose answer was lost is repeated and then refused, as the object is another one already: its own. So
        what is there decides.

        Args:
            key: below the URL.
            content: the new content.
            version: of the content that the caller has read; None: there was no object.

        Raises:
            ObjectChanged: the object is another one now.
            StoreUnavailable: the store does not take it, or has no conditional writes.
        """
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "create" if version is None else {"e_tag": version}
        try:
            with self._translated(key):
                self._api.put(self._store, key, content, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:  # the last: it is gone
            if not self._holds(key, content):
                raise ObjectChanged(key) from error

    def check_conditional_writes(self) -> None:
        """Check with an object of its own that the store refuses a write whose condition does not hold.

        Raises:
            RegistryError: the store carries it out all the same, so that two publishers could both win.
            StoreUnavailable: the store does not answer.
        """
        key = f"conditional-write-{uuid.uuid4().hex}"
        try:
            self.replace(key, b"1", None)
            for condition in (None, '"00000000000000000000000000000000"'):
                try:
                    self.replace(key, b"2", condition)
                except ObjectChanged:
                    continue
                raise RegistryError(
                    f"{self.url}: the store has no conditional writes (If-None-Match, If-Match), so two publishers "
                    "could overwrite each other; publish to a directory or to another store"
                )
        finally:
            self.delete([key])

    def delete(self, keys: list[str]) -> None:
        """Delete objects; one that is gone already is no error.

        Raises:
            StoreUnavailable: the store does not answer or does not permit it.
        """
        if keys:
            with self._translated(keys[0]):
                self._api.delete(self._store, keys)

    def objects(self, prefix: str) -> list[StoredObject]:
        """The objects whose keys begin with ``prefix/``, as far as the store lists them already.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return [found for block in self.listed(prefix) for found in block]

    def listed(self, prefix: str) -> Iterator[list[StoredObject]]:
        """The same in blocks of some thousand, as the store lists them.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._translated(prefix):
            for block in self._api.list(self._store, prefix=prefix or None, chunk_size=_LISTED_AT_ONCE):
                yield [
                    StoredObject(found["path"], found["size"], found["last_modified"], found["e_tag"] or "")
                    for found in block
                ]

    def names(self, prefix: str) -> list[str]:
        """The names between ``prefix/`` and the next slash or the end of a key, sorted.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._translated(prefix):
            found = self._api.list_with_delimiter(self._store, prefix=prefix or None)
        keys = {*found["common_prefixes"], *(entry["path"] for entry in found["objects"])}
        return sorted({key.rstrip("/").rpartition("/")[2] for key in keys})

    def _holds(self, key: str, content: bytes) -> bool:
        there = self.head(key)
        if there is None or there.size != len(content):
            return False
        found = self.read(key, limit=len(content))
        return found is not None and found.content == content

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, NotModifiedError, PreconditionError):
            raise
        except BaseError as error:
            raise StoreUnavailable(f"{self.url}/{key}: {error_detail(error)}") from None  # its text quotes the answer
