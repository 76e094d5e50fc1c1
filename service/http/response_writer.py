"""Writes responses to a connection, the head together with the body.

Uvicorn writes head and body one after the other; each write is a system call and a packet that wakes the client.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_HUNDREDS: Final = len(b"HTTP/1.1 ")  # position of the first digit of the status
_INTERIM, _REFUSED = b"14"  # 100 Continue, for which the client waits; 400 and above


class ResponseWriter:
    """Stands in for the transport of a connection while one response is written.

    The head is buffered until the body, or until :meth:`flush`. No route takes long between the parts of
    its response, so no head waits for long.

    Args:
        transport: of the connection.
        end: closes the connection when everything written to it has been sent.
        refused: the head of a response of status 400 or above → the head that is sent.
    """

    __slots__ = ("_end", "_head", "_refused", "_started", "_transport")

    def __init__(
        self, transport: asyncio.Transport, end: Callable[[], None], refused: Callable[[bytes], bytes]
    ) -> None:
        self._transport = transport
        self._end = end
        self._refused = refused
        self._started = False
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, or buffer the head."""
        if self._started:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif (hundreds := data[_HUNDREDS]) == _INTERIM:
            self._transport.write(data)
        else:
            self._started, self._head = True, data if hundreds < _REFUSED else self._refused(data)

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
