"""RedisTroubles: what Redis refuses at the moment and why, for `/readyz` and for the log."""

from collections.abc import Callable
from time import monotonic
from typing import Final

from structlog.typing import FilteringBoundLogger

_OF: Final = {
    "recent": "reads",
    "ping": "reads",
    "hello": "reads",
    "stream": "reads",
    "append": "writes",
    "erase": "writes",
}
_AGAIN_S: Final = 60.0


class RedisTroubles:
    """The last failure of each kind of call that no success has followed.

    A failure is logged where its reason is new, and again after a minute; the end of it, if its begin was.

    Args:
        log: the service's logger.
        clock: seconds, monotonic.

    Attributes:
        now: why, by kind: ``reads``, ``writes``, ``directives``; operation, first word of the error, plain reason.
    """

    def __init__(self, log: FilteringBoundLogger, clock: Callable[[], float] = monotonic) -> None:
        self._log = log
        self._clock = clock
        self._logged: dict[tuple[str, str], float] = {}
        self._open: set[str] = set()
        self.now: dict[str, str] = {}

    def outcome(self, operation: str, reason: str | None) -> None:
        """Take note of a call.

        Args:
            operation: what was asked.
            reason: why it failed; None: it did not.
        """
        kind = _OF.get(operation, "directives")
        if reason is None:
            if self.now.pop(kind, None) is not None and kind in self._open:
                self._open.discard(kind)
                self._log.info("redis answers again", kind=kind)
            return
        self.now[kind] = f"{operation}: {reason}"
        now, key = self._clock(), (kind, reason)
        if now - self._logged.get(key, -_AGAIN_S) >= _AGAIN_S:
            self._logged[key] = now
            self._open.add(kind)
            self._log.error("redis trouble", kind=kind, operation=operation, reason=reason)
