"""Checks the rules of HTTP/1.1 for the head of a request that llhttp does not check."""

import re
from collections.abc import Iterable
from typing import Final

import httptools

from service.http.problems import INVALID_HEAD, NOT_IMPLEMENTED, RequestRefusal

_VERSIONS: Final = frozenset({"1.0", "1.1"})
_HOST: Final = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*")
_MAX_SHOWN: Final = 60


def refusal_of(
    method: str, version: str, headers: Iterable[tuple[bytes, bytes]], target: bytes = b"/"
) -> RequestRefusal | None:
    """The refusal of a request, by the first rule that its head breaks; None: it breaks none.

    A request that two servers could read differently is refused: the one in front may forward requests of several
    clients over one connection.

    Args:
        method: as received.
        version: as in ``1.1``.
        headers: names in lower case, values as received.
        target: as received, a path or a whole address.
    """
    if version not in _VERSIONS:
        return RequestRefusal(INVALID_HEAD, f"the version must be HTTP/1.1 or HTTP/1.0; received HTTP/{version}")
    if method == "CONNECT":
        return RequestRefusal(NOT_IMPLEMENTED, "CONNECT is not implemented: this is not a proxy")
    hosts: list[bytes] = []
    codings: list[bytes] = []
    for name, value in headers:
        if name == b"host":
            hosts.append(value.strip())
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
    if codings:
        refusal = _transfer_refusal(version, b", ".join(codings))
        if refusal is not None:
            return refusal
    return _host_refusal(version, hosts) or _target_refusal(target)


def path_of(url: bytes) -> bytes:
    """Path and query of an absolute address; ``*`` stays.

    Raises:
        httptools.HttpParserInvalidURLError: it is no address.
    """
    if url == b"*":
        return url
    parsed = httptools.parse_url(url)
    query = b"" if parsed.query is None else b"?" + parsed.query
    return (parsed.path or b"/") + query


def head_without(
    name: bytes, method: bytes, version: bytes, target: bytes, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The bytes of a head without the fields of one name.

    Args:
        name: in lower case.
        method: as received.
        version: as in ``1.1``.
        target: as received.
        headers: names in lower case, values as received.
    """
    lines = b"".join(b"%b: %b\r\n" % header for header in headers if header[0] != name)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version, lines)


def _transfer_refusal(version: str, coding: bytes) -> RequestRefusal | None:
    if version == "1.0":
        return RequestRefusal(
            INVALID_HEAD, "Transfer-Encoding must not be in a request of HTTP/1.0; send Content-Length"
        )
    if coding != b"chunked":
        return RequestRefusal(NOT_IMPLEMENTED, f"Transfer-Encoding must be chunked; received {_shown(coding)}")
    return None


def _host_refusal(version: str, hosts: list[bytes]) -> RequestRefusal | None:
    if len(hosts) > 1:
        return RequestRefusal(INVALID_HEAD, f"Host must be sent once; received {len(hosts)}")
    if not hosts:
        return None if version == "1.0" else RequestRefusal(INVALID_HEAD, "Host is required in HTTP/1.1; received none")
    if not _HOST.fullmatch(hosts[0]):
        return RequestRefusal(
            INVALID_HEAD, f"Host must be a name or an address, and a port; received {_shown(hosts[0])}"
        )
    return None


def _target_refusal(target: bytes) -> RequestRefusal | None:
    if target.startswith(b"/"):
        return None
    try:
        path_of(target)
    except httptools.HttpParserInvalidURLError:
        return RequestRefusal(
            INVALID_HEAD, f"the target must be a path or an address with a host; received {_shown(target)}"
        )
    return None


def _shown(value: bytes) -> str:
    return ascii(value[:_MAX_SHOWN].decode("latin-1"))
