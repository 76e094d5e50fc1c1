"""Tracks which kinds of Redis calls fail at the moment and why, for `/readyz` and for the log."""

from collections.abc import Callable
from time import monotonic
from typing import Final

from structlog.typing import FilteringBoundLogger

KINDS: Final = {
    "recent": "reads",
    "ping": "reads",
    "hello": "reads",
    "stream": "reads",
    "append": "writes",
    "merge": "writes",
    "erase": "writes",
    "record": "outcomes",
    "attribute": "outcomes",
    "forget": "outcomes",
    "count": "outcomes",
    "counts": "outcomes",
    "describe": "outcomes",
    "rates": "rates",
    "pin": "directives",
    "experiment": "directives",
    "hide": "directives",
    "show": "directives",
    "directives": "directives",
    "erasure": "directives",
    "audit": "directives",
    "restore": "directives",
}
"""Kind of each operation."""
_LOG_AGAIN_S: Final = 60.0


class RedisFaults:
    """The last failure of each kind of call, until a call of that kind succeeds.

    A failure is logged if its reason is new, and again after a minute; its end is logged if the failure was.

    Args:
        log: the service's logger.
        clock: seconds, monotonic.

    Attributes:
        current: operation, first word of the error and plain reason, by kind: `reads`, `writes`, `outcomes`,
            `rates`, `directives`.
    """

    def __init__(self, log: FilteringBoundLogger, clock: Callable[[], float] = monotonic) -> None:
        self._log = log
        self._clock = clock
        self._logged: dict[tuple[str, str], float] = {}
        self._announced: set[str] = set()
        self.current: dict[str, str] = {}

    def outcome(self, operation: str, reason: str | None) -> None:
        """Record the outcome of a call.

        Args:
            operation: its name.
            reason: why it failed; None: it succeeded.
        """
        kind = KINDS.get(operation, "directives")
        if reason is None:
            if self.current.pop(kind, None) is not None and kind in self._announced:
                self._announced.discard(kind)
                self._log.info("redis answers again", kind=kind)
            return
        self.current[kind] = f"{operation}: {reason}"
        now, key = self._clock(), (kind, reason)
        if now - self._logged.get(key, -_LOG_AGAIN_S) >= _LOG_AGAIN_S:
            self._logged[key] = now
            self._announced.add(kind)
            self._log.error("redis error", kind=kind, operation=operation, reason=reason)
