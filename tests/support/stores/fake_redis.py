"""A server that speaks Redis' protocol correctly, late, partly or not at all, and a pipeline to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from service.errors import RedisUnavailable
from service.stores.redis_client import Connect, connector
from service.stores.redis_pipeline import RedisPipeline

PATIENT_S = 20.0
"""A timeout that passes only when a test moves the clock, however slow the machine is."""

PROBE = [b"LRANGE", b"vlm2rec:probe", b"0", b"0"]
Answer = Callable[[list[bytes]], Awaitable[bytes | None]]


def as_list(*values: bytes) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%s\r\n" % (len(value), value) for value in values)


async def own_key(command: list[bytes]) -> bytes:
    """The answer of a Redis in which the list at every key contains the key itself."""
    return as_list(command[1])


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
        self.writers: set[asyncio.StreamWriter] = set()
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._answered(await _command(reader), writer):
                    await writer.drain()
        finally:
            self.writers.discard(writer)
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

    async def kick(self) -> None:
        """Close every connection, and wait until the other side can notice."""
        for writer in self.writers:
            writer.close()
        while self.writers:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.02)

    @property
    def keys(self) -> list[str]:
        return [command[1].decode() for command in self.asked if command[0] == b"LRANGE" and command != PROBE]


@asynccontextmanager
async def fake_redis() -> AsyncIterator[FakeRedis]:
    """A server that runs until the end of the context."""
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
        await asyncio.sleep(0.01)  # lets the last accepted connection get its handler
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


@asynccontextmanager
async def linked(timeout_s: float = 0.1) -> AsyncIterator[tuple[FakeRedis, RedisPipeline]]:
    async with fake_redis() as fake:
        pipeline = RedisPipeline(connector(fake.url), timeout_s=timeout_s, clock=asyncio.get_running_loop().time)
        try:
            yield fake, pipeline
        finally:
            await pipeline.close()


class MovableLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock a test can move on, so that a timeout passes when the test wants it to."""

    moved_s = 0.0

    def time(self) -> float:
        return super().time() + self.moved_s


def move_clock(seconds: float) -> None:
    """Let this much time pass in the running loop of `run`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, MovableLoop)
    loop.moved_s += seconds


def run(check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=MovableLoop) as runner:
        runner.run(asyncio.wait_for(check(), 30 * PATIENT_S))


def patient_pipeline(connect: Connect) -> RedisPipeline:
    """A pipeline whose timeouts pass by `move_clock` alone."""
    return RedisPipeline(connect, timeout_s=PATIENT_S, clock=asyncio.get_running_loop().time)


async def read(pipeline: RedisPipeline, key: str) -> list[str]:
    return [entry.decode() for entry in await pipeline.call("LRANGE", key, 0, -1, kind=list)]


async def until(condition: Callable[[], bool], seconds: float = PATIENT_S) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def read_at_last(pipeline: RedisPipeline, key: str) -> list[str]:
    """Read until it succeeds, as a short timeout may pass again on a busy machine."""
    async with asyncio.timeout(10.0):
        while True:
            with suppress(RedisUnavailable):
                return await read(pipeline, key)
            await asyncio.sleep(0.01)


def pipeline_tasks() -> list[asyncio.Task[Any]]:
    """Tasks of pipelines that still run in this loop."""
    parts = ("RedisPipeline", "RedisConnection", "answers")
    return [task for task in asyncio.all_tasks() if any(part in repr(task.get_coro()) for part in parts)]


async def never(_command: list[bytes]) -> bytes:
    await asyncio.Event().wait()
    return b""
