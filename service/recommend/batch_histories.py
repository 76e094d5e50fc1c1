"""Prefetch: the histories of several users, asked for at the same moment so that they share one round trip."""

import asyncio
from collections.abc import Iterable

from service.stores.protocols import HistoryReader


class BatchHistories:
    """Histories that are being read since this was made; a user who is named twice is read once.

    Args:
        histories: where they are.
        users: whose.
    """

    def __init__(self, histories: HistoryReader, users: Iterable[str]) -> None:
        self._reads = {user: asyncio.ensure_future(histories.recent(user)) for user in dict.fromkeys(users)}
        for read in self._reads.values():
            read.add_done_callback(_retrieve)

    async def recent(self, user_id: str) -> list[str]:
        """See `HistoryReader.recent`; of a user who was named. Giving up on it leaves it to others who wait for it.

        Raises:
            HistoriesUnavailable: the store does not answer in its time.
        """
        return list(await asyncio.shield(self._reads[user_id]))

    def close(self) -> None:
        """Give up what is still being read."""
        for read in self._reads.values():
            read.cancel()


def _retrieve(read: "asyncio.Future[list[str]]") -> None:
    """Look at how a read ended: one that failed with nobody waiting any more would be reported as forgotten."""
    if not read.cancelled():
        read.exception()
