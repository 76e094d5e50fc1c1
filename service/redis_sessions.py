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

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from service.breaker import WorstState
from service.errors import SessionsUnavailable
from service.ports import Event, HistoryEntry
from service.redis_client import UNWATCHED, RedisWatch, connector, texts, translated
from service.redis_link import RedisLink, Script

_SEPARATOR: Final = "\x1f"
_ERASE_BATCH: Final = 1000

# One call, all or none: Redis runs a script alone and to its end, and refuses its first write or none. A key of another
# kind would end it in the middle, with an event id kept and its event not, so kinds are looked at first. Members of one
# user's `events` are scored by arrival, so that the oldest are dropped first.
_APPEND: Final = Script("""
for at = 1, #KEYS do
    local found, wanted = redis.call('TYPE', KEYS[at]).ok, at == 1 and 'stream' or at % 2 == 0 and 'list' or 'zset'
    if found ~= 'none' and found ~= wanted then
        return redis.error_reply('WRONGTYPE a key of this prefix is a ' .. found .. ' and not a ' .. wanted)
    end
end
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
""")

# One batch of the stream: deletes the user's entries among the next ones, answers where to go on ('' at the end).
_ERASE_FROM_STREAM: Final = Script("""
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
""")


class RedisSessions:
    """Histories in Redis; see the module for the keys.

    Connects on first use, so a Redis that is down at start is no error, and again after every failure. Reads and writes
    have a connection and a breaker each: where writes hang, reads go on.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        history_cap: newest events kept of each user.
        ttl_s: seconds after a user's last event until the history expires.
        stream_cap: newest events kept of all users.
        event_ids_cap: newest event ids of each user against which retries are recognised.
        timeout_s: seconds that one answer, or connecting, may take.
        prefix: start of every key.
        watch: told how calls go.

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
        watch: RedisWatch = UNWATCHED,
    ) -> None:
        connect, worst = connector(url, timeout_s), WorstState(watch.on_state)
        self._reads = RedisLink(connect, timeout_s=timeout_s, on_state=worst.of("reads"))
        self._writes = RedisLink(connect, timeout_s=timeout_s, on_state=worst.of("writes"))
        self._caps = (history_cap, ttl_s, event_ids_cap, stream_cap)
        self._prefix = prefix
        self._watch = watch
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
            stored: int = await self._writes.run(_APPEND, keys, arguments, int)
        return stored

    async def recent(self, user_id: str) -> list[str]:
        """Item ids, oldest first; see `HistoryStore.recent`."""
        return [entry.partition(_SEPARATOR)[0] for entry in await self._stored(user_id)]

    async def entries(self, user_id: str) -> list[HistoryEntry]:
        """Steps, oldest first; see `HistoryStore.entries`."""
        return [_entry(stored) for stored in await self._stored(user_id)]

    async def erase(self, user_id: str) -> None:
        """Forget a user; see `HistoryStore.erase`. Reads the whole stream, in batches of 1000."""
        with self._translated("erase"):
            await self._writes.call("UNLINK", *self._keys(user_id), kind=int)
            start = "-"
            while start:
                asked: list[str | int] = [start, user_id, _ERASE_BATCH]
                last = await self._writes.run(_ERASE_FROM_STREAM, [self._stream_key], asked, bytes)
                start = f"({last.decode()}" if last else ""

    async def alive(self) -> bool:
        """Whether Redis answers."""
        try:
            with self._translated("ping"):
                return bool(await self._reads.call("PING", kind=bytes) == b"PONG")
        except SessionsUnavailable:
            return False

    async def stream(self) -> list[Event]:
        """The stream of all events, oldest first; for tests and small exports."""
        with self._translated("stream"):
            stored = await self._reads.call("XRANGE", self._stream_key, "-", "+", kind=list)
        return [_event(texts(fields)) for _, fields in stored]

    async def close(self) -> None:
        """Close the connections."""
        await self._reads.close()
        await self._writes.close()

    async def _stored(self, user_id: str) -> list[str]:
        with self._translated("recent"):
            return texts(await self._reads.call("LRANGE", self._keys(user_id)[0], 0, -1, kind=list))

    def _translated(self, operation: str) -> AbstractContextManager[None]:
        return translated(operation, SessionsUnavailable, self._watch)

    def _keys(self, user_id: str) -> tuple[str, str]:
        # The braces are a hash tag: a Redis Cluster keeps both keys on one node. They end at the first closing brace.
        tag = user_id.replace("%", "%25").replace("}", "%7D")
        return f"{self._prefix}:{{{tag}}}:history", f"{self._prefix}:{{{tag}}}:events"


def _number(timestamp: float) -> str:
    """Seconds in the shortest decimal form, at most to the millisecond."""
    return f"{timestamp:.3f}".rstrip("0").rstrip(".")


def _entry(stored: str) -> HistoryEntry:
    item_id, _, rest = stored.partition(_SEPARATOR)
    timestamp, _, kind = rest.partition(_SEPARATOR)
    return HistoryEntry(item_id, _seconds(timestamp), kind or None)


def _event(fields: Sequence[str]) -> Event:
    """From names and values by turns."""
    found: dict[str, Any] = dict(zip(fields[::2], (value or None for value in fields[1::2]), strict=True))
    return Event(**{**found, "timestamp": _seconds(found["timestamp"] or "")})


def _seconds(stored: str) -> float:
    """The stored number; 0 where somebody else wrote something else into the key."""
    try:
        return float(stored)
    except ValueError:
        return 0.0
