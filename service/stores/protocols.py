"""What the service asks of the outside: stores of histories and of directives, as Protocols with their value objects.

Each has a real adapter (`service.stores.redis_histories`, `service.stores.redis_operator_state`) and a fake in memory
(tests/support), both held to the same behaviour by one contract suite
(tests/service/stores/test_histories_contract.py, tests/service/stores/test_operator_state_contract.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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


class HistoryReader(Protocol):
    """What a recommendation needs of the histories."""

    async def recent(self, user_id: str) -> list[str]:
        """Item ids of a user's whole kept history, oldest first; empty for an unknown user.

        Raises:
            HistoriesUnavailable: the store does not answer in its time.
        """
        ...


class HistoryStore(HistoryReader, Protocol):
    """Keeps the newest events of each user, and all events in one capped stream for retraining.

    Every method raises `HistoriesUnavailable` when the store does not answer in its time.
    """

    async def append(self, events: Sequence[Event]) -> int:
        """Store events all or none; by timestamp within the call, after all that came earlier.

        Returns:
            How many were new: an event whose id this user already sent is not stored again.
        """
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

    async def is_cluster_node(self) -> bool:
        """Whether it is one node of a cluster, which takes no bulk of several users; False where it does not say."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class Edition:
    """Which state of the directives something is.

    Attributes:
        epoch: names one life of the store, from its first directive until it loses all; empty before the first.
        number: changes made in that life; every change adds one.
        erasure: names the last erasure of a user on any replica, at random; empty before the first. It is no change.
    """

    epoch: str = ""
    number: int = 0
    erasure: str = field(default="", compare=False)

    def is_behind(self, other: "Edition") -> bool:
        """Whether this state lacks what ``other`` has: a store that lost everything, or went back in time."""
        return bool(other.epoch) and (not self.epoch or (self.epoch == other.epoch and self.number < other.number))


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed in the directives.

    Attributes:
        edition: the state that these changes lead to, at least.
        pin: the bundle that every replica serves whatever the pointer says; None: the pointer's.
        whole: ``hidden`` is the whole set; what is not in it is shown.
        hidden: item ids hidden since.
        shown: item ids shown again since, all of them after any hiding in ``hidden``.
    """

    edition: Edition
    pin: str | None
    whole: bool
    hidden: tuple[str, ...]
    shown: tuple[str, ...] = ()


class OperatorStateStore(Protocol):
    """Keeps what operators tell all replicas: which bundle is pinned and which items are hidden.

    Every method raises `OperatorStateUnavailable` when the store does not answer in its time. Those that write change
    nothing and give False when the store is behind ``known``, so that its loss is repaired first, by :meth:`restore`.
    """

    async def edition(self) -> Edition:
        """The state of the store now; one short call, for polling."""
        ...

    async def changes(self, since: Edition) -> Changes:
        """What changed since a state; everything if that state is of another life or too old."""
        ...

    async def pin(self, bundle_id: str | None, known: Edition) -> bool:
        """Pin a bundle, or none; the same pin again changes nothing."""
        ...

    async def hide(self, item_id: str, known: Edition) -> bool:
        """Hide an item; one that is hidden already changes nothing."""
        ...

    async def show(self, item_id: str, known: Edition) -> bool:
        """Show a hidden item again; one that is not hidden changes nothing."""
        ...

    async def announce_erasure(self) -> None:
        """Let every replica know by the edition that a user was erased; whose it was is not said."""
        ...

    async def restore(self, edition: Edition, pin: str | None, hidden: Sequence[str]) -> None:
        """Give a store that is behind ``edition`` this state back; one that is not stays as it is."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
