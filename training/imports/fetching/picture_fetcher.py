"""Fetches a picture from an address within limits of size, time, ports and redirects."""

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import httpcore2
import httpx2

from training.imports.fetching.addresses import AddressRefused, AddressRule, CheckedNetwork, Resolver

_SCHEMES = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?\.?|[0-9a-f:.]{2,45}")
_LONGEST_URL = 4_096
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE_STATUSES = frozenset({408, 425, 429})
_BYTES_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})
_HEADERS = [("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "vlm2rec")]
_SHOWN = 120


@dataclass(frozen=True)
class FetchLimits:
    """Bounds of one fetch.

    Attributes:
        most_bytes: of a picture.
        seconds: from the first name resolution to the last byte, redirects included.
        redirects: most redirects to follow; each target is checked like a new address.
        ports: permitted ports.
    """

    most_bytes: int = 20 << 20
    seconds: float = 30.0
    redirects: int = 5
    ports: frozenset[int] = frozenset(_SCHEMES.values())


@dataclass(frozen=True)
class FetchedPicture:
    """A fetched picture.

    Attributes:
        content: the bytes.
        suffix: derived from the first bytes: ``jpg``, ``png``, ``gif``, ``webp``, ``avif``, ``bmp`` or ``tiff``.
    """

    content: bytes
    suffix: str


@dataclass(frozen=True)
class NotFetched:
    """A failed fetch.

    Attributes:
        reason: one clause.
        retryable: whether a later fetch may succeed: after a timeout, an overloaded server, an unresolved name.
    """

    reason: str
    retryable: bool = False


class _Refused(Exception):
    """An address or response that breaks a rule."""


class PictureFetcher:
    """Fetches pictures one after the other over persistent connections; not thread-safe.

    Args:
        limits: of a fetch.
        rule: which addresses are permitted; no setting relaxes it, see
            :func:`training.imports.fetching.addresses.public_address`.
        resolver: of host names.
        tls: verifies servers; must check certificates and host names.

    Raises:
        ValueError: ``tls`` does not verify.
    """

    def __init__(self, limits: FetchLimits, *, rule: AddressRule, resolver: Resolver, tls: ssl.SSLContext) -> None:
        if tls.verify_mode is not ssl.CERT_REQUIRED or not tls.check_hostname:
            raise ValueError("tls must verify certificates and host names")
        self._limits = limits
        self._network = CheckedNetwork(rule=rule, resolver=resolver)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=tls, max_connections=4, max_keepalive_connections=2, network_backend=self._network
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def fetch(self, address: str) -> FetchedPicture | NotFetched:
        """Fetch one picture.

        Args:
            address: ``http`` or ``https``, without user name and password, on a permitted port.

        Returns:
            The picture, or why the fetch failed; nothing that a server does raises an error.
        """
        self._network.begin(self._limits.seconds)
        try:
            return self._follow(self._checked(address))
        except (_Refused, AddressRefused) as refused:
            return NotFetched(str(refused))
        except httpcore2.TimeoutException:
            return NotFetched(f"took longer than {self._limits.seconds:g} seconds", retryable=True)
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return NotFetched(f"failed: {_one_line(str(error) or type(error).__name__)}", retryable=True)

    def _follow(self, url: httpx2.URL) -> FetchedPicture | NotFetched:
        for _ in range(self._limits.redirects + 1):
            target = httpcore2.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port or _SCHEMES[url.scheme], target=url.raw_path
            )
            with self._pool.stream(
                "GET", target, headers=[("Host", url.netloc.decode("ascii")), *_HEADERS]
            ) as response:
                if response.status not in _REDIRECTS:
                    return self._read(response)
                location = _header(response, b"location")
            url = self._redirected(url, location)
        raise _Refused(f"redirects more than {self._limits.redirects} times")

    def _checked(self, address: str) -> httpx2.URL:
        """Parse an address and check it; the parsed form is used for the connection.

        Raises:
            _Refused: the address breaks a rule.
        """
        if len(address) > _LONGEST_URL:
            raise _Refused(f"the address has more than {_LONGEST_URL:,} characters")
        try:
            url = httpx2.URL(address.strip())
        except (httpx2.InvalidURL, ValueError, UnicodeError) as error:
            raise _Refused(f"the address cannot be read ({_one_line(str(error))})") from error
        if url.scheme not in _SCHEMES:
            raise _Refused(f"the address must begin with http:// or https://, it begins with {url.scheme[:20]!r}")
        if url.userinfo:
            raise _Refused("the address must not hold a user name or password")
        if not _HOST.fullmatch(url.raw_host.decode("ascii")):
            raise _Refused("the address has no proper host name")
        port = url.port or _SCHEMES[url.scheme]
        if port not in self._limits.ports:
            raise _Refused(f"the port {port} is not permitted")
        return url.copy_with(fragment=None)

    def _redirected(self, url: httpx2.URL, location: str) -> httpx2.URL:
        try:
            to = str(url.join(location))
        except (httpx2.InvalidURL, ValueError, UnicodeError) as error:
            raise _Refused(f"redirects to an address that cannot be read ({_one_line(str(error))})") from error
        if not location:
            raise _Refused("redirects to nowhere")
        followed = self._checked(to)
        if url.scheme == "https" and followed.scheme != "https":
            raise _Refused("redirects from https to http")
        return followed

    def _read(self, response: httpcore2.Response) -> FetchedPicture | NotFetched:
        if response.status != 200:
            retryable = response.status >= 500 or response.status in _RETRYABLE_STATUSES
            return NotFetched(f"the server answers {response.status}", retryable=retryable)
        kind = _header(response, b"content-type").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind not in _BYTES_TYPES:
            raise _Refused(f"the server says that it is {_one_line(kind)}, not a picture")
        if _header(response, b"content-encoding").lower() not in ("", "identity"):
            raise _Refused("the server compressed the answer, though it was asked not to")
        too_large = _Refused(f"is larger than {self._limits.most_bytes:,} bytes")
        length = _header(response, b"content-length")
        if length.isascii() and length.isdigit() and int(length[:20]) > self._limits.most_bytes:
            raise too_large
        content = bytearray()
        for part in response.iter_stream():
            content += part
            if len(content) > self._limits.most_bytes:
                raise too_large
        suffix = picture_suffix(bytes(content[:32]))
        if suffix is None:
            raise _Refused("its first bytes are those of no picture" if content else "the answer is empty")
        return FetchedPicture(bytes(content), suffix)


def picture_suffix(start: bytes) -> str | None:
    """The file suffix of a picture by its first bytes (32 suffice); None for any other kind."""
    if start[4:8] == b"ftyp":
        return "avif" if start[8:12] in (b"avif", b"avis") else None
    if start[:4] == b"RIFF":
        return "webp" if start[8:12] == b"WEBP" else None
    for magic, suffix in _MAGIC.items():
        if start.startswith(magic):
            return suffix
    return None


_MAGIC = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG\r\n\x1a\n": "png",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"BM": "bmp",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
}


def _header(response: httpcore2.Response, name: bytes) -> str:
    """The first value of a header; empty if there is none."""
    return next((value.decode("latin-1").strip() for key, value in response.headers if key.lower() == name), "")


def _one_line(text: str) -> str:
    """A text from a server, shortened, without control characters."""
    return "".join(char if char.isprintable() else " " for char in text)[:_SHOWN]


MakeFetcher = Callable[[], PictureFetcher]
"""Makes a fetcher for one thread."""
