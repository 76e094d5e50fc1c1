"""Decides which requests are let in, by how many are in progress and how late the event loop is (docs/adr/0014)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from service.errors import QueueFull

_RESPONSES_PER_POPULAR_ONE: Final = 10
_MOST_CREDIT: Final = 640
_PROMPT_S: Final = 0.005  # lateness up to which the event loop keeps up while it turns requests away
_SMALLEST_LIMIT: Final = 16
_HEAVIEST_BATCH: Final = 16  # of its members eight are processed at a time, and as many wait for them
_SHRINK, _GROW = 0.7, 1.2
_ALONE: Final = nullcontext()


class Admission:
    """Requests in progress, from the end of the head to the end of the response. Used by the event loop alone.

    `service.http.protocol` counts requests here and turns the excess away before the application is asked.

    Up to half of the bound requests are answered in full. Above it a request gets popular items; since that takes the
    event loop about as long as a full response, at most one in ten responses is such a one. At the bound none is let
    in. Turning requests away takes little time, but an event loop that cannot keep up is late with that too. So the
    limit shrinks until the event loop is prompt, and grows again when it is.

    A batch of recommendations or a bulk of events enters as one request, and counts as several once its members are
    known. All batches together may take half of the places, so that single requests are let in beside them; one batch
    alone always may.

    Args:
        bound: most requests that may be in progress, at least 2.
        on_batch_refused: called for every batch for whose members there is no place.

    Attributes:
        bound: as given.
    """

    __slots__ = (
        *("_batches", "_credit", "_full", "_inside", "_limit", "_members", "_most", "_on_batch_refused"),
        *("_turned_away", "bound"),
    )

    def __init__(self, bound: int, on_batch_refused: Callable[[], None] = lambda: None) -> None:
        self.bound = bound
        self._on_batch_refused = on_batch_refused
        self._inside: set[object] = set()
        self._batches = self._members = 0  # batches in progress, and what they count as
        self._limit = bound // 2
        self._credit = _MOST_CREDIT
        self._turned_away = False
        self._set_places()

    @property
    def in_progress(self) -> int:
        """Requests in progress now; a batch counts as in :meth:`batch`."""
        return len(self._inside) + self._members - self._batches

    @property
    def is_high(self) -> bool:
        """Whether more requests are in progress than are answered in full."""
        return len(self._inside) > self._full

    def enter(self, request: object) -> bool:
        """Let a request in, or not; where :attr:`is_high` is true after that, it gets popular items."""
        if self.turns_away():
            return False
        if len(self._inside) >= self._full:
            self._credit -= _RESPONSES_PER_POPULAR_ONE
        self._inside.add(request)
        return True

    def turns_away(self) -> bool:
        """Whether a request may not be let in now; if so, it is turned away."""
        in_progress = len(self._inside)
        if in_progress < self._full:
            return False
        if self._credit >= _RESPONSES_PER_POPULAR_ONE and in_progress < self._most:
            return False
        self._turned_away = True
        return True

    def leave(self, request: object) -> None:
        """Count a request as done; a second call changes nothing."""
        if request in self._inside:
            self._inside.remove(request)
            self._credit = min(self._credit + 1, _MOST_CREDIT)

    def batch(self, weight: int, name: str, *, overloaded: bool) -> AbstractContextManager[None]:
        """Count a request that has entered as several, at most 16, until the end of the context.

        Args:
            weight: recommendations that take as long; one is a request like any other.
            name: of the batch in the refusal, as in ``a batch of 3 requests``.
            overloaded: it entered where requests get popular items, for which there must be credit.

        Raises:
            QueueFull: the batches in progress, or popular items, leave no place.
        """
        return _ALONE if weight < 2 else self._batch(weight, name, overloaded=overloaded)

    @contextmanager
    def _batch(self, weight: int, name: str, *, overloaded: bool) -> Iterator[None]:
        weight = min(weight, _HEAVIEST_BATCH)
        cost = (weight - 1) * _RESPONSES_PER_POPULAR_ONE if overloaded else 0
        if (self._batches and self._members + weight > self._limit // 2) or cost > self._credit:
            self._on_batch_refused()
            raise QueueFull(f"too much is in progress for {name}; ask again later")
        self._credit -= cost
        self._count_batch(1, weight)
        try:
            yield
        finally:
            self._count_batch(-1, -weight)
            self._credit = min(self._credit + weight - 1, _MOST_CREDIT)

    def adapt(self, late_s: float) -> None:
        """Adapt the limit to how late the event loop is; called many times a second.

        Args:
            late_s: seconds between the moment for which a timer was set and the moment when it ran.
        """
        if self._turned_away and late_s > _PROMPT_S:
            self._limit = max(int(self._limit * _SHRINK), min(_SMALLEST_LIMIT, self.bound // 2))
        else:
            self._limit = min(int(self._limit * _GROW) + 1, self.bound // 2)
        self._turned_away = False
        self._set_places()

    def _count_batch(self, batches: int, members: int) -> None:
        self._batches += batches
        self._members += members
        self._set_places()

    def _set_places(self) -> None:
        """Set how many requests are answered in full and how many are let in, each batch counted as one request."""
        more = min(self._members, self._limit // 2) - self._batches
        self._full = self._limit - more
        self._most = self.bound - more
