"""Defines the stores of histories and of operator state as Protocols, with their value objects.

Each has a Redis adapter (`service.stores.redis_histories`, `service.stores.redis_operator_state`) and a fake in memory
(tests/support); one contract suite tests both
(tests/service/stores/test_histories_contract.py, tests/service/stores/test_operator_state_contract.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Event:
    """An interaction of a user with an item.

    Attributes:
        user_id: 1 to 256 bytes, no control characters.
        item_id: 1 to 256 bytes, no control characters; need not be in the active bundle.
        timestamp: seconds since 1970, UTC.
        type: kind of interaction, as in ``purchase``; None if not given.
        event_id: an event of this user with the same id is stored once; None: always stored.
        request_id: id of the request whose answer led to it; None if not given.
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
    """Reads histories for recommendations."""

    async def recent(self, user_id: str) -> list[str]:
        """Item ids of a user's stored history, oldest first; empty for an unknown user.

        Raises:
            HistoriesUnavailable: the store does not answer in its time.
        """
        ...


class HistoryStore(HistoryReader, Protocol):
    """Stores the newest events of each user, and all events in one capped stream for retraining.

    Every method raises `HistoriesUnavailable` when the store does not answer in its time.
    """

    async def append(self, events: Sequence[Event]) -> int:
        """Store all of the events or none; sorted by timestamp, after the events of earlier calls.

        Returns:
            How many were stored: an event whose id this user already sent is not stored again.
        """
        ...

    async def entries(self, user_id: str) -> list[HistoryEntry]:
        """A user's stored history, oldest first; empty for an unknown user."""
        ...

    async def erase(self, user_id: str) -> None:
        """Delete everything that is stored about a user, also in the stream; an unknown user is no error."""
        ...

    async def alive(self) -> bool:
        """Whether the store answers; never raises."""
        ...

    async def is_cluster_node(self) -> bool:
        """Whether the store is a cluster node, which takes no bulk of several users; False if it does not say."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True)
class Edition:
    """The version of an operator state.

    Attributes:
        epoch: random name of one life of the store, from its first change until it loses its data; empty before that.
        number: number of changes in that life.
        erasure: random name of the last erasure of a user on any replica; empty before the first. It counts as no
            change.
    """

    epoch: str = ""
    number: int = 0
    erasure: str = field(default="", compare=False)

    def is_behind(self, other: "Edition") -> bool:
        """Whether this version lacks changes of ``other``: its store lost all data, or went back to an older state."""
        return bool(other.epoch) and (not self.epoch or (self.epoch == other.epoch and self.number < other.number))


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of an operator state since an edition.

    Attributes:
        edition: the state with these changes has at least this edition.
        pin: the bundle that every replica serves; None: the registry's current bundle.
        whole: ``hidden`` is the complete set; all other items are shown.
        hidden: item ids hidden since.
        shown: item ids shown again since; to be applied after ``hidden``.
    """

    edition: Edition
    pin: str | None
    whole: bool
    hidden: tuple[str, ...]
    shown: tuple[str, ...] = ()


class OperatorStateStore(Protocol):
    """Stores the operator state of all replicas: which bundle is pinned and which items are hidden.

    Every method raises `OperatorStateUnavailable` when the store does not answer in its time. Methods that write change
    nothing and return False if the store is behind ``known``; the caller then repairs it first, with :meth:`restore`.
    """

    async def edition(self) -> Edition:
        """The edition of the store now; one short call, for polling."""
        ...

    async def changes(self, since: Edition) -> Changes:
        """The changes since an edition; the whole state if that edition is of another epoch or too old."""
        ...

    async def pin(self, bundle_id: str | None, known: Edition) -> bool:
        """Pin a bundle, or none; setting the same pin again changes nothing."""
        ...

    async def hide(self, item_id: str, known: Edition) -> bool:
        """Hide an item; hiding a hidden one changes nothing."""
        ...

    async def show(self, item_id: str, known: Edition) -> bool:
        """Show a hidden item again; showing one that is not hidden changes nothing."""
        ...

    async def announce_erasure(self) -> None:
        """Announce the erasure of a user to every replica by a new edition, which does not name the user."""
        ...

    async def restore(self, edition: Edition, pin: str | None, hidden: Sequence[str]) -> None:
        """Write this state to a store that is behind ``edition``; otherwise change nothing."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
