"""Builds the refusals that a connection writes without asking the application, as ready bytes."""

from collections.abc import Iterable, Mapping
from functools import cache
from time import perf_counter
from typing import Final

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.http.problems import (
    CROWDED,
    HEAD_TOO_LARGE,
    NOT_HTTP,
    NOT_IMPLEMENTED,
    QUEUE_FULL,
    REQUEST_LATE,
    ProblemKind,
    RequestRefusal,
    problem_response,
)
from service.http.security_headers import DEFAULTS
from service.request_trace import total_since

DETAILS: Final = {
    CROWDED: "there are too many connections; try again later",
    HEAD_TOO_LARGE: "address and headers must have at most 65536 bytes together",
    QUEUE_FULL: "more requests are in progress than can be answered soon; ask again later",
    REQUEST_LATE: "address and headers must arrive sooner; send them at once",
}
"""Kind of problem → this occurrence, for a person, where all occurrences are alike."""

# llhttp's message for an unknown coding, or one that is not the last; `request_head.refusal_of` finds most of them.
_UNKNOWN_CODING: Final = "`Transfer-Encoding`"
_CLOSE: Final = b"connection: close\r\n\r\n"


class PreparedRefusal:
    """A whole refusal, head and body, that is written without asking the application.

    In overload it is written thousands of times a second, so that only the request id, the length and the time are
    filled in for each request.

    Args:
        kind: which problem.
        detail: this occurrence, for a person.
        headers: further ones.
    """

    __slots__ = ("_body", "_head")

    def __init__(self, kind: ProblemKind, detail: str, headers: Mapping[str, str]) -> None:
        response = problem_response(kind, detail, request_id="", headers=headers)
        lines = (*response.raw_headers, *DEFAULTS)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in lines if name != b"content-length")
        self._head = b"%b%bcontent-length: " % (STATUS_LINE[kind.status], head)
        self._body = bytes(response.body).removesuffix(b'""}')  # the request id is the last member

    def to(self, request_id: str, *, began: float, has_body: bool = True) -> bytes:
        """The refusal of one request.

        Args:
            request_id: sent in head and body; printable ASCII.
            began: `perf_counter` seconds when the first bytes of the request were received. ``Server-Timing`` is
                computed here, just before the response is written; `Connections.turned_away` measures until after it.
            has_body: False for a response to HEAD; its headers stay.
        """
        body = b"%b%b}" % (self._body, orjson.dumps(request_id))
        return b"%b%d\r\nx-request-id: %b\r\nserver-timing: %b\r\n\r\n%b" % (
            self._head,
            len(body),
            request_id.encode(),
            total_since(began, perf_counter()).encode(),
            body if has_body else b"",
        )


@cache
def queue_full(retry_after_s: int, keep_alive: bool) -> PreparedRefusal:
    """The refusal of a request that came when too many were in progress.

    Args:
        retry_after_s: seconds, sent to the client.
        keep_alive: whether the connection stays open after it.
    """
    headers = {"Retry-After": str(retry_after_s)} | ({} if keep_alive else {"Connection": "close"})
    return PreparedRefusal(QUEUE_FULL, DETAILS[QUEUE_FULL], headers)


def last_refusal(kind: ProblemKind, detail: str | None, retry_after_s: int) -> PreparedRefusal:
    """A refusal that ends its connection.

    Args:
        kind: which problem.
        detail: this occurrence, for a person; None: that of :data:`DETAILS`.
        retry_after_s: seconds, sent where there are too many connections.
    """
    headers = {"Connection": "close"} | ({"Retry-After": str(retry_after_s)} if kind is CROWDED else {})
    return PreparedRefusal(kind, DETAILS[kind] if detail is None else detail, headers)


def unparsed(reason: str) -> RequestRefusal:
    """The refusal of what is not HTTP.

    Args:
        reason: of the parser.
    """
    if _UNKNOWN_CODING in reason:
        return RequestRefusal(NOT_IMPLEMENTED, f"Transfer-Encoding must be chunked; {reason}")
    return RequestRefusal(NOT_HTTP, f"what was received is not HTTP/1.1: {reason}")


def ends_connection(headers: Iterable[tuple[bytes, bytes]], most: int) -> bool:
    """Whether a refusal ends the connection, if the body of its request has not arrived in full (RFC 9110, 10.1.1).

    It does where the body is large, and where its client waits for consent: that client may send another request
    instead of the body. A body of unknown length is read on, as far as the bounds go.

    Args:
        headers: of the request, names in lower case.
        most: bytes of a body that are read after its refusal.
    """
    return any((name == b"content-length" and int(value) > most) or name == b"expect" for name, value in headers)


def with_close(head: bytes) -> bytes:
    """The head of a response with ``Connection: close``; it has no such field yet."""
    return head[:-2] + _CLOSE
