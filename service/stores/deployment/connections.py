"""Connections that add a command of their own to those of their callers."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from redis.exceptions import ResponseError

from service.stores.redis_client import Connect
from service.stores.redis_connection import RedisConnection, packed

NewConnection = Callable[[Connect, int], RedisConnection]

_ASKING: Final = packed("ASKING")


class AskingConnection(RedisConnection):
    """A connection to the node that a slot is moved to, which answers only commands that follow an ``ASKING``."""

    async def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """See `RedisConnection.exchange`."""
        replies = await super().exchange([part for command in commands for part in (_ASKING, command)])
        return replies[1::2]


class ConfirmedConnection(RedisConnection):
    """A connection on which nothing counts as done before replicas have confirmed it.

    ``WAIT`` follows the commands of each exchange. If too few replicas confirm in time, each command gets the error
    ``UNCONFIRMED``, although the master has done it.

    Args:
        connect: creates a connection.
        number: of the `Renewal`.
        replicas: how many must confirm, at least 1.
        within_ms: milliseconds that they have; less than the exchange may take.
    """

    def __init__(self, connect: Connect, number: int, *, replicas: int, within_ms: int) -> None:
        super().__init__(connect, number)
        self._replicas = replicas
        self._wait = packed("WAIT", replicas, within_ms)

    async def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """See `RedisConnection.exchange`."""
        *replies, confirmed = await super().exchange([*commands, self._wait])
        if isinstance(confirmed, int) and confirmed >= self._replicas:
            return replies
        error = confirmed if isinstance(confirmed, ResponseError) else ResponseError("UNCONFIRMED by its replicas")
        return [reply if isinstance(reply, ResponseError) else error for reply in replies]


def confirmed(replicas: int, timeout_s: float) -> NewConnection:
    """Creates connections that wait for replicas; without replicas plain ones."""
    if not replicas:
        return RedisConnection
    within_ms = max(1, round(timeout_s * 500))

    def opened(connect: Connect, number: int) -> RedisConnection:
        return ConfirmedConnection(connect, number, replicas=replicas, within_ms=within_ms)

    return opened
