"""Reads the histories of all users of a batch request at once, so that they share one round trip to Redis."""

import asyncio
from collections.abc import Iterable

from service.stores.protocols import HistoryEntry, HistoryReader


class BatchHistories:
    """Histories whose reads begin on construction; the history of a user who is named twice is read once.

    Args:
        histories: the store.
        owners: users and sessions, see `service.stores.protocols.session_owner`.
    """

    def __init__(self, histories: HistoryReader, owners: Iterable[str]) -> None:
        self._histories = histories
        self._reads = {owner: asyncio.ensure_future(histories.entries(owner)) for owner in dict.fromkeys(owners)}
        for read in self._reads.values():
            read.add_done_callback(_retrieve_error)

    async def entries(self, owner: str) -> list[HistoryEntry]:
        """The history of one of these owners, see `HistoryReader.entries`; cancelling a caller does not end the read.

        Raises:
            HistoriesUnavailable: the store does not answer in its time.
        """
        return list(await asyncio.shield(self._reads[owner]))

    async def impressions(self, owner: str) -> list[HistoryEntry]:
        """The impressions of an owner, read when they are needed; raises as :meth:`entries`."""
        return await self._histories.impressions(owner)

    def close(self) -> None:
        """Cancel the reads that are not done."""
        for read in self._reads.values():
            read.cancel()


def _retrieve_error(read: "asyncio.Future[list[HistoryEntry]]") -> None:
    """Retrieve the exception of a read; asyncio logs an error for one that nobody retrieved."""
    if not read.cancelled():
        read.exception()
