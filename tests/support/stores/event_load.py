"""Events at a steady rate, with a record of the acknowledged ones."""

import asyncio
from collections import Counter
from time import time
from typing import Any

from service.errors import HistoriesUnavailable
from service.stores.protocols import Event
from service.stores.redis_histories import RedisHistories

RATE = 200
USERS = 97


class EventLoad:
    """Sends events one by one at `RATE` a second, each with an id of its own.

    Args:
        store: gets them.

    Attributes:
        acknowledged: events that the store answered as stored.
        refused: the others.
    """

    def __init__(self, store: RedisHistories) -> None:
        self._store = store
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = time()
        self.acknowledged: list[Event] = []
        self.refused: list[Event] = []

    async def run(self) -> None:
        """Send until `stop` is called, then wait for the last answers."""
        loop, number = asyncio.get_running_loop(), 0
        began = loop.time()
        while not self._stop.is_set():
            event = Event(f"u{number % USERS}", f"i{number}", self._began, event_id=f"e{number}")
            task = loop.create_task(self._send(event))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
            await asyncio.sleep(max(0.0, began + number / RATE - loop.time()))
        await asyncio.gather(*self._tasks)

    def stop(self) -> None:
        self._stop.set()

    async def _send(self, event: Event) -> None:
        try:
            await self._store.append([event])
        except HistoriesUnavailable:
            self.refused.append(event)
        else:
            self.acknowledged.append(event)

    async def acknowledges(self, more: int) -> None:
        """Wait until so many more events are acknowledged."""
        wanted = len(self.acknowledged) + more
        async with asyncio.timeout(120):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.02)

    async def send_refused_again(self) -> None:
        """Send every refused event until it is acknowledged."""
        async with asyncio.timeout(120):
            while self.refused:
                event = self.refused.pop()
                await self._send(event)

    async def lost(self) -> int:
        """How many acknowledged events are not in the stream; none is in it twice."""
        stored: Counter[Any] = Counter(event.event_id for event in await self._store.stream())
        assert not [name for name, count in stored.items() if count > 1]
        return sum(event.event_id not in stored for event in self.acknowledged)
