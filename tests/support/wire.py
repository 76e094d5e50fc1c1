"""One connection to the service without a socket: a test passes the segments and reads the answers."""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from service.http.admission import Admission
from service.http.config import GuardedConfig
from service.http.connections import ConnectionLimits, Connections
from service.http.protocol import GuardedProtocol

_TURNS = 10_000


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with method, path and body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    said = b"%s %s %s" % (scope["method"].encode(), scope["raw_path"], body)
    headers = [(b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


class Wire(asyncio.Transport):
    """The server's end of a connection.

    Attributes:
        sent: what the server has written.
        ended: whether it writes no more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def answers(self) -> list[bytes]:
        """The bodies of the answers so far."""
        bodies, rest = [], self.sent
        while b"\r\n\r\n" in rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            bodies.append(rest[:length])
            rest = rest[length:]
        return bodies


class Wires:
    """Makes connections of one server; of one event loop.

    Args:
        app: answers.
        admission: what is in progress.
        headers: of every answer, as the server sets them.
    """

    def __init__(
        self, app: ASGIApp = echo, admission: Admission | None = None, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        connections = Connections(ConnectionLimits(connections=10**6, request_s=60.0), retry_after_s=1)
        self._config = GuardedConfig(
            app,
            connections,
            admission or Admission(10**6),
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
        )
        self._config.load()
        self._headers = headers

    async def answers(self, *segments: bytes, wanted: int) -> list[bytes]:
        """The bodies of the answers to what came in these segments; see :meth:`wire`."""
        return (await self.wire(*segments, wanted=wanted)).answers()

    async def wire(self, *segments: bytes, wanted: int) -> Wire:
        """A connection on which these segments came and that has ended.

        Args:
            *segments: each is received by itself, when what came before has been dealt with.
            wanted: how many answers to wait for; a few turns of the event loop more, in which others could come.
        """
        wire = Wire()
        state = ServerState()
        state.default_headers.extend(self._headers)
        protocol = GuardedProtocol(self._config, state, {})
        protocol.connection_made(wire)
        for segment in segments:
            protocol.data_received(segment)
            await _turns(2)
        for _ in range(_TURNS):
            if wire.ended or len(wire.answers()) >= wanted:
                break
            await asyncio.sleep(0)
        await _turns(5)
        protocol.connection_lost(None)
        await _turns(2)
        return wire


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
