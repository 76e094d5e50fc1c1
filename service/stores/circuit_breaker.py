"""CircuitBreaker: whether a call is worth making, judged by how the last ones went. Pure: no task and no socket."""

from collections.abc import Callable
from time import monotonic
from typing import Final, Literal

BreakerState = Literal["closed", "half_open", "open"]

STATES: Final[tuple[BreakerState, ...]] = ("closed", "half_open", "open")
"""From well to unwell, as far as callers are concerned: only ``closed`` lets them through."""


class CircuitBreaker:
    """Opens when calls keep failing, and closes when a probe succeeds; callers themselves are never the probe.

    It opens at a number of failures in a row, or sooner, when calls have failed for a time: one call that was not
    answered in that time is enough. While it is open one probe at a time is due, after a pause that doubles.

    Args:
        failures: that many in a row open it.
        patience_s: so many seconds from the start of the first failed call open it too.
        first_pause_s: seconds until the first probe.
        longest_pause_s: where the doubling ends.
        clock: seconds, monotonic.
        on_change: told every new state.

    Attributes:
        state: ``closed``: calls go through; ``open``: they are refused, a probe is due later; ``half_open``: they are
            refused, a probe is on its way.
    """

    def __init__(
        self,
        *,
        failures: int = 3,
        patience_s: float = 0.25,
        first_pause_s: float = 0.05,
        longest_pause_s: float = 0.5,
        clock: Callable[[], float] = monotonic,
        on_change: Callable[[BreakerState], None] | None = None,
    ) -> None:
        self._most_failures = failures
        self._patience_s = patience_s
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._on_change = on_change
        self._failures = 0
        self._failing_since = 0.0
        self._pause_s = first_pause_s
        self._probe_at = 0.0
        self.state: BreakerState = "closed"

    @property
    def now(self) -> float:
        """Its clock, for the start of a call."""
        return self._clock()

    @property
    def lets_through(self) -> bool:
        """Whether a call may be made."""
        return self.state == "closed"

    @property
    def pause_s(self) -> float:
        """Seconds until the next probe is due; 0 where it is, or none is needed."""
        return 0.0 if self.state != "open" else max(self._probe_at - self._clock(), 0.0)

    def take_probe(self) -> bool:
        """Whether the caller shall probe now; True for one caller until its probe has succeeded or failed."""
        if self.state != "open" or self._clock() < self._probe_at:
            return False
        self._change("half_open")
        return True

    def succeeded(self) -> None:
        """A call was answered: one of those let through, or the probe."""
        self._failures = 0
        if self.state == "half_open":
            self._pause_s = self._first_pause_s
            self._change("closed")

    def failed(self, began: float) -> None:
        """A call was not answered.

        Args:
            began: when it was made, by :attr:`now`.
        """
        if self.state == "half_open":
            self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
            self._open()
            return
        if self.state == "open":
            return  # one of those let through before it opened
        self._failing_since = min(self._failing_since, began) if self._failures else began
        self._failures += 1
        if self._failures >= self._most_failures or self._clock() - self._failing_since >= self._patience_s:
            self._open()

    def _open(self) -> None:
        self._probe_at = self._clock() + self._pause_s
        self._change("open")

    def _change(self, state: BreakerState) -> None:
        self.state = state
        if self._on_change is not None:
            self._on_change(state)


class WorstState:
    """One state for several breakers: that of the worst.

    Args:
        on_change: told it whenever it becomes another.
    """

    def __init__(self, on_change: Callable[[BreakerState], None] | None) -> None:
        self._on_change = on_change
        self._states: dict[str, BreakerState] = {}
        self._worst: BreakerState = "closed"

    def of(self, name: str) -> Callable[[BreakerState], None]:
        """What one of the breakers, under a name of its own, is to tell its states."""

        def changed(state: BreakerState) -> None:
            self._states[name] = state
            worst = max(self._states.values(), key=STATES.index)
            if worst != self._worst:
                self._worst = worst
                if self._on_change is not None:
                    self._on_change(worst)

        return changed
