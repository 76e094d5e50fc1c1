"""What the service asks of the outside: the store of histories, as a Protocol with its value objects.

Adapters: `service.redis_sessions` (real) and `service.memory_sessions` (a fake with the same behaviour, held to it by
one contract suite, tests/service/test_sessions_contract.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Event:
    """A user did something with an item.

    Attributes:
        user_id: 1 to 256 bytes, no control characters.
        item_id: likewise; need not be in the current bundle.
        timestamp: seconds since 1970, UTC.
        type: what was done, as in ``purchase``; None when not said.
        event_id: an event of this user with the same id is stored once; None: always stored.
        request_id: the answer that led to it; None when not said.
    """

    user_id: str
    item_id: str
    timestamp: float
    type: str | None = None
    event_id: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One step of a user's history; fields as in :class:`Event`."""

    item_id: str
    timestamp: float
    type: str | None = None


class HistoryStore(Protocol):
    """Keeps the newest events of each user, and all events in one capped stream for retraining.

    Every method raises `SessionsUnavailable` when the store does not answer in its time.
    """

    async def append(self, events: Sequence[Event]) -> int:
        """Store events all or none; by timestamp within the call, after all that came earlier.

        Returns:
            How many were new: an event whose id this user already sent is not stored again.
        """
        ...

    async def recent(self, user_id: str) -> list[str]:
        """Item ids of a user's whole kept history, oldest first; empty for an unknown user."""
        ...

    async def entries(self, user_id: str) -> list[HistoryEntry]:
        """A user's whole kept history, oldest first; empty for an unknown user."""
        ...

    async def erase(self, user_id: str) -> None:
        """Forget all that is kept of a user, the stream's entries too; unknown users are no error."""
        ...

    async def alive(self) -> bool:
        """Whether the store answers; never raises."""
        ...
