"""Stores the histories of users in Redis.

Keys, all under one prefix (default ``vlm2rec``), ``bNNN`` being one of 64 buckets of users
(`service.stores.history_keys`):

=====================================  ======  ========================================================================
``<prefix>:{bNNN}:history:<user>``     list    newest events of a user, oldest first: item, timestamp, type
``<prefix>:{bNNN}:event_ids:<user>``   zset    event ids of a user by arrival, by which retries are recognised
``<prefix>:{bNNN}:stream``             stream  events of all users of the bucket with their fields, for retraining
``<prefix>:{bNNN}:stream_ids:<user>``  list    ids of a user's entries in that stream, oldest first, for erasing them
=====================================  ======  ========================================================================

History and event ids of a user expire together, a fixed time after the last event. The rest does not: an id leaves
``stream_ids`` with its entry. Ids hold no control characters, so U+001F separates the parts of an event safely.

The older layout, ``<prefix>:{user}:history``, ``<prefix>:{user}:events`` and ``<prefix>:events``, is read if a user
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
    """Histories in Redis; the module lists the keys.

    Connects on first use, so a Redis that is down at the start is no error, and again after every failure. Reads and
    writes have a connection and a breaker each: if writes hang, reads go on.

    Args:
        redis: URL, key prefix and timeout.
        retention: how much is stored of each user, and for how long.
        watch: callbacks that observe the calls.
        renewal: shared with all other pipelines to the same Redis.

    Raises:
        SettingsError: redis-py does not understand the URL.
    """

    def __init__(
        self,
        redis: RedisSettings,
        retention: HistorySettings,
        *,
        watch: RedisWatch = UNWATCHED,
        renewal: Renewal | None = None,
    ) -> None:
        connect, worst, renewal = connector(redis.url), WorstState(watch.on_state), renewal or Renewal()
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
        self._old_layout_exists = False
        self._prefix = redis.redis_prefix
        self._watch = watch

    async def append(self, events: Sequence[Event]) -> int:
        """Store events; see `HistoryStore.append`."""
        users: dict[str, int] = {}  # position of the first key of each user, counted from 1
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
            if not self._old_layout_exists:
                stored = await self._writes.run(APPEND, keys, arguments, int)
                self._old_layout_exists = stored == TO_BE_MOVED
            if stored == TO_BE_MOVED:
                keys += [key for user in users for key in old_keys_of(self._prefix, user)]
                stored = await self._writes.run(APPEND, keys, arguments, int)
        return stored

    async def recent(self, user_id: str) -> list[str]:
        """Item ids, oldest first; see `HistoryStore.recent`."""
        return [entry.partition(_SEPARATOR)[0] for entry in await self._stored(user_id)]

    async def entries(self, user_id: str) -> list[HistoryEntry]:
        """Events, oldest first; see `HistoryStore.entries`."""
        return [_entry(stored) for stored in await self._stored(user_id)]

    async def erase(self, user_id: str) -> None:
        """Erase a user; see `HistoryStore.erase`. The cost grows with the user's own events, a thousand per call.

        As long as the stream of the old layout exists, it is read completely too.
        """
        keys = [*keys_of(self._prefix, user_id), *old_keys_of(self._prefix, user_id)]
        with self._translated("erase"):
            while await self._writes.run(ERASE, keys, [_ERASE_BATCH], int) == _ERASE_BATCH:
                pass
            start = "-"
            while start:
                arguments: list[str | int] = [start, user_id, _ERASE_BATCH]
                last = await self._writes.run(ERASE_FROM_OLD_STREAM, [old_stream_key(self._prefix)], arguments, bytes)
                start = f"({last.decode()}" if last else ""

    async def alive(self) -> bool:
        """Whether Redis answers reads; a read that it refuses for lack of permission counts as answered."""
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
                about = await self._reads.call("HELLO", kind=list)  # names and values alternate
        except HistoriesUnavailable:
            return False
        return dict(zip(about[::2], about[1::2], strict=False)).get(b"mode") == b"cluster"

    async def stream(self) -> list[Event]:
        """The streams of all buckets and the old one merged, oldest first; for tests and small exports."""
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
                # Read in this order on one connection, so that a history moved meanwhile is found under one key.
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
    """From alternating names and values."""
    found: dict[str, Any] = dict(zip(fields[::2], (value or None for value in fields[1::2]), strict=True))
    return Event(**{**found, "timestamp": _seconds(found["timestamp"] or "")})


def _seconds(stored: str) -> float:
    """The stored number; 0 if another program wrote something else into the key."""
    try:
        return float(stored)
    except ValueError:
        return 0.0
