"""Reads the histories of all users of a batch request at once, so that they share one round trip to Redis."""

import asyncio
from collections.abc import Iterable

from service.stores.protocols import HistoryReader


class BatchHistories:
    """Histories whose reads begin on construction; the history of a user who is named twice is read once.

    Args:
        histories: the store.
        users: ids of the users.
    """

    def __init__(self, histories: HistoryReader, users: Iterable[str]) -> None:
        self._reads = {user: asyncio.ensure_future(histories.recent(user)) for user in dict.fromkeys(users)}
        for read in self._reads.values():
            read.add_done_callback(_retrieve_error)

    async def recent(self, user_id: str) -> list[str]:
        """The history of one of these users, see `HistoryReader.recent`; cancelling a caller does not end the read.

        Raises:
            HistoriesUnavailable: the store does not answer in its time.
        """
        return list(await asyncio.shield(self._reads[user_id]))

    def close(self) -> None:
        """Cancel the reads that are not done."""
        for read in self._reads.values():
            read.cancel()


def _retrieve_error(read: "asyncio.Future[list[str]]") -> None:
    """Retrieve the exception of a read; asyncio logs an error for one that nobody retrieved."""
    if not read.cancelled():
        read.exception()
