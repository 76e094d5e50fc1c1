"""RedisConnection: one connection to Redis on which one exchange at a time takes place."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from service.stores.redis_client import Connect
from service.stores.redis_reasons import serves_reads

Part = str | bytes | int | float


def packed(*command: Part) -> bytes:
    """A command as it is sent; by hiredis, as redis-py's own Python takes ten times as long.

    Raises:
        UnicodeEncodeError: a part is no text that UTF-8 can hold.
    """
    sent: bytes = pack_command(command)  # type: ignore[arg-type]
    return sent


PROBE: Final = packed("LRANGE", "vlm2rec:probe", 0, 0)
"""A read: while Redis takes no writes because a save has failed, it refuses PING too. What it finds does not matter."""


class RedisConnection:
    """A connection that answers commands in their order, or is given up for good.

    That a reply belongs to its command rests on counting alone, so whoever stops waiting must :meth:`drop` it.

    Args:
        connect: makes a connection; the first exchange opens it.
        number: of the `Renewal` when it was made.

    Attributes:
        number: likewise; the owner may raise it.
        reopened: whether Redis had closed the connection and another took its place; the owner may reset it.
    """

    def __init__(self, connect: Connect, number: int = 0) -> None:
        self.number = number
        self.reopened = False
        self._connect = connect
        self._connection: AbstractConnection | None = None
        self._dropped = False
        self._opening = False

    async def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """One round trip: send all commands, read a reply to each. Whoever calls has a limit of time; here is none.

        Args:
            commands: as :func:`packed`.

        Returns:
            One reply a command: bytes, int, list or None, or the `ResponseError` that Redis answered.

        Raises:
            RedisError: the connection is lost, or what came is not Redis' protocol.
            OSError: likewise.
        """
        connection = self._connection
        if connection is None or await connection.can_read():
            connection = await self._open()
        await connection.send_packed_command(b"".join(commands), check_health=False)
        return [await _reply(connection) for _ in commands]

    @property
    def is_open(self) -> bool:
        """Whether it has connected."""
        return self._connection is not None and not self._opening

    async def drop(self) -> None:
        """Close the connection for good; an exchange in progress fails, also one that a cancellation did not reach."""
        self._dropped = True
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    async def _open(self) -> AbstractConnection:
        """Connect: for the first time, or because Redis has closed it, or has sent what nobody had asked for."""
        if self._connection is not None:
            self.reopened = True
            await self._connection.disconnect(nowait=True)
        connection = self._connection = self._connect()
        self._opening = True
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            # Also a cancellation in the middle of the handshake, after which redis-py leaves the socket open.
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)
            raise
        if self._dropped:
            await connection.disconnect(nowait=True)
            raise ConnectionLost("dropped while it was opened")
        self._opening = False
        connection.socket_timeout = None  # it would be a time for each reply, not for all, and costs more than a reply
        return connection


async def _reply(connection: AbstractConnection) -> Any:  # noqa: ANN401 - whatever Redis answers
    try:
        return await connection.read_response()
    except InvalidResponse:
        raise  # no error that Redis answered: the bytes that follow mean nothing
    except ResponseError as error:
        return error


async def answers(wire: RedisConnection) -> bool:
    """Whether there is a Redis at the other end that does reads, or says why not this one; never raises."""
    try:
        (reply,) = await wire.exchange([PROBE])
        return isinstance(reply, list) or serves_reads(reply)
    except Exception:  # noqa: BLE001 - whatever redis-py meets there
        return False
