"""Decides which requests are let in, by how many are in progress and how late the event loop is (docs/adr/0014)."""

from typing import Final

_RESPONSES_PER_POPULAR_ONE: Final = 10
_MOST_CREDIT: Final = 640
_PROMPT_S: Final = 0.005  # lateness up to which the event loop keeps up while it turns requests away
_SMALLEST_LIMIT: Final = 16
_SHRINK, _GROW = 0.7, 1.2


class Admission:
    """Requests in progress, from the end of the head to the end of the response. Used by the event loop alone.

    `service.http.protocol` counts requests here and turns the excess away before the application is asked.

    Up to half of the bound requests are answered in full. Above it a request gets popular items; since that takes the
    event loop about as long as a full response, at most one in ten responses is such a one. At the bound none is let
    in. Turning requests away takes little time, but an event loop that cannot keep up is late with that too. So the
    limit shrinks until the event loop is prompt, and grows again when it is.

    Args:
        bound: most requests that may be in progress, at least 2.

    Attributes:
        bound: as given.
    """

    __slots__ = ("_credit", "_inside", "_limit", "_turned_away", "bound")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._inside: set[object] = set()
        self._limit = bound // 2
        self._credit = _MOST_CREDIT
        self._turned_away = False

    @property
    def in_progress(self) -> int:
        """Requests in progress now."""
        return len(self._inside)

    @property
    def is_high(self) -> bool:
        """Whether more requests are in progress than are answered in full."""
        return len(self._inside) > self._limit

    def enter(self, request: object) -> bool:
        """Let a request in, or not; where :attr:`is_high` is true after that, it gets popular items."""
        if self.turns_away():
            return False
        if len(self._inside) >= self._limit:
            self._credit -= _RESPONSES_PER_POPULAR_ONE
        self._inside.add(request)
        return True

    def turns_away(self) -> bool:
        """Whether a request may not be let in now; if so, it is turned away."""
        in_progress = len(self._inside)
        if in_progress < self._limit:
            return False
        if self._credit >= _RESPONSES_PER_POPULAR_ONE and in_progress < self.bound:
            return False
        self._turned_away = True
        return True

    def leave(self, request: object) -> None:
        """Count a request as done; a second call changes nothing."""
        if request in self._inside:
            self._inside.remove(request)
            self._credit = min(self._credit + 1, _MOST_CREDIT)

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
