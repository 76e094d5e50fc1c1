"""Defines the stores of histories and of operator state as Protocols, with their value objects.

Each has a Redis adapter (`service.stores.redis_histories`, `service.stores.redis_operator_state`) and a fake in memory
(tests/support); one contract suite tests both
(tests/service/stores/test_histories_contract.py, tests/service/stores/test_operator_state_contract.py).
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, Protocol

from index.bundle.event_types import Outcome

StoredIn = Literal["history", "impressions", "stream"]
OTHER_EXPERIMENT: Final = (
    "another experiment was started or ended meanwhile; see GET /experiments/NAME or GET /audit, and try again"
)
"""Detail of the conflict of a store whose experiment is another one than the caller knew."""
_SESSION: Final = "\x1f"  # ids hold no control characters, so an owner of this form is no user


def session_owner(session_id: str) -> str:
    """The owner of an anonymous session's data; the owner of a user's data is the user id."""
    return f"{_SESSION}{session_id}"


def session_of(owner: str) -> str | None:
    """The id of the session that owns data; None: the owner is a user."""
    return owner.removeprefix(_SESSION) if owner.startswith(_SESSION) else None


def sessions_among(owners: Iterable[str]) -> list[str]:
    """The owners that are anonymous sessions."""
    return [owner for owner in owners if owner.startswith(_SESSION)]


@dataclass(slots=True)  # not frozen: that sets each field by a call, and a bulk has 1,000 events
class Event:
    """An interaction of a user with an item; never changed once it is made.

    Attributes:
        user_id: 1 to 256 bytes, no control characters; for an anonymous session :func:`session_owner`.
        item_id: 1 to 256 bytes, no control characters; need not be in the active bundle.
        timestamp: seconds since 1970, UTC.
        type: kind of interaction, as in ``purchase``; None if not given.
        event_id: an event of this user with the same id is stored once; None: always stored.
        request_id: id of the request whose answer led to it; None if not given.
        session_id: session in which it happened; None if not given.
        stored_in: the list of its user that gets it; ``stream``: neither. The stream gets every event.
        value: of a conversion, as in the price paid, 0 … 1e9; None if not given.
        arm: experiment and arm that the user was in, as in ``prices/control``; None: in none.
        outcome: of an answer that it may be an outcome of; None: of none. It is not stored.
        is_timed: whether the client sent the timestamp; else it is the time of the arrival. It is not stored.
    """

    user_id: str
    item_id: str
    timestamp: float
    type: str | None = None
    event_id: str | None = None
    request_id: str | None = None
    session_id: str | None = None
    stored_in: StoredIn = field(default="history", compare=False)
    value: float | None = None
    arm: str | None = None
    outcome: Outcome | None = field(default=None, compare=False)
    is_timed: bool = field(default=True, compare=False)


OfUser = Callable[[Event, str], Event]
"""Makes an event of a merged session one of its user."""


def event_of_user(event: Event, user_id: str) -> Event:
    """The event as one of this user, with all else as it is."""
    return replace(event, user_id=user_id)


class HistoryEntry(NamedTuple):
    """One step of a user's history; fields as in :class:`Event`."""

    item_id: str
    timestamp: float
    type: str | None = None


Forget = Callable[[str], Awaitable[None]]
"""Deletes what another store has of an owner."""


class HistoryReader(Protocol):
    """Reads histories for recommendations."""

    async def entries(self, owner: str) -> list[HistoryEntry]:
        """The stored history of a user or a session, oldest first; empty for an unknown one.

        Raises:
            HistoriesUnavailable: the store does not answer in its time.
        """
        ...

    async def impressions(self, owner: str) -> list[HistoryEntry]:
        """The stored impressions in order of arrival, otherwise as :meth:`entries`."""
        ...

    async def merged_into(self, session_id: str) -> str | None:
        """The user that an anonymous session was merged into; None: nobody, or the merge has not ended.

        Raises:
            HistoriesUnavailable: as :meth:`entries`.
        """
        ...


class HistoryStore(HistoryReader, Protocol):
    """Stores the newest events of each user, and all events in one capped stream for retraining.

    Every method raises `HistoriesUnavailable` when the store does not answer in its time.
    """

    async def append(self, events: Sequence[Event], of_user: OfUser = event_of_user) -> Sequence[int]:
        """Store all of the events or none, those of a merged session for its user.

        In the history an event comes before the newest ones of a later time, if it is at most `late_s` old. An older
        one comes last; those of one call in order of their times. One whose time is still to come is passed by none.

        Args:
            events: to be stored.
            of_user: called with each event of a merged session and the user; returns the event that is stored.

        Returns:
            Positions of those that are newly stored, ascending: an event whose id this user already sent is not stored
            again.

        Raises:
            BulkPartlyStored: in a cluster, where all or none of each bucket are stored; it says which events are.
        """
        ...

    async def merge(self, session_id: str, user_id: str, forget: Forget | None = None) -> int:
        """Move an anonymous session's history, impressions and event ids to a user, in one step.

        In a cluster it takes several steps. After a failure it is called again, and goes on.

        Both histories are merged by time. Later events of the session are stored for the user, until the seconds to
        live of a session have passed since the last of them, or since the last call. Entries in the stream stay those
        of the session. A user who has too many sessions loses the oldest one, which is erased first.

        Args:
            session_id: of the anonymous session.
            user_id: of the user.
            forget: awaited with the owner of each session that is erased for this one, before its data is deleted.

        Returns:
            How many entries of the history were moved; 0 if the session was merged into this user before.

        Raises:
            SessionMerged: the session was merged into another user.
        """
        ...

    async def merged_sessions(self, user_id: str) -> list[str]:
        """The ids of the sessions merged into a user that are known."""
        ...

    async def erase(self, user_id: str, forget: Forget | None = None) -> None:
        """Delete everything that is stored about a user and the sessions merged into it, also in the stream.

        An unknown user is no error.

        Args:
            user_id: of the user.
            forget: awaited with each owner, sessions first, before its data is deleted; after an error of it the
                erasure can be repeated, and finds the same owners.
        """
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
        experiment: the running experiment as JSON; None: none runs.
    """

    edition: Edition
    pin: str | None
    whole: bool
    hidden: tuple[str, ...]
    shown: tuple[str, ...] = ()
    experiment: str | None = None


class OperatorStateStore(Protocol):
    """Stores the operator state of all replicas: which bundle is pinned, which items are hidden, and which
    experiment runs.

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

    async def set_experiment(self, definition: str | None, known: Edition, *, instead_of: str | None) -> bool:
        """Run an experiment, given as JSON, or none; setting the same again changes nothing.

        Raises:
            Conflict: another one runs than ``instead_of``, or none; nothing is changed.
        """
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

    async def log_change(self, entry: str) -> None:
        """Add an entry to the audit log; it is no change of the state. The newest 1000 are kept."""
        ...

    async def logged_changes(self) -> list[str]:
        """The entries of the audit log, newest first."""
        ...

    async def restore(
        self, edition: Edition, pin: str | None, hidden: Sequence[str], experiment: str | None = None
    ) -> None:
        """Write this state to a store that is behind ``edition``; otherwise change nothing."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
