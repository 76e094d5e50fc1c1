"""Reads and writes the objects below one URL of an object store, with conditional writes and bounded waiting.

Errors of the library become :class:`index.errors.StoreUnavailable`, with neither credentials nor the body of an answer
in the message. Credentials, region and endpoint come from the usual ``AWS_*`` variables, a web identity token, or the
metadata service of the container or machine.
"""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from index.errors import RegistryError, StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

BLOCK_BYTES: Final = 8 << 20
"""Bytes of one request of a download and of one part of an upload."""

_SCHEME: Final = "s3"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PARALLEL_PARTS: Final = 4
_CONNECT_S: Final = 3
_LONGEST_DETAIL: Final = 200


class ObjectChanged(Exception):
    """A conditional write was refused, because the object is another one than the writer has read."""


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it.

    Attributes:
        key: below the URL of the store.
        size: in bytes.
        modified: time of the write, aware.
    """

    key: str
    size: int
    modified: datetime


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

    Attributes:
        url: as given, without a slash at the end.

    Raises:
        RegistryError: the URL has another form, a profile is named that cannot be read, or the extra is missing.
    """

    def __init__(self, url: str, *, patience_s: int = 60) -> None:
        parts = urlsplit(url)
        prefix = parts.path.strip("/")
        if parts.scheme != _SCHEME or not _BUCKET.fullmatch(parts.netloc) or parts.query or parts.fragment:
            raise RegistryError(f"{_without_user(url)!r}: must have the form {_SCHEME}://bucket/prefix")
        if any(part in {"", ".", ".."} for part in prefix.split("/")):
            raise RegistryError(f"{url!r}: a registry needs a prefix of its own: {_SCHEME}://bucket/prefix")
        if os.environ.get("AWS_PROFILE"):
            raise RegistryError(
                "AWS_PROFILE is set, but profiles are not read: unset it and export the keys, as with "
                "`aws configure export-credentials --format env`"
            )
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as error:
            raise RegistryError(f"{url}: the extra is missing; install vlm2rec[{_SCHEME}]") from error
        self.url = url.rstrip("/")
        self._api = obstore
        client: ClientConfig = {
            "timeout": timedelta(seconds=patience_s),
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "allow_http": _endpoint().startswith("http://"),
        }
        retries: RetryConfig = {
            "max_retries": 0 if patience_s < 10 else 2,  # a poll is followed by the next one
            "retry_timeout": timedelta(seconds=patience_s),
        }
        try:
            self._store: Any = S3Store(
                parts.netloc,
                prefix=prefix,
                client_options=client,
                retry_config=retries,
                checksum_algorithm="SHA256",  # the store refuses what did not arrive whole
            )
        except Exception as error:
            raise RegistryError(f"{url}: cannot be opened ({_detail(error)})") from error

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

    def size(self, key: str) -> int | None:
        """Bytes of an object; None: there is no such object.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        try:
            with self._translated(key):
                return int(self._api.head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def write(self, key: str, source: bytes | Path) -> None:
        """Write an object whole, in parts where it is large.

        Raises:
            StoreUnavailable: the store does not take it.
        """
        with self._translated(key):
            self._api.put(self._store, key, source, chunk_size=BLOCK_BYTES, max_concurrency=_PARALLEL_PARTS)

    def replace(self, key: str, content: bytes, version: str | None) -> None:
        """Write a small object unless another writer was faster.

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
        except (AlreadyExistsError, PreconditionError) as error:
            raise ObjectChanged(key) from error
        except FileNotFoundError as error:  # so S3 answers where the object to replace is gone
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
        with self._translated(prefix):
            return [
                StoredObject(found["path"], found["size"], found["last_modified"])
                for block in self._api.list(self._store, prefix=prefix)
                for found in block
            ]

    def folders(self, prefix: str) -> list[str]:
        """The names between ``prefix/`` and the next slash of a key.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with self._translated(prefix):
            found = self._api.list_with_delimiter(self._store, prefix=prefix)
        return [path.rsplit("/", 1)[-1] for path in found["common_prefixes"]]

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, NotModifiedError, PreconditionError):
            raise
        except BaseError as error:
            raise StoreUnavailable(f"{self.url}/{key}: {_detail(error)}") from None  # its text quotes the answer


def _endpoint() -> str:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def _detail(error: Exception) -> str:
    """What went wrong, without the body of an answer: that of a refused request repeats the id of the key."""
    text = str(error).partition("\n")[0]
    code = re.search(r"<Code>(\w{1,60})</Code>", str(error))
    return text.partition("<")[0].strip(" :")[:_LONGEST_DETAIL] + (f" ({code[1]})" if code else "")


def _without_user(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)[:_LONGEST_DETAIL]
