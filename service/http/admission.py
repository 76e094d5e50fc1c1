"""Admission: how much is in progress, and how much may be.

Above half of the bound answers are cheap and rationed, at the bound there are none; and while requests are turned away
although the event loop does not keep up, still fewer are let in (docs/adr/0014).
"""

from typing import Final

_ANSWERS_PER_CHEAP_ONE: Final = 10
_MOST_SAVED: Final = 640
_PROMPT_S: Final = 0.005  # as late as the event loop may be while it turns requests away
_LEAST: Final = 16
_SHRINK, _GROW = 0.7, 1.2


class Admission:
    """Requests in progress, from the end of the head to the end of the answer. Of the event loop alone.

    `service.http.protocol` counts them and turns away what is too much before the application is asked.

    A cheap answer takes the event loop about as long as a whole one, so at most one is given for ten answers; else no
    time would be left for whole ones. Turning away takes little time, but an event loop that has more to do than it can
    is late with that too, and then nobody is answered in time. So the number that is let in shrinks until the event
    loop is prompt, and grows again when it is.

    Args:
        bound: most that may be in progress, at least 2.

    Attributes:
        bound: likewise.
    """

    __slots__ = ("_inside", "_let_in", "_saved", "_turned_away", "bound")

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._inside: set[object] = set()
        self._let_in = bound // 2
        self._saved = _MOST_SAVED
        self._turned_away = False

    @property
    def in_progress(self) -> int:
        """Requests now."""
        return len(self._inside)

    @property
    def is_high(self) -> bool:
        """Whether more is in progress than may be for whole answers."""
        return len(self._inside) > self._let_in

    def enter(self, request: object) -> bool:
        """Let a request in, or not; if it makes :attr:`is_high` true, for a cheap answer."""
        in_progress = len(self._inside)
        if in_progress >= self._let_in:
            if self._saved < _ANSWERS_PER_CHEAP_ONE or in_progress >= self.bound:
                self._turned_away = True
                return False
            self._saved -= _ANSWERS_PER_CHEAP_ONE
        self._inside.add(request)
        return True

    def leave(self, request: object) -> None:
        """A request is done with; once is enough."""
        if request in self._inside:
            self._inside.remove(request)
            self._saved = min(self._saved + 1, _MOST_SAVED)

    def adapt(self, late_s: float) -> None:
        """Learn how late the event loop is, many times a second.

        Args:
            late_s: seconds between the moment for which something was planned and the moment when it was done.
        """
        if self._turned_away and late_s > _PROMPT_S:
            self._let_in = max(int(self._let_in * _SHRINK), min(_LEAST, self.bound // 2))
        else:
            self._let_in = min(int(self._let_in * _GROW) + 1, self.bound // 2)
        self._turned_away = False
