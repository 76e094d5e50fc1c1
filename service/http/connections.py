"""Connections: how many there are and how long each may keep the service waiting.

Whatever waits is looked at by one sweep now and then instead of a timer each, so that a request costs little.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Protocol


@dataclass(frozen=True)
class ConnectionLimits:
    """What one connection may do, and all of them.

    Attributes:
        connections: at once.
        spare: more than those, for health checks and for refusals.
        request_s: seconds in which a request must arrive whole, and its answer be taken.
        crowded_s: seconds that a connection may keep waiting while another one needs its place.
        linger_s: seconds in which a refusal must be read.
        head_bytes: of address and headers.
        pipelined: requests sent before the answer to an earlier one.
    """

    connections: int
    request_s: float
    spare: int = 128
    crowded_s: float = 1.0
    linger_s: float = 1.0
    head_bytes: int = 65_536
    pipelined: int = 16


class Connection(Protocol):
    """What the sweep looks at."""

    def look(self, now: float, patience_s: float) -> None:
        """End it if it has kept the service waiting for too long.

        Args:
            now: seconds, monotonic.
            patience_s: seconds that it may keep waiting, if that is less than it always may.
        """
        ...


class Connections:
    """All connections of the server.

    Args:
        limits: see there.
        retry_after_s: seconds, sent with every refusal for want of room.
        on_open: told how many there are, when that changes.
        on_drop: told in a word why one was ended: crowded, late, stalled, head, pipeline, malformed.
        on_turned_away: told the method of every request that came when too much was in progress.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        limits: ConnectionLimits,
        *,
        retry_after_s: int,
        on_open: Callable[[int], None] = lambda _count: None,
        on_drop: Callable[[str], None] = lambda _reason: None,
        on_turned_away: Callable[[str], None] = lambda _method: None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.limits = limits
        self.retry_after_s = retry_after_s
        self.on_drop = on_drop
        self.on_turned_away = on_turned_away
        self.clock = clock
        self._on_open = on_open
        self._open: set[Connection] = set()
        self._room_made_at = -inf
        self._swept_at = -inf
        # Often enough to be in time, seldom enough to cost nothing.
        self._every_s = min(1.0, limits.request_s / 4.0)

    def __len__(self) -> int:
        return len(self._open)

    @property
    def room(self) -> int:
        """How many more there may be; below 0 within the spare ones."""
        return self.limits.connections - len(self._open)

    def add(self, connection: Connection) -> None:
        """Take a new connection in; where there is no room, those that keep waiting make some."""
        now = self.clock()
        if self.room <= 0 and now - self._room_made_at >= self.limits.crowded_s / 10.0:
            self._room_made_at = now
            self._look(now, self.limits.crowded_s)
        self._open.add(connection)
        self._on_open(len(self._open))

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._open.discard(connection)
        self._on_open(len(self._open))

    def sweep(self) -> None:
        """End what has kept waiting for too long; call it often, it does nothing most of the time."""
        now = self.clock()
        if now - self._swept_at >= self._every_s:
            self._swept_at = now
            self._look(now, inf)

    def _look(self, now: float, patience_s: float) -> None:
        for connection in tuple(self._open):
            connection.look(now, patience_s)
