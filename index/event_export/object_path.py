"""Names in an object store, with the part of `pathlib.Path` that an export needs.

An object store has neither locks nor renames. A file is written whole by one PUT under its final name, and a file that
several processes change is replaced on the condition that it is as this process read it last.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from index.errors import EventExportError, ExportUnavailable

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

SCHEME: Final = "s3://"
_ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_TIMEOUT: Final = timedelta(seconds=20)
_LONGEST_REASON: Final = 240
_CODE: Final = re.compile(r"<Code>(\w{1,80})</Code>")


class ExportObjectChanged(Exception):
    """Another process has written the file since it was read here."""


class ObjectPath:
    """A name in an object store.

    Args:
        store: of the export.
        place: what the store is called in messages, as in ``s3://bucket/prefix``.
        key: the name within the store; empty for its root.
        versions: version of each name as it was read last, shared by all paths of a store; None: it did not exist.
    """

    def __init__(
        self, store: "ObjectStore", place: str, key: str = "", versions: dict[str, str | None] | None = None
    ) -> None:
        self._store, self._place, self._key = store, place, key
        self._versions = {} if versions is None else versions

    @classmethod
    def of_url(cls, url: str) -> Self:
        """The root of an export in S3.

        Credentials, region and endpoint are those of the usual variables: ``AWS_ACCESS_KEY_ID``,
        ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, those of containers and
        web identities, else the metadata of the instance.

        Args:
            url: ``s3://bucket/prefix``.

        Raises:
            EventExportError: the URL has another form, or obstore is not installed.
        """
        parts = urlsplit(url)
        if not parts.hostname or parts.netloc != parts.hostname or parts.query or parts.fragment:
            raise EventExportError(
                "an export in an object store is called s3://BUCKET/PREFIX; credentials are those of the variables "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        try:
            from obstore.store import S3Store
        except ImportError:
            raise EventExportError("an export in S3 needs the extra s3: pip install 'vlm2rec[s3]'") from None
        place = f"{SCHEME}{parts.netloc}/{parts.path.strip('/')}".rstrip("/")
        endpoint = next((os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name)), None)
        with _translated(place):
            store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                config={} if endpoint is None else {"endpoint": endpoint},
                client_options={"allow_http": (endpoint or "").startswith("http://"), "timeout": _TIMEOUT},
                retry_config={"max_retries": 5, "retry_timeout": _TIMEOUT},
            )
        return cls(store, place)

    def __truediv__(self, part: str) -> "ObjectPath":
        """A name below this one."""
        key = f"{self._key}/{part}" if self._key else part
        return ObjectPath(self._store, self._place, key, self._versions)

    def __str__(self) -> str:
        return f"{self._place}/{self._key}" if self._key else self._place

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self._key.rpartition("/")[2]

    def children(self) -> list["ObjectPath"]:
        """The files and folders directly below this name, by name."""
        import obstore

        prefix = self._key or None
        with _translated(str(self)):
            found = obstore.list_with_delimiter(self._store, prefix)
        keys = {str(part) for part in found["common_prefixes"]} | {meta["path"] for meta in found["objects"]}
        names = {key.removeprefix(f"{self._key}/").strip("/").partition("/")[0] for key in keys}
        return [self / name for name in sorted(names)]

    def read_bytes(self) -> bytes:
        """The content; remembers its version.

        Raises:
            FileNotFoundError: there is no such file.
            ExportUnavailable: the store does not answer, or refuses.
        """
        import obstore

        self._versions[self._key] = None
        with _translated(str(self)):
            found = obstore.get(self._store, self._key)
            content = bytes(found.bytes())
        self._versions[self._key] = found.meta["e_tag"]
        return content

    def age_s(self) -> float:
        """Seconds since the file was written; 0 if there is none.

        Raises:
            ExportUnavailable: the store does not answer, or refuses.
        """
        from datetime import UTC, datetime

        import obstore

        try:
            with _translated(str(self)):
                modified = obstore.head(self._store, self._key)["last_modified"]
        except FileNotFoundError:
            return 0.0
        return (datetime.now(UTC) - modified).total_seconds()

    def write_new(self, content: bytes) -> None:
        """Write a file whose name no other process uses.

        Raises:
            ExportUnavailable: the store does not answer, or refuses; the file may have been written.
        """
        import obstore

        with _translated(str(self)):
            obstore.put(self._store, self._key, content, use_multipart=False)

    def replace_read(self, content: bytes) -> None:
        """Replace a file, or make it, if it is as this process read it last.

        Raises:
            ExportObjectChanged: another process has written it since.
            ExportUnavailable: the store does not answer, or refuses; the file may have been written.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        known = self._versions.get(self._key)
        mode: PutMode = "create" if known is None else {"e_tag": known}
        try:
            with _translated(str(self), AlreadyExistsError, PreconditionError):
                obstore.put(self._store, self._key, content, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError, FileNotFoundError):
            if self._content_now() != content:  # the same content: an answer was lost, and the request repeated
                raise ExportObjectChanged(str(self)) from None

    def delete(self) -> None:
        """Delete a file; nothing if there is none.

        Raises:
            ExportUnavailable: the store does not answer, or refuses.
        """
        import obstore

        try:
            with _translated(str(self)):
                obstore.delete(self._store, self._key)
        except FileNotFoundError:
            return

    def _content_now(self) -> bytes | None:
        try:
            return self.read_bytes()
        except FileNotFoundError:
            return None


ExportPath = Path | ObjectPath
"""A place of an export: on a file system or in an object store."""


def export_path(root: str | ExportPath) -> ExportPath:
    """The place that a command line names: a directory, or ``s3://bucket/prefix``.

    Raises:
        EventExportError: the URL has another form, or obstore is not installed.
    """
    if isinstance(root, str):
        return ObjectPath.of_url(root) if root.startswith(SCHEME) else Path(root)
    return root


@contextmanager
def _translated(place: str, *passed: type[Exception]) -> Iterator[None]:
    """Raise errors of obstore as `ExportUnavailable`, but those that are passed, and a missing file."""
    from obstore.exceptions import BaseError

    unchanged: tuple[type[Exception], ...] = (FileNotFoundError, *passed)
    try:
        yield
    except unchanged:
        raise
    except (BaseError, OSError, ValueError) as error:
        text = str(error)
        code = _CODE.search(text)  # in the body of the answer, after the first line
        reason = code[1] if code else (text.splitlines() or [type(error).__name__])[0][:_LONGEST_REASON]
        raise ExportUnavailable(f"{place}: the object store does not answer or refuses ({reason})") from error
