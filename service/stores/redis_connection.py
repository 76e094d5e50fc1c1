"""One connection to Redis, on which one exchange of commands and replies runs at a time."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from service.stores.redis_client import Connect
from service.stores.redis_reasons import serves_reads

if TYPE_CHECKING:
    from asyncio import WriteTransport

Part = str | bytes | int | float


def packed(*command: Part) -> bytes:
    """A command in the form in which it is sent; packed by hiredis, as redis-py's own code takes ten times as long.

    Raises:
        UnicodeEncodeError: a part cannot be encoded in UTF-8.
    """
    sent: bytes = pack_command(command)  # type: ignore[arg-type]
    return sent


PROBE: Final = packed("LRANGE", "vlm2rec:probe", 0, 0)
"""A read, because Redis refuses PING too while it takes no writes after a failed save; its result does not matter."""


class RedisConnection:
    """A connection that answers commands in order until it is dropped.

    Replies are matched to commands by their order alone, so a caller that stops waiting must :meth:`drop` it.

    Args:
        connect: creates a connection; the first exchange opens it.
        number: number of the `Renewal` when it was created.

    Attributes:
        number: as given; the owner may raise it.
        reopened: whether Redis had closed the connection and it was opened again; the owner may reset it.
    """

    def __init__(self, connect: Connect, number: int = 0) -> None:
        self.number = number
        self.reopened = False
        self._connect = connect
        self._connection: AbstractConnection | None = None
        self._transport: WriteTransport | None = None
        self._dropped = False
        self._opening = False

    async def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Send all commands and read a reply to each, in one round trip; the caller limits the time.

        Args:
            commands: from :func:`packed`.

        Returns:
            One reply a command: bytes, int, list or None, or the `ResponseError` that Redis answered.

        Raises:
            RedisError: the connection is lost, or the bytes received are not Redis' protocol.
            OSError: the connection is lost.
        """
        connection = self._connection
        if connection is None or await connection.can_read():
            connection = await self._open()
        try:
            await connection.send_packed_command(b"".join(commands), check_health=False)
            return [await _reply(connection) for _ in commands]
        finally:
            if self._dropped:  # redis-py may lose a cancellation, and connects again by itself
                await self._disconnect(connection)

    @property
    def is_open(self) -> bool:
        """Whether it has connected."""
        return self._connection is not None and not self._opening

    async def drop(self) -> None:
        """Close the connection for good; an exchange in progress fails, also one that ignored its cancellation."""
        self._dropped = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._disconnect(connection)

    async def _open(self) -> AbstractConnection:
        """Connect: for the first time, or again because Redis closed the connection or sent unexpected bytes."""
        if self._connection is not None:
            self.reopened = True
            await self._disconnect(self._connection)
        connection = self._connection = self._connect()
        connection.redis_connect_func = self._shake_hands
        self._opening = True
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            # Also on a cancellation in the middle of the handshake, after which redis-py leaves the socket open.
            await self._disconnect(connection)
            raise
        if self._dropped:
            await self._disconnect(connection)
            raise ConnectionLost("dropped while it was opened")
        self._opening = False
        connection.socket_timeout = (
            None  # it would apply to each reply, not to all of them, and costs more than a reply
        )
        return connection

    async def _shake_hands(self, connection: AbstractConnection) -> None:
        """Authenticate and so on over a transport that was just made."""
        self._abort()
        if connection._writer is not None:  # noqa: SLF001 - redis-py has no way to abort
            self._transport = connection._writer.transport  # noqa: SLF001
        await connection.on_connect_check_health(check_health=False)

    async def _disconnect(self, connection: AbstractConnection) -> None:
        """Close the socket now: closing alone waits until all is sent, and with TLS for a Redis that may hang.

        redis-py closes by itself after an error, and then knows the transport no longer.
        """
        with suppress(RedisError, OSError):
            await connection.disconnect(nowait=True)
        self._abort()

    def _abort(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


async def _reply(connection: AbstractConnection) -> Any:  # noqa: ANN401 - a reply of any kind
    try:
        return await connection.read_response()
    except InvalidResponse:
        raise  # not an error reply of Redis: the following bytes cannot be read either
    except ResponseError as error:
        return error


async def answers(connection: RedisConnection) -> bool:
    """Whether Redis answers a read on this connection, or refuses only this read; never raises."""
    try:
        (reply,) = await connection.exchange([PROBE])
        return isinstance(reply, list) or serves_reads(reply)
    except Exception:  # noqa: BLE001 - redis-py may raise any error
        return False
