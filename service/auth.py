"""API keys: several at once, so that they can be rotated; compared in constant time; never logged or answered."""

import hashlib
import hmac
from collections.abc import Iterable

from starlette.datastructures import Headers

from service.errors import KeyMissing, KeyRefused


class KeyRing:
    """The keys that open one group of routes.

    Args:
        keys: none at all leave the group open or closed, as ``open_without_keys`` says.
        open_without_keys: True for data routes, False for admin routes.
    """

    def __init__(self, keys: Iterable[str], *, open_without_keys: bool) -> None:
        self._digests = tuple(_digest(key) for key in keys)
        self._open = open_without_keys and not self._digests

    def check(self, headers: Headers) -> None:
        """Let a request through or refuse it; the key is in ``Authorization: Bearer`` or ``X-API-Key``.

        Raises:
            KeyMissing: a key is needed and none was sent.
            KeyRefused: the key sent is not one of these, or there is no key that would open the group.
        """
        if self._open:
            return
        if not self._digests:
            raise KeyRefused("this route is closed: no key is set that opens it")
        sent = _key_in(headers)
        if sent is None:
            raise KeyMissing("send an API key as `Authorization: Bearer KEY` or `X-API-Key: KEY`")
        digest = _digest(sent)
        if sum(hmac.compare_digest(digest, known) for known in self._digests) == 0:
            raise KeyRefused("the API key sent does not open this route")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _key_in(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")
