"""Stores the histories of users in a Redis Cluster; the keys are those of `service.stores.redis_histories`.

A script uses the keys of one bucket only, so a bulk is stored bucket by bucket: all or none of each. The layout without
buckets does not exist in a cluster.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from redis.exceptions import RedisError

from service.errors import BulkPartlyStored, HistoriesUnavailable, RedisUnavailable, SessionMerged
from service.settings.groups import HistorySettings, RedisSettings
from service.stores.deployment.session_merge import SessionMerge
from service.stores.history_keys import bucket_of, keys_of
from service.stores.protocols import Event, Forget, OfUser, event_of_user, session_of
from service.stores.redis_client import UNWATCHED, RedisWatch
from service.stores.redis_histories import RedisHistories
from service.stores.redis_renewal import Renewal

_MOST_ROUNDS: Final = 4  # of events whose sessions are merged meanwhile


class _Sent(NamedTuple):
    """An event and its position in the call."""

    position: int
    event: Event


@dataclass(slots=True)
class _Bulk:
    """What became of a bulk so far: which events are newly stored, and which ones failed, with the first error."""

    new: list[int] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)
    error: RedisError | RedisUnavailable | None = None

    def fail(self, events: Sequence[_Sent], error: RedisError | RedisUnavailable) -> None:
        self.failed.update(sent.position for sent in events)
        self.error = self.error or error


class ClusterHistories(RedisHistories):
    """Histories in a cluster: bulks by bucket, merges over several slots, and every node is asked whether it answers.

    Args:
        redis: URL, key prefix and timeout.
        retention: how much is stored of each user, and for how long.
        watch: callbacks that observe the calls.
        renewal: not used: the nodes of a cluster redirect.

    Raises:
        SettingsError: the URL breaks a rule.
    """

    def __init__(
        self,
        redis: RedisSettings,
        retention: HistorySettings,
        *,
        watch: RedisWatch = UNWATCHED,
        renewal: Renewal | None = None,
    ) -> None:
        super().__init__(redis, retention, watch=watch, renewal=renewal)
        self._merges = SessionMerge(self._writes, redis.redis_prefix, retention, self._count_lost)

    async def append(self, events: Sequence[Event], of_user: OfUser = event_of_user) -> Sequence[int]:
        """Store events; see `HistoryStore.append`. Of each bucket all are stored or none.

        Raises:
            BulkPartlyStored: some of several events were not stored.
            HistoriesUnavailable: the only event was not.
        """
        bulk = _Bulk()
        sent = sorted((_Sent(*numbered) for numbered in enumerate(events)), key=lambda sent: sent.event.timestamp)
        try:
            with self._translated("append"):
                await self._append_by_bucket(sent, bulk, of_user)
                if bulk.error is not None:
                    raise bulk.error
        except HistoriesUnavailable as unavailable:
            if len(events) == 1:
                raise
            stored = [position for position in range(len(events)) if position not in bulk.failed]
            raise BulkPartlyStored(
                str(unavailable), stored=stored, not_stored=sorted(bulk.failed), new=sorted(bulk.new)
            ) from unavailable
        return sorted(bulk.new)

    async def merge(self, session_id: str, user_id: str, forget: Forget | None = None) -> int:
        """Merge a session into a user; see `HistoryStore.merge`. Called again after a failure, it goes on."""
        with self._translated("merge"):
            moved = await self._merge(session_id, user_id, forget)
        if moved is None:
            raise SessionMerged(f'session_id must be of a session of this user; "{session_id}" is of another one')
        return moved

    async def is_cluster_node(self) -> bool:
        """Always False: the URL names a cluster, so bulks are stored by bucket."""
        return False

    async def _sessions_of(self, user_id: str) -> list[str]:
        """The sessions whose data is the user's, also those that were claimed and not copied yet."""
        claimed, merged = await self._merges.claimed(user_id), await self._merged(user_id)
        return [*dict.fromkeys((*claimed, *merged))]

    async def _end_merges(self, user_id: str, forget: Forget | None) -> None:
        """End merges into a user who is being erased; sessions that they have claimed are erased."""
        await self._merges.end(user_id, lambda session: self._forget_session(session, user_id, forget))

    async def _merge(self, session_id: str, user_id: str, forget: Forget | None) -> int | None:
        return await self._merges.merge(
            session_id, user_id, lambda oldest: self._forget_session(oldest, user_id, forget)
        )

    async def _append_by_bucket(self, waiting: Sequence[_Sent], bulk: _Bulk, of_user: OfUser) -> None:
        """Store events in the order of their timestamps, those of merged sessions for their users."""
        for _ in range(_MOST_ROUNDS):
            buckets: dict[int, list[_Sent]] = {}
            for sent in waiting:
                buckets.setdefault(bucket_of(sent.event.user_id), []).append(sent)
            of_merged: list[_Sent] = []
            calls = [self._append_to_bucket(group, bulk) for group in buckets.values()]
            for group, merged in zip(buckets.values(), await asyncio.gather(*calls), strict=True):
                of_merged += group if merged else []
            if not of_merged:
                return
            try:
                waiting = await self._of_their_users(of_merged, of_user)
            except (RedisError, RedisUnavailable) as error:
                bulk.fail(of_merged, error)
                return
        bulk.fail(waiting, RedisUnavailable("the sessions of these events are being merged"))

    async def _append_to_bucket(self, group: Sequence[_Sent], bulk: _Bulk) -> bool:
        """Store events of one bucket; True: none was stored, as an event is of a merged session."""
        try:
            new = await self._append([sent.event for sent in group])
        except (RedisError, RedisUnavailable) as error:
            bulk.fail(group, error)
            return False
        if new is None:
            return True
        bulk.new += (group[number].position for number in new)
        return False

    async def _of_their_users(self, events: Sequence[_Sent], of_user: OfUser) -> list[_Sent]:
        """Events in which a session that was merged is replaced by its user; a merge in progress is ended first."""
        owners = dict.fromkeys(sent.event.user_id for sent in events)
        users: dict[str, str] = {}
        for owner in owners:
            session_id = session_of(owner)
            if session_id is None:
                continue
            merges = keys_of(self._prefix, owner).merges
            user, moving = await self._writes.call("HMGET", merges, "user", "moving", kind=list)
            if user is not None:
                users[owner] = user.decode()
                if moving is not None:
                    await self._merge(session_id, users[owner], None)
        return [
            sent._replace(event=of_user(sent.event, users[sent.event.user_id])) if sent.event.user_id in users else sent
            for sent in events
        ]
