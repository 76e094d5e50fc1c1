"""AnswerWriter: the head of an answer goes out together with its body.

Uvicorn writes them one after the other, and each write is a call into the system and a packet that wakes the client.
"""

import asyncio
from collections.abc import Callable
from typing import Final

_INTERIM: Final = b"HTTP/1.1 1"  # 100 Continue: the client waits for it


class AnswerWriter:
    """What one request's answer is written to, in the place of its connection's transport.

    The first part is held back until the next one, or until :meth:`flush`. No route answers with a part that is long
    in coming, so no head waits for long.

    Args:
        transport: of the connection.
        end: closes the connection when what was written to it has gone out.
    """

    __slots__ = ("_end", "_head", "_started", "_transport")

    def __init__(self, transport: asyncio.Transport, end: Callable[[], None]) -> None:
        self._transport = transport
        self._end = end
        self._started = False
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, or hold the head back."""
        if self._started:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        elif data.startswith(_INTERIM):
            self._transport.write(data)
        else:
            self._started, self._head = True, data

    def flush(self) -> None:
        """Write what is held back: the answer is complete, it may have no body."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """Close the connection when all of it is written."""
        self.flush()
        self._end()

    def is_closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._transport.is_closing()
