"""A server that speaks Redis' protocol well or badly: late, by halves, rubbish, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Answer = Callable[[list[bytes]], Awaitable[bytes | None]]


def as_list(*values: bytes) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%s\r\n" % (len(value), value) for value in values)


async def own_key(command: list[bytes]) -> bytes:
    """As Redis would, if the list at every key held the key itself."""
    return b"+PONG\r\n" if command[0] == b"PING" else as_list(command[1])


class FakeRedis:
    """What it was asked, and how it answers.

    Attributes:
        answer: gives the bytes sent for a command; None closes the connection.
        asked: every command received but those of connecting.
        connections: how many there were.
    """

    def __init__(self) -> None:
        self.answer: Answer = own_key
        self.asked: list[list[bytes]] = []
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._answered(await _command(reader), writer):
                    await writer.drain()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answered(self, command: list[bytes], writer: asyncio.StreamWriter) -> bool:
        if command[0] == b"CLIENT":
            writer.write(b"+OK\r\n")
            return True
        self.asked.append(command)
        sent = await self.answer(command)
        writer.write(sent or b"")
        return sent is not None

    @property
    def keys(self) -> list[str]:
        return [command[1].decode() for command in self.asked if command[0] == b"LRANGE"]


@asynccontextmanager
async def fake_redis() -> AsyncIterator[FakeRedis]:
    """A server for as long as the context lasts."""
    fake = FakeRedis()
    handlers: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(fake.serve(reader, writer))
        handlers.add(task)
        task.add_done_callback(handlers.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", 0)
    fake.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)  # whoever was accepted last has a handler now
        while handlers:
            for task in handlers:
                task.cancel()
            await asyncio.wait(set(handlers))
        await asyncio.sleep(0)  # and the last connection is closed


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    parts = int((await reader.readuntil())[1:])
    command = []
    for _ in range(parts):
        length = int((await reader.readuntil())[1:])
        command.append((await reader.readexactly(length + 2))[:-2])
    return command
