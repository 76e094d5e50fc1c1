"""Decides from the outcome of recent calls whether another call is made; has no task and no socket."""

import threading
from collections.abc import Callable
from time import monotonic
from typing import Final, Literal

BreakerState = Literal["closed", "half_open", "open"]

STATES: Final[tuple[BreakerState, ...]] = ("closed", "half_open", "open")
"""From best to worst; only ``closed`` lets calls through."""


class CircuitBreaker:
    """Opens when calls keep failing and closes when a probe succeeds; a caller's own call is never the probe.

    It opens after a number of failures in a row, or as soon as calls have failed for a certain time: one call without
    an answer in that time is enough. While it is open, one probe at a time is due, after a pause that doubles.

    Args:
        failures: this many in a row open it.
        patience_s: it also opens this many seconds after the start of the first failed call.
        first_pause_s: seconds until the first probe.
        longest_pause_s: longest pause in seconds.
        clock: seconds, monotonic.
        on_change: called with every new state.

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
        """The time by its clock, for the start of a call."""
        return self._clock()

    @property
    def lets_through(self) -> bool:
        """Whether a call may be made."""
        return self.state == "closed"

    @property
    def pause_s(self) -> float:
        """Seconds until the next probe is due; 0 if it is due or none is needed."""
        return 0.0 if self.state != "open" else max(self._probe_at - self._clock(), 0.0)

    def take_probe(self) -> bool:
        """Whether the caller is to probe now; True for one caller until its probe has succeeded or failed."""
        if self.state != "open" or self._clock() < self._probe_at:
            return False
        self._change("half_open")
        return True

    def succeeded(self) -> None:
        """Record that a call or the probe was answered."""
        self._failures = 0
        if self.state == "half_open":
            self._pause_s = self._first_pause_s
            self._change("closed")

    def failed(self, began: float) -> None:
        """Record that a call or the probe was not answered.

        Args:
            began: when it was made, by :attr:`now`.
        """
        if self.state == "half_open":
            self._pause_s = min(2 * self._pause_s, self._longest_pause_s)
            self._open()
            return
        if self.state == "open":
            return  # a call made before the breaker opened
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
    """The worst state of several breakers, which may be used by different threads.

    Args:
        on_change: called with it whenever it changes.
    """

    def __init__(self, on_change: Callable[[BreakerState], None] | None) -> None:
        self._on_change = on_change
        self._states: dict[str, BreakerState] = {}
        self._worst: BreakerState = "closed"
        self._lock = threading.Lock()

    def of(self, name: str) -> Callable[[BreakerState], None]:
        """The `on_change` callback for the breaker of this name."""

        def changed(state: BreakerState) -> None:
            with self._lock:
                self._states[name] = state
                worst = max(self._states.values(), key=STATES.index)
                if worst != self._worst:
                    self._worst = worst
                    if self._on_change is not None:
                        self._on_change(worst)

        return changed
