"""Stores the histories of users in Redis.

Keys, all under one prefix (default ``vlm2rec``), ``bNNN`` being one of 64 buckets of users
(`service.stores.history_keys`):

=====================================  ======  ========================================================================
``<prefix>:{bNNN}:history:<user>``     list    newest events of a user, oldest first: item, timestamp, type
``<prefix>:{bNNN}:event_ids:<user>``   zset    event ids of a user by arrival, by which retries are recognised
``<prefix>:{bNNN}:stream``             stream  events of all users of the bucket with their fields, for retraining
``<prefix>:{bNNN}:stream_ids:<user>``  list    ids of a user's entries in that stream, oldest first, for erasing them
``<prefix>:{bNNN}:impressions:<user>``  list   newest impressions of a user, otherwise as the history
``<prefix>:{bNNN}:merges:<user>``      zset    sessions merged into the user; of a session a hash with that user
=====================================  ======  ========================================================================

History and event ids of a user expire together, a fixed time after the last event, and impressions after the last
impression. The rest does not: an id leaves ``stream_ids`` with its entry. Ids hold no control characters, so U+001F
separates the parts of an event safely, and an anonymous session has the place of a user under U+001F and its id.

While events are exported there are two more keys a bucket: `service.stores.event_export.redis_event_export`.

The older layout, ``<prefix>:{user}:history``, ``<prefix>:{user}:events`` and ``<prefix>:events``, is read if a user
has nothing in the new one, moved when an event of the user is stored, and erased: docs/redis.md.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final

from index.event_export.erasures import erasure_name
from index.event_export.merges import MERGED_INTO
from service.errors import HistoriesUnavailable, RedisUnavailable, SessionMerged
from service.settings.groups import HistorySettings, RedisSettings
from service.stores.circuit_breaker import WorstState
from service.stores.deployment.opening import open_pipeline
from service.stores.history_keys import (
    BUCKETS,
    absent_stream_key,
    bucket_of,
    export_key,
    keys_of,
    old_keys_of,
    old_stream_key,
    stream_key,
)
from service.stores.history_records import (
    append_call,
    append_caps,
    append_one,
    append_one_call,
    entries_of,
    event_of,
    merge_caps,
)
from service.stores.protocols import (
    Event,
    Forget,
    HistoryEntry,
    OfUser,
    event_of_user,
    session_of,
    session_owner,
)
from service.stores.redis_client import UNWATCHED, RedisWatch, texts, translated
from service.stores.redis_erasure_scripts import ERASE, ERASE_FROM_OLD_STREAM, FREE_SESSION, NEEDS_KEY
from service.stores.redis_history_scripts import APPEND, OF_MERGED_SESSION, TO_BE_MOVED
from service.stores.redis_merge_scripts import MERGE
from service.stores.redis_reasons import serves_reads
from service.stores.redis_renewal import Renewal

_ERASE_BATCH: Final = 1000
_MOST_MERGED_MEANWHILE: Final = 3
_MOST_ERASURES: Final = 10_000  # that wait for the exporter, in one bucket; more are refused, as none may be lost


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
        worst, renewal = WorstState(watch.on_state), renewal or Renewal()
        self._reads = open_pipeline(redis, watch=watch, on_state=worst.of("reads"), renewal=renewal)
        self._writes = open_pipeline(
            redis, watch=watch, on_state=worst.of("writes"), renewal=renewal, wait_replicas=redis.redis_wait_replicas
        )
        self._caps, self._merge_caps = append_caps(retention), merge_caps(retention)
        self._script_of_one = append_one(retention)
        self._confirms = redis.redis_wait_replicas > 0
        self._ttls = (retention.ttl_s, retention.session_ttl_s)
        self._may_have_old_layout = redis.kind != "cluster"  # clusters came after it
        self._old_layout_exists = False
        self._prefix = redis.redis_prefix
        self._watch = watch

    async def append(self, events: Sequence[Event], of_user: OfUser = event_of_user) -> Sequence[int]:
        """Store events; see `HistoryStore.append`."""
        order, ordered = [0], events
        if len(events) > 1:
            order = sorted(range(len(events)), key=lambda position: events[position].timestamp)
            ordered = [events[position] for position in order]
        with self._translated("append"):
            for attempt in range(1 + _MOST_MERGED_MEANWHILE):
                new = await self._append(await self._of_users(ordered, of_user) if attempt else ordered)
                if new is not None:
                    return new if len(new) == len(events) else sorted(order[number] for number in new)
            raise RedisUnavailable("the sessions of these events are being merged")

    async def _append(self, events: Sequence[Event]) -> Sequence[int] | None:
        """Store events in the order of their timestamps.

        Returns:
            Positions of those that are new; None: nothing was stored, as a session of theirs was merged.
        """
        if len(events) == 1 and not self._old_layout_exists:
            result = await self._append_one(events[0])
            if result >= 0:
                return range(min(result, 1))
            if result == OF_MERGED_SESSION:
                return None
            self._old_layout_exists = result == TO_BE_MOVED
        keys, arguments, owners = append_call(self._prefix, self._old_stream(events[0].user_id), events)
        arguments = [*self._caps, *arguments]
        stored, lost, known = TO_BE_MOVED, 0, list[int]()
        if not self._old_layout_exists:
            stored, lost, *known = await self._writes.run(APPEND, keys, arguments, list)
            self._old_layout_exists = stored == TO_BE_MOVED
        if stored == TO_BE_MOVED:
            keys += [key for owner in owners for key in old_keys_of(self._prefix, owner)]
            stored, lost, *known = await self._writes.run(APPEND, keys, arguments, list)
        if stored == OF_MERGED_SESSION:
            return None
        if self._confirms and known:
            await self._confirm_duplicates(events[0].user_id)
        self._count_lost(lost)
        return sorted(set(range(len(events))).difference(known)) if known else range(len(events))

    async def _append_one(self, event: Event) -> int:
        """Store one event as most are; the result of `APPEND_ONE`, where a negative one leaves it to `APPEND`."""
        keys, arguments = append_one_call(self._prefix, self._old_stream(event.user_id), event)
        result: int = await self._writes.run(self._script_of_one, keys, arguments, int)
        if result == 0 and self._confirms:
            await self._confirm_duplicates(event.user_id)
        self._count_lost(result - 1 if result > 1 else 0)
        return result

    def _count_lost(self, count: int) -> None:
        """Report events that were cut before they were exported."""
        if count and self._watch.on_lost is not None:
            self._watch.on_lost(count)

    async def _confirm_duplicates(self, owner: str) -> None:
        """Write something: newer servers let ``WAIT`` wait for what the connection has written, here nothing yet."""
        ttl_s = self._ttls[session_of(owner) is not None]
        await self._writes.call("EXPIRE", keys_of(self._prefix, owner).event_ids, ttl_s, kind=int)

    async def _of_users(self, events: Sequence[Event], of_user: OfUser) -> list[Event]:
        """Events in which a session that was merged is replaced by its user."""
        sessions = list(dict.fromkeys(event.user_id for event in events if session_of(event.user_id) is not None))
        calls = [
            self._writes.call("HMGET", keys_of(self._prefix, owner).merges, "user", kind=list) for owner in sessions
        ]
        found = dict(zip(sessions, await asyncio.gather(*calls), strict=True))
        users = {owner: user.decode() for owner, (user,) in found.items() if user is not None}
        return [of_user(event, users[event.user_id]) if event.user_id in users else event for event in events]

    async def entries(self, owner: str) -> list[HistoryEntry]:
        """Events, oldest first; see `HistoryReader.entries`."""
        keys, is_user = keys_of(self._prefix, owner), session_of(owner) is None
        with self._translated("recent"):
            found = await self._list(keys.history)
            if not found and is_user and self._may_have_old_layout:
                # Read in this order on one connection, so that a history moved meanwhile is found under one key.
                old_key = old_keys_of(self._prefix, owner).history
                old, found = await asyncio.gather(self._list(old_key), self._list(keys.history))
                found = found or old
        return entries_of(found)

    async def impressions(self, owner: str) -> list[HistoryEntry]:
        """Impressions; see `HistoryReader.impressions`."""
        with self._translated("recent"):
            return entries_of(await self._list(keys_of(self._prefix, owner).impressions))

    async def merged_into(self, session_id: str) -> str | None:
        """The user of a session; see `HistoryReader.merged_into`."""
        merges = keys_of(self._prefix, session_owner(session_id)).merges
        with self._translated("recent"):
            user, moving = await self._reads.call("HMGET", merges, "user", "moving", kind=list)
            # In a cluster the history is the session's until the merge ends.
            return None if user is None or moving is not None else texts([user])[0]

    async def merge(self, session_id: str, user_id: str, forget: Forget | None = None) -> int:
        """Merge a session into a user; see `HistoryStore.merge`."""
        keys = [
            *keys_of(self._prefix, session_owner(session_id)),
            *keys_of(self._prefix, user_id),
            *old_keys_of(self._prefix, user_id),
        ]
        with self._translated("merge"):
            while True:
                arguments: list[str | int] = [*self._merge_caps, session_id, user_id]
                kind, value, lost = await self._writes.run(MERGE, keys, arguments, list)
                self._count_lost(lost)
                if kind != b"session":
                    break
                await self._forget_session(value.decode(), user_id, forget)
        if kind == b"moved":
            return int(value)
        if value != user_id.encode():
            raise SessionMerged(f'session_id must be of a session of this user; "{session_id}" is of another one')
        return 0

    async def merged_sessions(self, user_id: str) -> list[str]:
        """Sessions of a user; see `HistoryStore.merged_sessions`."""
        with self._translated("erase"):
            return await self._sessions_of(user_id)

    async def erase(self, user_id: str, forget: Forget | None = None) -> None:
        """Erase a user; see `HistoryStore.erase`. The cost grows with the user's own events, a thousand per call.

        As long as the stream of the old layout exists, it is read completely too.
        """
        with self._translated("erase"):
            sessions = await self._merged(user_id)
            while True:
                for session in sessions:
                    await self._forget_session(session, user_id, forget)
                await self._end_merges(user_id, forget)
                if forget is not None:
                    await forget(user_id)
                await self._erase_owner(user_id)
                if not (sessions := await self._merged(user_id)):  # what was merged meanwhile
                    break
            start = "-" if self._may_have_old_layout else ""
            while start:
                arguments: list[str | int] = [start, user_id, _ERASE_BATCH]
                last = await self._writes.run(ERASE_FROM_OLD_STREAM, [old_stream_key(self._prefix)], arguments, bytes)
                start = f"({last.decode()}" if last else ""

    async def _sessions_of(self, user_id: str) -> list[str]:
        """The sessions whose data is the user's."""
        return await self._merged(user_id)

    async def _end_merges(self, user_id: str, forget: Forget | None) -> None:
        """End merges into a user who is being erased; here each is one step, so none is in progress."""

    async def _forget_session(self, session_id: str, user_id: str, forget: Forget | None) -> None:
        """Erase a session of a user, in the other store first."""
        if forget is not None:
            await forget(session_owner(session_id))
        await self._erase_session(session_id, user_id)

    async def _merged(self, user_id: str) -> list[str]:
        """The sessions that are recorded at the user."""
        return texts(await self._writes.call("ZRANGE", keys_of(self._prefix, user_id).merges, 0, -1, kind=list))

    async def _erase_session(self, session_id: str, user_id: str) -> None:
        """Erase a merged session; its record at the user goes last, so that an interrupted erasure can go on."""
        owner = session_owner(session_id)
        await self._erase_owner(owner)
        await self._writes.run(FREE_SESSION, [keys_of(self._prefix, owner).merges], [user_id], int)
        await self._writes.call("ZREM", keys_of(self._prefix, user_id).merges, session_id, kind=int)

    async def _erase_owner(self, owner: str) -> None:
        """Erase what a user or a session has, but not the record of merges."""
        keys = [*keys_of(self._prefix, owner), *self._old_keys(owner)]
        deleted = _ERASE_BATCH
        while deleted in (_ERASE_BATCH, NEEDS_KEY):
            deleted = await self._writes.run(ERASE, keys, await self._erasure(owner), int)

    async def alive(self) -> bool:
        """Whether Redis answers reads; a read that it refuses for lack of permission counts as answered."""
        try:
            with self._translated("ping"):
                await self._reads.probe(f"{self._prefix}:probe")
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
        """The events of all buckets and the old stream by arrival, without merges; for tests and small exports."""
        keys = [old_stream_key(self._prefix), *(stream_key(self._prefix, bucket) for bucket in range(BUCKETS))]
        with self._translated("stream"):
            reads = [self._reads.call("XRANGE", key, "-", "+", kind=list) for key in keys]
            stored = [entry for entries in await asyncio.gather(*reads) for entry in entries]
            arrived = sorted(
                ([int(part) for part in entry_id.split(b"-")], texts(fields)) for entry_id, fields in stored
            )
        return [event_of(fields) for _, fields in arrived if MERGED_INTO not in fields[::2]]

    async def close(self) -> None:
        """Close the connections."""
        await self._reads.close()
        await self._writes.close()

    async def _erasure(self, owner: str) -> list[str | int]:
        """Arguments of `ERASE`; the key is read again, as an exporter may have begun or changed."""
        export = export_key(self._prefix, bucket_of(owner))
        (stored,) = texts(key or b"" for key in await self._writes.call("HMGET", export, "key", kind=list))
        return [_ERASE_BATCH, stored, erasure_name(stored, owner) if stored else "", _MOST_ERASURES]

    def _old_stream(self, owner: str) -> str:
        """The stream of the old layout; in a cluster a key of the owner's bucket that never exists."""
        return old_stream_key(self._prefix) if self._may_have_old_layout else absent_stream_key(self._prefix, owner)

    def _old_keys(self, owner: str) -> tuple[str, str]:
        """Two more keys that go with an erasure: of the old layout; in a cluster none that exists."""
        if self._may_have_old_layout:
            return old_keys_of(self._prefix, owner)
        return (absent_stream_key(self._prefix, owner),) * 2

    async def _list(self, key: str) -> list[str]:
        return texts(await self._reads.call("LRANGE", key, 0, -1, kind=list))

    def _translated(self, operation: str) -> AbstractContextManager[None]:
        return translated(operation, HistoriesUnavailable, self._watch)
