"""A history store in memory, for tests."""

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, time

from service.errors import HistoriesUnavailable, SessionMerged
from service.stores.history_keys import bucket_cap, bucket_of
from service.stores.protocols import (
    Event,
    Forget,
    HistoryEntry,
    OfUser,
    event_of_user,
    session_of,
    session_owner,
)


class MemoryHistories:
    """Histories in this process; lost when it ends.

    Args:
        history_cap: newest events kept of each user.
        ttl_s: seconds after a user's last event until the history is forgotten.
        stream_cap: newest events kept of all users, an equal part of them of each bucket.
        event_ids_cap: newest event ids of each user against which retries are recognised.
        late_s: seconds that an event may arrive late and still get its place by its time.
        impressions_cap: newest impressions kept of each user.
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
        late_s: int = 3600,
        impressions_cap: int = 200,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._history_cap = history_cap
        self._ttl_s = ttl_s
        self._event_ids_cap = event_ids_cap
        self._late_s = late_s
        self._clock = clock
        self._histories: dict[str, list[HistoryEntry]] = {}
        self._impressions_cap = impressions_cap
        self._impressions: dict[str, list[HistoryEntry]] = {}
        self._merges: dict[str, str] = {}
        self._event_ids: dict[str, dict[str, None]] = {}
        self._expires: dict[str, float] = {}
        self._bucket_cap = bucket_cap(stream_cap)
        self._arrived = 0
        self._streams: dict[int, deque[tuple[int, Event]]] = {}
        self.available = True

    async def append(self, events: Sequence[Event], of_user: OfUser = event_of_user) -> Sequence[int]:
        """Store events; see `HistoryStore.append`."""
        self._check_available()
        new = []
        merges = self._merges
        events = [of_user(event, merges[event.user_id]) if event.user_id in merges else event for event in events]
        for place in sorted(range(len(events)), key=lambda place: events[place].timestamp):
            event = events[place]
            self._forget_if_expired(event.user_id)
            event_ids = self._event_ids.setdefault(event.user_id, {})
            if event.event_id is not None:
                if event.event_id in event_ids:
                    continue
                event_ids[event.event_id] = None
            entry = HistoryEntry(event.item_id, event.timestamp, event.type)
            if event.stored_in == "history":
                self._insert(self._histories.setdefault(event.user_id, []), entry, by_time=event.is_timed)
            elif event.stored_in == "impressions":
                self._impressions.setdefault(event.user_id, []).append(entry)
            self._expires[event.user_id] = self._clock() + self._ttl_s
            self._stream_of(event.user_id).append((self._arrived, event))
            self._arrived += 1
            new.append(place)
        for user_id in {event.user_id for event in events}:  # after the whole call, as all of it is one
            del self._histories.get(user_id, [])[: -self._history_cap]
            del self._impressions.get(user_id, [])[: -self._impressions_cap]
            event_ids = self._event_ids[user_id]
            while len(event_ids) > self._event_ids_cap:
                del event_ids[next(iter(event_ids))]
        return sorted(new)

    def _insert(self, history: list[HistoryEntry], entry: HistoryEntry, *, by_time: bool) -> None:
        now, place = time(), len(history)
        if by_time and entry.timestamp >= now - self._late_s:
            while place and entry.timestamp < history[place - 1].timestamp <= now:
                place -= 1
        history.insert(place, entry)

    async def entries(self, owner: str) -> list[HistoryEntry]:
        """Events, oldest first; see `HistoryReader.entries`."""
        self._check_available()
        self._forget_if_expired(owner)
        return list(self._histories.get(owner, ()))

    async def impressions(self, owner: str) -> list[HistoryEntry]:
        """Impressions; see `HistoryReader.impressions`."""
        self._check_available()
        self._forget_if_expired(owner)
        return list(self._impressions.get(owner, ()))

    async def merged_into(self, session_id: str) -> str | None:
        """The user of a session; see `HistoryReader.merged_into`."""
        self._check_available()
        return self._merges.get(session_owner(session_id))

    async def merge(self, session_id: str, user_id: str) -> int:
        """Merge a session into a user; see `HistoryStore.merge`."""
        self._check_available()
        owner = session_owner(session_id)
        if self._merges.get(owner, user_id) != user_id:
            raise SessionMerged("of another user")
        self._merges[owner] = user_id
        moved, shown = self._histories.pop(owner, []), self._impressions.pop(owner, [])
        if moved:
            both = sorted([*self._histories.get(user_id, ()), *moved], key=lambda entry: entry.timestamp)
            self._histories[user_id] = both[-self._history_cap :]
            self._expires[user_id] = self._clock() + self._ttl_s
        if shown:
            self._impressions[user_id] = [*self._impressions.get(user_id, ()), *shown][-self._impressions_cap :]
        self._event_ids.setdefault(user_id, {}).update(self._event_ids.pop(owner, {}))
        return len(moved)

    async def merged_sessions(self, user_id: str) -> list[str]:
        """Sessions of a user; see `HistoryStore.merged_sessions`."""
        self._check_available()
        return [session_of(owner) or "" for owner, user in self._merges.items() if user == user_id]

    async def erase(self, user_id: str, forget: Forget | None = None) -> None:
        """Erase a user; see `HistoryStore.erase`."""
        self._check_available()
        for owner in [owner for owner, user in self._merges.items() if user == user_id]:
            await self.erase(owner, forget)
            del self._merges[owner]
        if forget is not None:
            await forget(user_id)
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
        for kept in (self._histories, self._impressions, self._event_ids, self._expires):
            kept.pop(user_id, None)
