"""One connection to Redis without a pipeline."""

import asyncio

import pytest

from service.stores.redis_connection import RedisConnection, packed
from tests.support.stores.fake_redis import run, until


def test_a_connection_cancelled_while_connecting_is_closed() -> None:
    class Handshaking:
        began, closed = False, False

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
