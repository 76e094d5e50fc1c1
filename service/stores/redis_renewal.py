"""Renewal: all links to one Redis connect anew together, so that none stays with a node which its name has left."""

from collections.abc import Callable
from time import monotonic
from typing import Final

_PAUSE_S: Final = 1.0


class Renewal:
    """Counts the times at which connections made before became doubtful; shared by all links to one Redis.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._number = 0
        self._asked = False
        self._next = clock()

    @property
    def number(self) -> int:
        """A connection made at a lower number is to be replaced."""
        if self._asked and self._clock() >= self._next:
            self.renew()
        return self._number

    def ask(self) -> None:
        """Doubt all connections, at most once a second, as the name may stand for the wrong node for some time yet."""
        self._asked = True

    def renew(self) -> int:
        """Doubt all connections now; gives the new number."""
        self._asked = False
        self._next = self._clock() + _PAUSE_S
        self._number += 1
        return self._number
