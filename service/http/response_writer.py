"""Writes responses to a connection: the head together with the body, and refusals as ready bytes.

Uvicorn writes head and body one after the other; each write is a system call and a packet that wakes the client.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.http.problems import ProblemKind, problem_response
from service.http.security_headers import DEFAULTS
from service.request_trace import total_since

_INTERIM: Final = b"HTTP/1.1 1"  # 100 Continue: the client waits for it


class ResponseWriter:
    """Stands in for the transport of a connection while one response is written.

    The head is buffered until the body, or until :meth:`flush`. No route takes long between the parts of
    its response, so no head waits for long.

    Args:
        transport: of the connection.
        end: closes the connection when everything written to it has been sent.
    """

    __slots__ = ("_end", "_head", "_started", "_transport")

    def __init__(self, transport: asyncio.Transport, end: Callable[[], None]) -> None:
        self._transport = transport
        self._end = end
        self._started = False
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, or buffer the head."""
        if self._started:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(_INTERIM):
            self._transport.write(data)
        else:
            self._started, self._head = True, data

    def flush(self) -> None:
        """Write the buffered head: the response is complete and may have no body."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Close the connection when the response is written."""
        self.flush()
        self._end()

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()


def refusal_bytes(
    kind: ProblemKind, detail: str, *, request_id: str, headers: dict[str, str], began: float, has_body: bool = True
) -> bytes:
    """A whole response, head and body, that is written without asking the application.

    Args:
        kind: which problem.
        detail: this occurrence, for a person.
        request_id: sent in head and body.
        headers: further ones.
        began: `perf_counter` seconds when the first bytes of the request were received. ``Server-Timing`` is computed
            last, just before the response is written.
        has_body: False for a response to HEAD; its headers stay.
    """
    response = problem_response(kind, detail, request_id=request_id, headers={**headers, "X-Request-ID": request_id})
    head = b"".join(name + b": " + value + b"\r\n" for name, value in (*response.raw_headers, *DEFAULTS))
    body = bytes(response.body) if has_body else b""
    timing = total_since(began, perf_counter()).encode()
    return b"".join((STATUS_LINE[kind.status], head, b"server-timing: ", timing, b"\r\n\r\n", body))
