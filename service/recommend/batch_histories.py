"""Reads the histories of all users of a batch request together, so that they share few round trips to Redis."""

import asyncio
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Final

from service.stores.protocols import HistoryEntry, HistoryReader

MOST_READS: Final = 128
"""Reads of all batches together that the store has at once: a round trip to Redis holds as many. More would fill the
queue in which the reads of other requests wait too."""


class BatchHistories:
    """Histories whose reads begin on construction; the history of a user who is named twice is read once.

    Args:
        histories: the store.
        owners: users and sessions, see `service.stores.protocols.session_owner`.
        turns: bounds the reads of all batches together, see :data:`MOST_READS`; None: one request has few.
    """

    def __init__(self, histories: HistoryReader, owners: Iterable[str], turns: asyncio.Semaphore | None) -> None:
        self._histories = histories
        self._turns = turns
        self._reads = {owner: asyncio.ensure_future(self._read(owner)) for owner in dict.fromkeys(owners)}
        for read in self._reads.values():
            read.add_done_callback(_retrieve_error)

    async def entries(self, owner: str) -> list[HistoryEntry]:
        """The history of one of these owners, see `HistoryReader.entries`; cancelling a caller does not end the read.

        Raises:
            HistoriesUnavailable: the store does not answer in its time.
        """
        return list(await asyncio.shield(self._reads[owner]))

    async def _read(self, owner: str) -> list[HistoryEntry]:
        async with self._turns or nullcontext():
            return await self._histories.entries(owner)

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
