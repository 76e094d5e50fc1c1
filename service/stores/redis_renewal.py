"""Makes all pipelines to one Redis reconnect together after a failover, so that none keeps talking to the old node."""

from collections.abc import Callable
from time import monotonic
from typing import Final

_PAUSE_S: Final = 1.0


class Renewal:
    """A generation number of connections, shared by all pipelines to one Redis.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._number = 0
        self._requested = False
        self._next = clock()

    @property
    def number(self) -> int:
        """The current generation; a connection with a lower number must be replaced."""
        if self._requested and self._clock() >= self._next:
            self.renew()
        return self._number

    def request(self) -> None:
        """Replace all connections, at most once a second, as the name may lead to the old node for some time yet."""
        self._requested = True

    def renew(self) -> int:
        """Replace all connections now; returns the new number."""
        self._requested = False
        self._next = self._clock() + _PAUSE_S
        self._number += 1
        return self._number
