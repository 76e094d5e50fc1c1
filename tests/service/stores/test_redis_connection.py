"""One connection to Redis without a pipeline."""

import asyncio
import os
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Connection, ConnectionPool
from redis.exceptions import AuthenticationError, RedisError

from service.stores.redis_connection import RedisConnection, packed
from tests.support.stores.fake_redis import run, until
from tests.support.stores.redis_servers import Certificates


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


def test_a_refused_password_over_tls_leaves_no_socket_although_redis_closes_nothing(tmp_path: Path) -> None:
    """redis-py closes then by itself, and TLS waits half a minute for the other side."""
    certificates = Certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificates.issue("127.0.0.1"))
    closed = threading.Event()

    def refuse(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with socket.socket(fileno=os.dup(accepted.fileno())) as raw, context.wrap_socket(accepted, True) as peer:
            peer.recv(1000)
            peer.sendall(b"-WRONGPASS invalid username-password pair\r\n")
            raw.settimeout(5)
            with suppress(TimeoutError):
                while raw.recv(65_536):  # what TLS says last, and at the end of the socket nothing
                    pass
                closed.set()

    async def check(listener: socket.socket) -> None:
        answering = asyncio.create_task(asyncio.to_thread(refuse, listener))
        url = f"rediss://:wrong@127.0.0.1:{listener.getsockname()[1]}?ssl_ca_certs={certificates.authority}&protocol=2"
        connection = RedisConnection(ConnectionPool.from_url(url).make_connection)
        with pytest.raises(AuthenticationError):
            await connection.exchange([packed("GET", "key")])
        await answering

    with socket.create_server(("127.0.0.1", 0)) as listener:
        run(lambda: check(listener))
    assert closed.is_set()


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
