"""Merges a session into a user whose keys may be on another node of a cluster.

No script can use the keys of both, so the merge takes five calls, each of them atomic:

1. the user: note a random token for this attempt (`PREPARE`);
2. the session: mark it as the user's and read it (`CLAIM`). Further events of the session are stored for the user, so
   what was read stays as it is;
3. the user: add what was read and record the session, if the token is still there (`COPY`);
4. the session: delete what was copied (`RELEASE`);
5. the user: forget that it was copied, and the token of an attempt that may have read the same (`FINISH`).

It may end after any of them and be called again: the claim has an id, and a copy of the same claim is made once. An
erasure of the user finds claimed sessions by the tokens and erases them first. A session that is not claimed yet it
fences against the token (`FENCE`), as an attempt that claimed it afterwards and ended would leave a session of the user
that no token leads to. Then it removes the tokens that it has seen (`END`), so an attempt that read the session before
cannot bring erased data back: it finds no token and begins again. An event of a session
whose merge has not ended ends it first (`service.stores.deployment.cluster_histories`), so an event that was stored in
the session is recognised by its id.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from service.errors import RedisUnavailable
from service.settings.groups import HistorySettings
from service.stores.deployment.merge_scripts import (
    CLAIM,
    COPIED,
    COPY,
    END,
    FENCE,
    FINISH,
    PREPARE,
    RELEASE,
)
from service.stores.deployment.opening import Pipeline
from service.stores.history_keys import fenced_key, keys_of, merging_key
from service.stores.history_records import MOST_MERGES, stream_caps
from service.stores.protocols import session_owner
from service.stores.redis_client import texts

if TYPE_CHECKING:
    from service.stores.redis_connection import Part

_MOST_ATTEMPTS: Final = 5
_FENCED_S: Final = 3600  # far longer than an attempt is between its token and its claim


class SessionMerge:
    """Merges of sessions into users, over several slots.

    Args:
        writes: to the cluster.
        prefix: of all keys.
        retention: caps and times to live.
        count_lost: receives how many events were cut at the cap of a stream before they were exported.
    """

    def __init__(
        self,
        writes: Pipeline,
        prefix: str,
        retention: HistorySettings,
        count_lost: Callable[[int], None],
    ) -> None:
        self._writes = writes
        self._prefix = prefix
        self._retention = retention
        self._count_lost = count_lost

    async def merge(self, session_id: str, user_id: str, erase: Callable[[str], Awaitable[None]]) -> int | None:
        """Merge; returns how many entries of the history were moved, 0 if nothing was left to be moved.

        Returns None if the session was merged into another user.

        Args:
            session_id: of the session.
            user_id: of the user.
            erase: erases the oldest session of a user that has too many.

        Raises:
            RedisUnavailable: a call was not answered, or other attempts always came between; call again.
            ResponseError: Redis answered with an error.
        """
        session = session_owner(session_id)
        session_keys, fenced = [*keys_of(self._prefix, session)], fenced_key(self._prefix, session)
        user_keys, merging = [*keys_of(self._prefix, user_id)], merging_key(self._prefix, user_id)
        kept, token = self._retention, ""
        for _ in range(_MOST_ATTEMPTS):
            token = await self._prepare(session_id, user_id, erase, refused=token)
            of_session: list[Part] = [
                *(user_id, uuid.uuid4().hex, kept.session_ttl_s, session_id, *stream_caps(kept), token)
            ]
            owner, claim, *read, lost = await self._writes.run(CLAIM, [*session_keys, fenced], of_session, list)
            self._count_lost(lost)
            if not owner:  # the user was erased meanwhile, so this is a merge after the erasure
                continue
            if not claim:
                await self._writes.call("HDEL", merging, session_id, kind=int)
                return 0 if owner == user_id.encode() else None
            history, ids, impressions = read
            arguments: list[Part] = [
                *(kept.history_cap, kept.event_ids_cap, kept.impressions_cap, kept.ttl_s, kept.impressions_ttl_s),
                *(session_id, token, claim, self._lasts_s, len(history), len(ids), *history, *ids, *impressions),
            ]
            if await self._writes.run(COPY, [*user_keys, merging], arguments, int):
                await self._writes.run(RELEASE, session_keys, [claim], int)
                await self._writes.run(FINISH, [merging], [session_id, claim], int)
                return len(history)
        raise RedisUnavailable("other merges of this session always came between")

    async def claimed(self, user_id: str) -> list[str]:
        """The sessions of merges in progress that are marked as the user's.

        Raises:
            RedisUnavailable: a call was not answered.
            ResponseError: Redis answered with an error.
        """
        noted = texts(await self._writes.call("HGETALL", merging_key(self._prefix, user_id), kind=list))
        # What was copied has a field of its own, and the user has a record of it.
        sessions = [name for name in noted[::2] if not name.endswith(COPIED)]
        owners = await asyncio.gather(*map(self._owner, sessions))
        return [session for session, owner in zip(sessions, owners, strict=True) if owner == user_id.encode()]

    async def end(self, user_id: str, erase: Callable[[str], Awaitable[None]]) -> None:
        """End the merges into a user who is being erased: none that has begun claims or copies a session any more.

        Args:
            user_id: of the user.
            erase: erases a session that is marked as the user's.

        Raises:
            RedisUnavailable: a call was not answered; call again, and the same sessions are found.
            ResponseError: Redis answered with an error.
        """
        merging = merging_key(self._prefix, user_id)
        while noted := texts(await self._writes.call("HGETALL", merging, kind=list)):
            for session_id, token in zip(noted[::2], noted[1::2], strict=True):
                while not session_id.endswith(COPIED) and await self._is_claimed(session_id, user_id, token):
                    await erase(session_id)
            await self._writes.run(END, [merging], [*noted], int)

    async def _is_claimed(self, session_id: str, user_id: str, token: str) -> bool:
        """Whether a session is the user's; else the token is fenced."""
        owner = session_owner(session_id)
        keys = [keys_of(self._prefix, owner).merges, fenced_key(self._prefix, owner)]
        return bool(await self._writes.run(FENCE, keys, [user_id, token, _FENCED_S], int))

    async def _owner(self, session_id: str) -> bytes | None:
        """The user whose the session is; None: nobody's."""
        merges = keys_of(self._prefix, session_owner(session_id)).merges
        (owner,) = await self._writes.call("HMGET", merges, "user", kind=list)
        return owner if owner is None else bytes(owner)

    @property
    def _lasts_s(self) -> int:
        """Seconds that a merge in progress is known: longer than the session's data, so that no copy is made twice."""
        return 2 * max(self._retention.session_ttl_s, self._retention.impressions_ttl_s)

    async def _prepare(
        self, session_id: str, user_id: str, erase: Callable[[str], Awaitable[None]], *, refused: str
    ) -> str:
        """The token of an attempt; another one than that which was refused."""
        keys = [keys_of(self._prefix, user_id).merges, merging_key(self._prefix, user_id)]
        while True:
            arguments: list[Part] = [*(session_id, uuid.uuid4().hex, refused, MOST_MERGES, MOST_MERGES, self._lasts_s)]
            token, oldest = texts(await self._writes.run(PREPARE, keys, arguments, list))
            if not oldest:
                return token
            await erase(oldest)
