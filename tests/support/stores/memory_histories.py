"""A history store in memory, for tests."""

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from service.errors import HistoriesUnavailable
from service.stores.history_keys import bucket_cap, bucket_of
from service.stores.protocols import Event, HistoryEntry


class MemoryHistories:
    """Histories in this process; lost when it ends.

    Args:
        history_cap: newest events kept of each user.
        ttl_s: seconds after a user's last event until the history is forgotten.
        stream_cap: newest events kept of all users, an equal part of them of each bucket.
        event_ids_cap: newest event ids of each user against which retries are recognised.
        clock: seconds, monotonic.

    Attributes:
        available: set it to False and every call fails as if the store were down.
    """

    def __init__(
        self,
        *,
        history_cap: int = 200,
        ttl_s: int = 90 * 86_400,
        stream_cap: int = 1_000_000,
        event_ids_cap: int = 1000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._history_cap = history_cap
        self._ttl_s = ttl_s
        self._event_ids_cap = event_ids_cap
        self._clock = clock
        self._histories: dict[str, deque[HistoryEntry]] = {}
        self._event_ids: dict[str, dict[str, None]] = {}
        self._expires: dict[str, float] = {}
        self._bucket_cap = bucket_cap(stream_cap)
        self._arrived = 0
        self._streams: dict[int, deque[tuple[int, Event]]] = {}
        self.available = True

    async def append(self, events: Sequence[Event]) -> int:
        """Store events; see `HistoryStore.append`."""
        self._check_available()
        stored = 0
        for event in sorted(events, key=lambda event: event.timestamp):
            self._forget_if_expired(event.user_id)
            event_ids = self._event_ids.setdefault(event.user_id, {})
            if event.event_id is not None:
                if event.event_id in event_ids:
                    continue
                event_ids[event.event_id] = None
            history = self._histories.setdefault(event.user_id, deque(maxlen=self._history_cap))
            history.append(HistoryEntry(event.item_id, event.timestamp, event.type))
            self._expires[event.user_id] = self._clock() + self._ttl_s
            self._stream_of(event.user_id).append((self._arrived, event))
            self._arrived += 1
            stored += 1
        for user_id in {event.user_id for event in events}:  # after the whole call, as all of it is one
            event_ids = self._event_ids[user_id]
            while len(event_ids) > self._event_ids_cap:
                del event_ids[next(iter(event_ids))]
        return stored

    async def recent(self, user_id: str) -> list[str]:
        """Item ids, oldest first; see `HistoryStore.recent`."""
        return [entry.item_id for entry in await self.entries(user_id)]

    async def entries(self, user_id: str) -> list[HistoryEntry]:
        """Events, oldest first; see `HistoryStore.entries`."""
        self._check_available()
        self._forget_if_expired(user_id)
        return list(self._histories.get(user_id, ()))

    async def erase(self, user_id: str) -> None:
        """Erase a user; see `HistoryStore.erase`."""
        self._check_available()
        self._forget(user_id)
        stream = self._stream_of(user_id)
        kept = [(number, event) for number, event in stream if event.user_id != user_id]
        stream.clear()
        stream.extend(kept)

    async def alive(self) -> bool:
        """Whether calls are answered."""
        return self.available

    async def is_cluster_node(self) -> bool:
        """Always False."""
        return False

    async def close(self) -> None:
        """Nothing to close."""

    async def stream(self) -> list[Event]:
        """The streams of all buckets together, oldest first."""
        entries = sorted(entry for stream in self._streams.values() for entry in stream)
        return [event for _, event in entries]

    def _stream_of(self, user_id: str) -> deque[tuple[int, Event]]:
        return self._streams.setdefault(bucket_of(user_id), deque(maxlen=self._bucket_cap))

    def _check_available(self) -> None:
        if not self.available:
            raise HistoriesUnavailable("histories are switched off; try again later")

    def _forget_if_expired(self, user_id: str) -> None:
        if self._expires.get(user_id, float("inf")) <= self._clock():
            self._forget(user_id)

    def _forget(self, user_id: str) -> None:
        for kept in (self._histories, self._event_ids, self._expires):
            kept.pop(user_id, None)
