"""The objects of a data set in an object store; every error is one of the data set, with a remedy."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Final

from index.bundle.store.object_store import BLOCK_BYTES, ObjectChanged, ObjectStore, StoredObject
from index.errors import RegistryError, StoreUnavailable
from training.errors import DatasetError

PATIENCE_S: Final = 60
"""Longest time of one request in seconds."""

_METADATA_SERVICE: Final = "/latest/"
_REMEDIES: Final = {
    "(NoSuchBucket)": "check the name of the bucket and AWS_ENDPOINT_URL",
    "(InvalidAccessKeyId)": "check AWS_ACCESS_KEY_ID",
    "(SignatureDoesNotMatch)": "check AWS_SECRET_ACCESS_KEY",
    "(AccessDenied)": "permit s3:ListBucket and s3:GetObject, or check the keys",
    "necessary privileges": "permit s3:ListBucket and s3:GetObject, or check the keys",
}


class DataStore:
    """The objects of a data set.

    Args:
        url: ``s3://bucket/prefix``.

    Attributes:
        url: the URL, without a slash at the end.

    Raises:
        DatasetError: the URL has another form, the endpoint breaks a rule, or the extra is missing.
    """

    def __init__(self, url: str) -> None:
        with _translated():
            self._objects = ObjectStore(url, patience_s=PATIENCE_S)
        self.url = self._objects.url

    def head(self, key: str) -> StoredObject | None:
        """An object; None: there is none.

        Raises:
            DatasetError: the store does not answer, or refuses.
        """
        with _translated():
            return self._objects.head(key)

    def listed(self, prefix: str) -> Iterator[list[StoredObject]]:
        """The objects whose keys begin with ``prefix/``, in blocks; all of them for an empty prefix.

        Raises:
            DatasetError: the store does not answer, or refuses.
        """
        with _translated():
            yield from self._objects.listed(prefix)

    def fetch(self, listed: StoredObject, file: IO[bytes]) -> None:
        """Append the rest of an object to a file.

        Args:
            listed: the object.
            file: its beginning, from an earlier call that broke off; at its end.

        Raises:
            DatasetError: the object was deleted or replaced since it was listed, or does not arrive.
            OSError: the file cannot be written.
        """
        url = f"{self.url}/{listed.key}"
        while (done := file.tell()) < listed.size:
            length = min(BLOCK_BYTES, listed.size - done)
            with _translated():
                try:
                    block = self._objects.read_listed(listed, done, length)
                except FileNotFoundError:
                    raise DatasetError(f"{url}: was deleted while the data set was being read; start again") from None
                except ObjectChanged:
                    raise DatasetError(f"{url}: was replaced while the data set was being read; start again") from None
            file.write(block)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except StoreUnavailable as error:
        raise DatasetError(f"{error}; {_remedy(str(error))}") from None
    except RegistryError as error:
        raise DatasetError(str(error)) from None


def _remedy(message: str) -> str:
    if _METADATA_SERVICE in message and not os.environ.get("AWS_ACCESS_KEY_ID"):
        return "no credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    found = next((remedy for code, remedy in _REMEDIES.items() if code in message), None)
    return found or "start again once the store answers: what has arrived is kept"
