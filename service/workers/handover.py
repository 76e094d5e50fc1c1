"""Passes new connections on to the worker that has the fewest, and ends some where a worker has too many.

The kernel spreads connections by chance, and the few long-lived ones of a proxy unevenly (docs/adr/0030). So a worker
that would have two more than another passes a new connection on before it has read from it. The other one takes the
descriptor from a socket that the parent owns, so it is not lost when that worker dies: its replacement takes it.

Open connections become uneven when a worker dies or clients leave. A worker that has had clearly more than its share
for a second ends one after another, each with a response that says so; their clients connect again. It ends none while
another request of that client has arrived.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import Sequence
from functools import partial
from itertools import chain
from math import inf
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.http.protocol import GuardedProtocol
from service.runtime.worker_board import WorkerBoard, WorkerState

FEWER: Final = 2
"""Connections by which one worker must have fewer than another to get one from it."""
SHARE: Final = 1.25
"""Times the mean of all workers: from here on a worker has clearly more connections than its share."""
_RECENT_S: Final = 0.02
_SILENT_S: Final = 0.5
_UNEVEN_S: Final = 1.0
_MOVE_S: Final = 0.1


class Handover:
    """The way of new connections between one worker and the others.

    Args:
        number: of this worker.
        board: with the number of connections of each.
        inboxes: for each worker a pair of sockets: descriptors are received from the first, sent to the second.

    Attributes:
        inbox: from which this worker takes connections.
    """

    def __init__(self, number: int, board: WorkerBoard, inboxes: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        self._number = number
        self._board = board
        self._outboxes = {other: outbox for other, (_, outbox) in enumerate(inboxes, 1) if other != number}
        for end in chain.from_iterable(inboxes):
            end.setblocking(False)  # `socket.send_fds` ignores its flags
        self._sent: dict[int, int] = {}
        self._sent_until = 0.0
        self._closed = False
        self._look_at = 0.0
        self._uneven_since = inf
        self.inbox = inboxes[number - 1][0]

    def close(self) -> None:
        """Pass no connection on from now on."""
        self._closed = True

    def count(self, mine: int) -> None:
        """Show the others how many connections this worker has."""
        self._board.set_connections(self._number, mine)

    def pass_on(self, transport: asyncio.Transport, mine: int, now: float) -> bool:
        """Pass a connection on if another worker has clearly fewer.

        Args:
            transport: of the connection, from which nothing was read.
            mine: connections of this worker without it.
            now: seconds of the event loop.

        Returns:
            Whether another worker has it now; it must be closed here.
        """
        if now > self._sent_until:  # by now the board counts them
            self._sent.clear()
            self._sent_until = now + _RECENT_S
        ready = [other for other in self._outboxes if self._is_ready(other)]
        if self._closed or not ready:
            return False
        fewest = min(ready, key=self._count_of)
        if mine + 1 - self._count_of(fewest) < FEWER:
            return False
        with contextlib.suppress(OSError):  # its queue is full
            descriptor = transport.get_extra_info("socket").fileno()
            socket.send_fds(self._outboxes[fewest], [b"c"], [descriptor])
            self._sent[fewest] = self._sent.get(fewest, 0) + 1
            return True
        return False

    def moves_one(self, mine: int, now: float) -> bool:
        """Decide whether a connection should be ended after its response, so that its client connects again.

        It should if this worker has had clearly more connections than its share for a second: at least 1.25 times the
        mean of all, and two more than another. One connection in a tenth of a second is moved.

        Args:
            mine: connections of this worker.
            now: seconds of the event loop.
        """
        if now < self._look_at:
            return False
        self._look_at = now + _MOVE_S
        others = [self._board.connections(other) for other in self._outboxes if self._is_ready(other)]
        mean = (mine + sum(others)) / (1 + len(others))
        if self._closed or not others or mine - min(others) < FEWER or mine < SHARE * mean:
            self._uneven_since = inf
            return False
        self._uneven_since = min(self._uneven_since, now)
        return now - self._uneven_since >= _UNEVEN_S

    def take(self) -> socket.socket | None:
        """A connection that another worker passed on; None: there is none."""
        try:
            _, descriptors, _, _ = socket.recv_fds(self.inbox, 1, 1)
        except BlockingIOError:
            return None
        taken = socket.socket(fileno=descriptors[0])
        taken.setblocking(False)
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return taken

    def _is_ready(self, other: int) -> bool:
        return self._board.state(other) is WorkerState.READY and self._board.silence_s(other) < _SILENT_S

    def _count_of(self, other: int) -> int:
        return self._board.connections(other) + self._sent.get(other, 0)


class PassingProtocol(GuardedProtocol):
    """A connection that may be passed on when it is made, and may have to move when others are too few.

    Args:
        handover: to other workers.
        passes: whether it may be passed on; one that was may not be again.
        **of_uvicorn: as uvicorn creates protocols.
    """

    def __init__(self, handover: Handover, passes: bool, **of_uvicorn: Any) -> None:  # noqa: ANN401 - uvicorn's types
        super().__init__(**of_uvicorn)
        self._handover = handover
        self._passes = passes
        self._is_elsewhere = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Pass the connection on, or register it."""
        if self._passes and self._handover.pass_on(transport, len(self._connections), self.loop.time()):
            self._is_elsewhere = True
            transport.abort()  # closes the descriptor of this process only
            return
        super().connection_made(transport)
        self._handover.count(len(self._connections))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's types
        """Start answering a request; its response may announce the end of the connection."""
        if (
            not self._discards
            and cycle.keep_alive
            and self._handover.moves_one(len(self._connections), self.loop.time())
        ):
            app = partial(self._answer_last, cycle, app)
        super()._start_asgi_task(cycle, app)

    async def _answer_last(
        self, cycle: RequestResponseCycle, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer, and announce the end of the connection in the response if no other request waits by then."""

        async def announce(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_last(cycle):
                self._stop_reading()
            await send(message)

        await app(scope, receive, announce)

    def _is_last(self, cycle: RequestResponseCycle) -> bool:
        """Whether a request has arrived whole and nothing behind it, neither read nor unread.

        After the announcement no request may be answered (RFC 9112, 9.6), so it is made only now, with the response.
        """
        if cycle is not self.cycle or cycle.more_body or self._in_head or self.flow.write_paused:
            return False  # where writing is paused the response waits, and requests could come meanwhile
        return not _unread_bytes(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection, unless another worker has it."""
        if not self._is_elsewhere:
            super().connection_lost(exc)
            self._handover.count(len(self._connections))


def _unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes that a connection has received and that this process has not read."""
    count = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", count)[0])
