"""RedisHistories: the histories of users in Redis.

Keys, all under one prefix (default ``vlm2rec``), ``bNNN`` being one of 64 buckets of users
(`service.stores.history_keys`):

=====================================  ======  ========================================================================
``<prefix>:{bNNN}:history:<user>``     list    newest events of a user, oldest first: item, timestamp, type
``<prefix>:{bNNN}:event_ids:<user>``   zset    event ids of a user by arrival, against which retries are recognised
``<prefix>:{bNNN}:stream``             stream  events of all users of the bucket with their fields, for retraining
``<prefix>:{bNNN}:stream_ids:<user>``  list    ids of a user's entries in that stream, oldest first, for erasing them
=====================================  ======  ========================================================================

History and event ids of a user expire together, a fixed time after the last event. The rest does not: an id leaves
``stream_ids`` with its entry. Ids hold no control characters, so U+001F separates the parts of an event safely.

The layout before, ``<prefix>:{user}:history``, ``<prefix>:{user}:events`` and ``<prefix>:events``, is read where a user
has nothing in the new one, moved when an event of the user is stored, and erased: docs/redis.md.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from service.errors import HistoriesUnavailable
from service.settings.groups import HistorySettings, RedisSettings
from service.stores.circuit_breaker import WorstState
from service.stores.history_keys import (
    BUCKETS,
    bucket_cap,
    dropped_at_once,
    keys_of,
    old_keys_of,
    old_stream_key,
    stream_key,
)
from service.stores.protocols import Event, HistoryEntry
from service.stores.redis_client import UNWATCHED, RedisWatch, connector, texts, translated
from service.stores.redis_history_scripts import APPEND, ERASE, ERASE_FROM_OLD_STREAM, TO_BE_MOVED
from service.stores.redis_pipeline import RedisPipeline
from service.stores.redis_reasons import serves_reads
from service.stores.redis_renewal import Renewal

_SEPARATOR: Final = "\x1f"
_ERASE_BATCH: Final = 1000


class RedisHistories:
    """Histories in Redis; see the module for the keys.

    Connects on first use, so a Redis that is down at start is no error, and again after every failure. Reads and writes
    have a connection and a breaker each: where writes hang, reads go on.

    Args:
        redis: URL, key prefix and timeout.
        retention: how much is stored of each user, and for how long.
        watch: told how calls go.
        renewal: shared with whatever else asks the same Redis.

    Raises:
        SettingsError: the URL is not one that redis-py understands.
    """

    def __init__(
        self,
        redis: RedisSettings,
        retention: HistorySettings,
        *,
        watch: RedisWatch = UNWATCHED,
        renewal: Renewal | None = None,
    ) -> None:
        connect, worst, renewal = connector(redis), WorstState(watch.on_state), renewal or Renewal()
        timeout_s = redis.timeout_s
        self._reads = RedisPipeline(connect, timeout_s=timeout_s, on_state=worst.of("reads"), renewal=renewal)
        self._writes = RedisPipeline(connect, timeout_s=timeout_s, on_state=worst.of("writes"), renewal=renewal)
        cap = bucket_cap(retention.stream_cap)
        self._caps = (
            retention.history_cap,
            retention.event_ids_cap,
            retention.ttl_s,
            cap,
            dropped_at_once(cap),
            BUCKETS,
        )
        self._knows_of_old = False
        self._prefix = redis.redis_prefix
        self._watch = watch

    async def append(self, events: Sequence[Event]) -> int:
        """Store events; see `HistoryStore.append`."""
        users: dict[str, int] = {}  # where the keys of each begin, counted from 1
        keys = [old_stream_key(self._prefix)]
        arguments: list[str | int] = [*self._caps, 0]
        for event in sorted(events, key=lambda event: event.timestamp):
            user = event.user_id
            if user not in users:
                users[user] = len(keys) + 1
                keys += keys_of(self._prefix, user)
            timestamp, kind = _number(event.timestamp), event.type or ""
            arguments += (
                users[user],
                event.event_id or "",
                f"{event.item_id}{_SEPARATOR}{timestamp}{_SEPARATOR}{kind}",
                user,
                event.item_id,
                timestamp,
                kind,
                event.request_id or "",
            )
        arguments[len(self._caps)] = len(users)
        with self._translated("append"):
            stored: int = TO_BE_MOVED
            if not self._knows_of_old:
                stored = await self._writes.run(APPEND, keys, arguments, int)
                self._knows_of_old = stored == TO_BE_MOVED
            if stored == TO_BE_MOVED:
                keys += [key for user in users for key in old_keys_of(self._prefix, user)]
                stored = await self._writes.run(APPEND, keys, arguments, int)
        return stored

    async def recent(self, user_id: str) -> list[str]:
        """Item ids, oldest first; see `HistoryStore.recent`."""
        return [entry.partition(_SEPARATOR)[0] for entry in await self._stored(user_id)]

    async def entries(self, user_id: str) -> list[HistoryEntry]:
        """Steps, oldest first; see `HistoryStore.entries`."""
        return [_entry(stored) for stored in await self._stored(user_id)]

    async def erase(self, user_id: str) -> None:
        """Forget a user; see `HistoryStore.erase`. Costs what the user's own events do, a thousand a call.

        As long as there is a stream of the old layout, that is read whole too.
        """
        keys = [*keys_of(self._prefix, user_id), *old_keys_of(self._prefix, user_id)]
        with self._translated("erase"):
            while await self._writes.run(ERASE, keys, [_ERASE_BATCH], int) == _ERASE_BATCH:
                pass
            start = "-"
            while start:
                asked: list[str | int] = [start, user_id, _ERASE_BATCH]
                last = await self._writes.run(ERASE_FROM_OLD_STREAM, [old_stream_key(self._prefix)], asked, bytes)
                start = f"({last.decode()}" if last else ""

    async def alive(self) -> bool:
        """Whether Redis answers reads; one that this user may not do shows it too."""
        try:
            with self._translated("ping"):
                await self._reads.call("LRANGE", f"{self._prefix}:probe", 0, 0, kind=list)
        except HistoriesUnavailable as error:
            return serves_reads(error.__cause__)
        return True

    async def is_cluster_node(self) -> bool:
        """Whether this is a node of a Redis Cluster; see `HistoryStore.is_cluster_node`."""
        try:
            with self._translated("hello"):
                about = await self._reads.call("HELLO", kind=list)  # names and values by turns
        except HistoriesUnavailable:
            return False
        return dict(zip(about[::2], about[1::2], strict=False)).get(b"mode") == b"cluster"

    async def stream(self) -> list[Event]:
        """The streams of all buckets and the old one together, oldest first; for tests and small exports."""
        keys = [old_stream_key(self._prefix), *(stream_key(self._prefix, bucket) for bucket in range(BUCKETS))]
        with self._translated("stream"):
            reads = [self._reads.call("XRANGE", key, "-", "+", kind=list) for key in keys]
            stored = [entry for entries in await asyncio.gather(*reads) for entry in entries]
            arrived = sorted(
                ([int(part) for part in entry_id.split(b"-")], texts(fields)) for entry_id, fields in stored
            )
        return [_event(fields) for _, fields in arrived]

    async def close(self) -> None:
        """Close the connections."""
        await self._reads.close()
        await self._writes.close()

    async def _stored(self, user_id: str) -> list[str]:
        key, old_key = keys_of(self._prefix, user_id).history, old_keys_of(self._prefix, user_id).history
        with self._translated("recent"):
            found = await self._history(key)
            if not found:
                # Asked in this order on one connection, whatever is moved meanwhile is found at one of the two places.
                old, found = await asyncio.gather(self._history(old_key), self._history(key))
                found = found or old
            return found

    async def _history(self, key: str) -> list[str]:
        return texts(await self._reads.call("LRANGE", key, 0, -1, kind=list))

    def _translated(self, operation: str) -> AbstractContextManager[None]:
        return translated(operation, HistoriesUnavailable, self._watch)


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
