"""Reads the histories of all users of a request together, so that they share few round trips to Redis."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import nullcontext
from typing import Any, Final, TypeVar

from service.stores.protocols import HistoryEntry, HistoryReader, session_of

MOST_READS: Final = 128
"""Reads of all batches together that the store has at once: a round trip to Redis holds as many. More would fill the
queue in which the reads of other requests wait too."""

_T = TypeVar("_T")


class BatchHistories:
    """Histories whose reads begin on construction; the history of a user who is named twice is read once.

    Args:
        histories: the store.
        owners: users and sessions, see `service.stores.protocols.session_owner`.
        turns: bounds the reads of all batches together, see :data:`MOST_READS`; None: one request has few.
        alone: ids of those sessions among the owners that a request names without a user. The store is asked for their
            users together with their histories, and the history of a user who is found is read at once.
    """

    def __init__(
        self,
        histories: HistoryReader,
        owners: Iterable[str],
        turns: asyncio.Semaphore | None,
        alone: Iterable[str] = (),
    ) -> None:
        self._histories = histories
        self._turns = turns
        self._reads: dict[str, asyncio.Future[list[HistoryEntry]]] = {}
        for owner in owners:
            self._read(owner)
        # After the histories: a merge between the two would show neither the history of the session nor its user.
        self._users = {session: _begun(self._user(session)) for session in dict.fromkeys(alone)}

    async def entries(self, owner: str) -> list[HistoryEntry]:
        """The history of an owner, see `HistoryReader.entries`; cancelling a caller does not end the read.

        Raises:
            HistoriesUnavailable: the store does not answer in its time. Also where it did not say whose a session is
                that was named alone, as an empty history may then be that of a merged session.
        """
        session = session_of(owner)
        if session is not None and session in self._users:
            await self.merged_into(session)
        return list(await asyncio.shield(self._read(owner)))

    async def impressions(self, owner: str) -> list[HistoryEntry]:
        """The impressions of an owner, read when they are needed; raises as :meth:`entries`."""
        return await self._histories.impressions(owner)

    async def merged_into(self, session_id: str) -> str | None:
        """The user of a session, see `HistoryReader.merged_into`; raises as :meth:`entries`."""
        if session_id in self._users:
            return await asyncio.shield(self._users[session_id])
        return await self._histories.merged_into(session_id)

    def close(self) -> None:
        """Cancel the reads that are not done."""
        for lookup in self._users.values():
            lookup.cancel()
        for read in self._reads.values():
            read.cancel()

    def _read(self, owner: str) -> "asyncio.Future[list[HistoryEntry]]":
        """The read of a history, which begins with the first call."""
        if owner not in self._reads:
            self._reads[owner] = _begun(self._in_turn(self._histories.entries, owner))
        return self._reads[owner]

    async def _user(self, session_id: str) -> str | None:
        user = await self._in_turn(self._histories.merged_into, session_id)
        if user is not None:
            self._read(user)
        return user

    async def _in_turn(self, read: Callable[[str], Awaitable[_T]], name: str) -> _T:
        async with self._turns or nullcontext():
            return await read(name)


def _begun(call: Coroutine[Any, Any, _T]) -> "asyncio.Future[_T]":
    begun = asyncio.ensure_future(call)
    begun.add_done_callback(_retrieve_error)
    return begun


def _retrieve_error(call: "asyncio.Future[Any]") -> None:
    """Retrieve the exception of a call; asyncio logs an error for one that nobody retrieved."""
    if not call.cancelled():
        call.exception()
