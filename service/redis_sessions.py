"""RedisSessions: the histories of users in Redis.

Keys, all under one prefix (default ``vlm2rec``):

=========================  ======  ==================================================================================
``<prefix>:{user}:history``  list    newest events of a user, oldest first, as ``item U+001F timestamp U+001F type``
``<prefix>:{user}:events``   zset    event ids of a user by arrival, against which retries are recognised
``<prefix>:events``          stream  events of all users with their fields, for retraining
=========================  ======  ==================================================================================

The two keys of a user expire together, a fixed time after the last event; nothing else does. Ids hold no control
characters, so U+001F separates safely.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.errors import SessionsUnavailable
from service.ports import Event, HistoryEntry
from service.redis_client import open_client, translated

_SEPARATOR: Final = "\x1f"
_ERASE_BATCH: Final = 1000

# One call, all or none: Redis runs a script alone and to its end. Members of one user's `events` are scored by arrival,
# so that the oldest are dropped first.
_APPEND: Final = """
local history_cap, ttl, event_ids_cap, stream_cap =
    tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local stored, touched = 0, {}
for at = 5, #ARGV, 8 do
    local user, event_id, entry = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2]
    if event_id == '' or redis.call('ZADD', KEYS[2 * user + 1], 'NX', now + stored, event_id) == 1 then
        redis.call('RPUSH', KEYS[2 * user], entry)
        redis.call('XADD', KEYS[1], 'MAXLEN', stream_cap, '*', 'user_id', ARGV[at + 3], 'item_id', ARGV[at + 4],
            'timestamp', ARGV[at + 5], 'type', ARGV[at + 6], 'event_id', event_id, 'request_id', ARGV[at + 7])
        touched[user] = true
        stored = stored + 1
    end
end
for user, _ in pairs(touched) do
    redis.call('LTRIM', KEYS[2 * user], -history_cap, -1)
    redis.call('EXPIRE', KEYS[2 * user], ttl)
    redis.call('ZREMRANGEBYRANK', KEYS[2 * user + 1], 0, -event_ids_cap - 1)
    redis.call('EXPIRE', KEYS[2 * user + 1], ttl)
end
return stored
"""

# One batch of the stream: deletes the user's entries among the next ones, answers where to go on ('' at the end).
_ERASE_FROM_STREAM: Final = """
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[3])
for _, entry in ipairs(entries) do
    if entry[2][2] == ARGV[2] then
        redis.call('XDEL', KEYS[1], entry[1])
    end
end
if #entries < tonumber(ARGV[3]) then
    return ''
end
return entries[#entries][1]
"""


class RedisSessions:
    """Histories in Redis; see the module for the keys.

    Connects on first use, so a Redis that is down at start is no error, and again after every failure.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        history_cap: newest events kept of each user.
        ttl_s: seconds after a user's last event until the history expires.
        stream_cap: newest events kept of all users.
        event_ids_cap: newest event ids of each user against which retries are recognised.
        timeout_s: seconds that one answer, or connecting, may take.
        prefix: start of every key.
        on_error: told the name of every operation that Redis did not answer.

    Raises:
        SettingsError: the URL is not one that redis-py understands.
    """

    def __init__(
        self,
        url: str,
        *,
        history_cap: int = 200,
        ttl_s: int = 90 * 86_400,
        stream_cap: int = 1_000_000,
        event_ids_cap: int = 1000,
        timeout_s: float = 0.25,
        prefix: str = "vlm2rec",
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        self._redis = open_client(url, timeout_s)
        self._reads = _CoalescedReads(self._redis)
        self._append = self._redis.register_script(_APPEND)
        self._erase_from_stream = self._redis.register_script(_ERASE_FROM_STREAM)
        self._caps = (history_cap, ttl_s, event_ids_cap, stream_cap)
        self._prefix = prefix
        self._on_error = on_error
        self._stream_key = f"{prefix}:events"

    async def append(self, events: Sequence[Event]) -> int:
        """Store events; see `HistoryStore.append`."""
        users = {user: number for number, user in enumerate(dict.fromkeys(event.user_id for event in events), 1)}
        keys = [self._stream_key, *(key for user in users for key in self._keys(user))]
        arguments: list[str | int] = [*self._caps]
        for event in sorted(events, key=lambda event: event.timestamp):
            timestamp, kind = _number(event.timestamp), event.type or ""
            arguments += [
                users[event.user_id],
                event.event_id or "",
                _SEPARATOR.join((event.item_id, timestamp, kind)),
                event.user_id,
                event.item_id,
                timestamp,
                kind,
                event.request_id or "",
            ]
        with self._translated("append"):
            return int(await self._append(keys=keys, args=arguments))

    async def recent(self, user_id: str) -> list[str]:
        """Item ids, oldest first; see `HistoryStore.recent`."""
        return [entry.partition(_SEPARATOR)[0] for entry in await self._stored(user_id)]

    async def entries(self, user_id: str) -> list[HistoryEntry]:
        """Steps, oldest first; see `HistoryStore.entries`."""
        return [_entry(stored) for stored in await self._stored(user_id)]

    async def erase(self, user_id: str) -> None:
        """Forget a user; see `HistoryStore.erase`. Reads the whole stream, in batches of 1000."""
        with self._translated("erase"):
            await self._redis.unlink(*self._keys(user_id))
            start = "-"
            while start:
                last = await self._erase_from_stream(keys=[self._stream_key], args=[start, user_id, _ERASE_BATCH])
                start = f"({last.decode()}" if last else ""

    async def alive(self) -> bool:
        """Whether Redis answers."""
        try:
            with self._translated("ping"):
                return bool(await self._redis.ping())
        except SessionsUnavailable:
            return False

    async def stream(self) -> list[Event]:
        """The stream of all events, oldest first; for tests and small exports."""
        with self._translated("stream"):
            stored: Any = await self._redis.xrange(self._stream_key)
        return [_event(fields) for _, fields in stored]

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _stored(self, user_id: str) -> list[str]:
        with self._translated("recent"):
            stored = await self._reads.read(self._keys(user_id)[0])
        return [entry.decode("utf-8", "replace") for entry in stored]

    def _translated(self, operation: str) -> AbstractContextManager[None]:
        return translated(operation, SessionsUnavailable, self._on_error)

    def _keys(self, user_id: str) -> tuple[str, str]:
        # The braces are a hash tag: a Redis Cluster keeps both keys on one node. They end at the first closing brace.
        tag = user_id.replace("%", "%25").replace("}", "%7D")
        return f"{self._prefix}:{{{tag}}}:history", f"{self._prefix}:{{{tag}}}:events"


class _CoalescedReads:
    """Reads whole lists; those that wait at the same time share one round trip, as redis-py is slow with many.

    Args:
        redis: the client.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[tuple[str, asyncio.Future[list[bytes]]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def read(self, key: str) -> list[bytes]:
        """The list at a key.

        Raises:
            RedisError: Redis did not answer, or the key holds something else.
        """
        answer: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        """Read what waits until nothing waits; nobody who waits is ever left without an answer."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            results: list[Any] = [RedisError("the read was cancelled")] * len(batch)
            try:
                pipeline = self._redis.pipeline(transaction=False)
                for key, _ in batch:
                    pipeline.lrange(key, 0, -1)
                results = await pipeline.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                results = [error] * len(batch)
            finally:
                for (_, answer), result in zip(batch, results, strict=True):
                    if answer.done():
                        continue  # whoever asked gave up
                    if isinstance(result, Exception):
                        answer.set_exception(result)
                    else:
                        answer.set_result(result)


def _number(timestamp: float) -> str:
    """Seconds in the shortest decimal form, at most to the millisecond."""
    return f"{timestamp:.3f}".rstrip("0").rstrip(".")


def _entry(stored: str) -> HistoryEntry:
    item_id, _, rest = stored.partition(_SEPARATOR)
    timestamp, _, kind = rest.partition(_SEPARATOR)
    return HistoryEntry(item_id, _seconds(timestamp), kind or None)


def _event(fields: dict[bytes, bytes]) -> Event:
    text: dict[str, Any] = {name.decode(): value.decode("utf-8", "replace") or None for name, value in fields.items()}
    return Event(**{**text, "timestamp": _seconds(text["timestamp"] or "")})


def _seconds(stored: str) -> float:
    """The stored number; 0 where somebody else wrote something else into the key."""
    try:
        return float(stored)
    except ValueError:
        return 0.0
