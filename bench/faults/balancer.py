"""Balances requests between replicas of the service, so that a bench can stop one of them.

    python -m bench.faults.balancer 8001 8002

Prints its port. It reads whole requests and answers and takes the ready replicas in turn. A replica whose `/readyz` is
not 200 gets no requests; a request whose connection is refused or closed before the answer goes to another replica.
"""

import asyncio
import contextlib
import sys

import uvloop

_LOOK_S = 0.1
_PATIENCE_S = 5.0
_NOBODY = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n"
_ASK = b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Balancer:
    """Forwards requests to replicas.

    Args:
        ports: where they listen on this machine.
    """

    def __init__(self, ports: list[int]) -> None:
        self._ports = ports
        self._ready = set(ports)
        self._turn = 0

    async def look(self) -> None:
        """Poll the readiness of every replica."""
        while True:
            await asyncio.gather(*(self._look_at(port) for port in self._ports))
            await asyncio.sleep(_LOOK_S)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one client."""
        kept: dict[int, Streams] = {}
        try:
            while True:
                writer.write(await self._answer(await _message(reader), kept))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            for _, own in [*kept.values(), (reader, writer)]:
                own.close()

    async def _answer(self, request: bytes, kept: dict[int, Streams]) -> bytes:
        self._turn += 1
        ready = sorted(self._ready) or self._ports
        first = ready[self._turn % len(ready)]
        for port in [first, *(port for port in self._ports if port != first)]:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                return await _exchange(port, request, kept)
        return _NOBODY

    async def _look_at(self, port: int) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                answer = await _exchange(port, _ASK, {})
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            answer = b""
        (self._ready.add if answer[9:12] == b"200" else self._ready.discard)(port)


async def _exchange(port: int, request: bytes, kept: dict[int, Streams]) -> bytes:
    """Send one request to a replica, on its kept connection if that is still open."""
    reader, writer = kept.pop(port, (None, None))
    if reader is None or writer is None or reader.at_eof() or writer.is_closing():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            writer.write(request)
            answer = await _message(reader)
    except BaseException:
        writer.close()
        raise
    if request is _ASK:
        writer.close()
    else:
        kept[port] = reader, writer
    return answer


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Read head and body of a request or an answer with a Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    at = lower.find(b"content-length:")
    return head if at < 0 else head + await reader.readexactly(int(lower[at + 15 : lower.index(b"\r", at)]))


async def _run(ports: list[int]) -> None:
    balancer = Balancer(ports)
    server = await asyncio.start_server(balancer.pass_on, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await balancer.look()


if __name__ == "__main__":
    uvloop.run(_run([int(port) for port in sys.argv[1:]]))
