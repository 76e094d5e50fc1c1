"""One connection to Redis without a pipeline."""

import asyncio
from contextlib import suppress

import pytest
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import RedisError

from service.stores.redis_connection import RedisConnection, packed
from tests.support.stores.fake_redis import run, until


def test_a_connection_cancelled_while_connecting_is_closed() -> None:
    class Handshaking:
        began, closed, _writer = False, False, None

        async def connect(self) -> None:
            self.began = True
            await asyncio.get_running_loop().create_future()

        async def disconnect(self, nowait: bool = False) -> None:
            self.closed = True

    async def check() -> None:
        connection = Handshaking()
        opening = asyncio.create_task(RedisConnection(lambda: connection).exchange([packed("GET", "key")]))
        await until(lambda: connection.began)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert connection.closed

    run(check)


def test_a_connection_that_redis_py_opens_again_after_it_was_dropped_is_closed(redis_url: str) -> None:
    """Its cancellation may be lost; then the commands are sent on a connection that nobody would close."""

    async def check() -> None:
        plain = ConnectionPool.from_url(redis_url).make_connection()
        connection = RedisConnection(lambda: plain)
        await connection.exchange([packed("EXISTS", "key")])

        async def dropped_meanwhile(timeout: float = 0) -> bool:
            await connection.drop()
            return False

        plain.can_read = dropped_meanwhile
        with suppress(RedisError, OSError):
            await connection.exchange([packed("EXISTS", "key")])
        assert not plain.is_connected

    run(check)


def test_a_dropped_connection_closes_its_socket_although_redis_reads_nothing() -> None:
    """Closing alone waits until all bytes are sent: a Redis that hangs kept the socket for ever."""

    async def check() -> None:
        async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await done.wait()
            finally:
                writer.transport.abort()

        done = asyncio.Event()
        server = await asyncio.start_server(hang, "127.0.0.1", 0, limit=1)
        port = server.sockets[0].getsockname()[1]
        plain = Connection(host="127.0.0.1", port=port, protocol=2, driver_info=None)
        connection = RedisConnection(lambda: plain)
        exchange = asyncio.create_task(connection.exchange([packed("SET", "key", "x" * 30_000_000)]))
        await until(lambda: plain._writer is not None and plain._writer.transport.get_write_buffer_size() > 0)
        transport = plain._writer.transport
        await connection.drop()
        await until(lambda: transport.get_extra_info("socket").fileno() == -1)
        with pytest.raises((OSError, RedisError)):
            await exchange
        done.set()
        server.close()
        await server.wait_closed()

    run(check)
