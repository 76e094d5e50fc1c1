"""Traces one request: its id and how long each stage takes."""

import os
import re
from random import Random
from time import perf_counter
from typing import Protocol

MAX_REQUEST_ID = 128
_random = Random()
os.register_at_fork(after_in_child=_random.seed)  # otherwise all workers would give the same ids
_PRINTABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


class Stopwatch(Protocol):
    """Measures the stages of one request."""

    def lap(self, stage: str) -> None:
        """End a stage: all time since the previous lap is its own."""
        ...

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request began."""
        ...

    @property
    def overloaded(self) -> bool:
        """Whether so much is in progress that there is only time for popular items."""
        ...


class Trace:
    """Request id and stage times of one request.

    Args:
        request_id: as from :func:`request_id_from`.
        overloaded: whether so much is in progress that there is only time for popular items.
        began: `perf_counter` seconds when the first bytes of the request were received; None: now.

    Attributes:
        overloaded: as given.
        request_id: answered as ``X-Request-ID`` and logged.
        started: `perf_counter` seconds when the request began.
        waited_ms: milliseconds from then until now, when its first stage begins.
    """

    __slots__ = ("_last", "_stages", "overloaded", "request_id", "started", "waited_ms")

    def __init__(self, request_id: str, *, overloaded: bool = False, began: float | None = None) -> None:
        self.request_id = request_id
        self.overloaded = overloaded
        self._stages: dict[str, float] = {}
        self._last = perf_counter()
        self.started = self._last if began is None else began
        self.waited_ms = (self._last - self.started) * 1000.0

    def lap(self, stage: str) -> None:
        """End a stage: all time since the previous lap is its own."""
        now = perf_counter()
        self._stages[stage] = self._stages.get(stage, 0.0) + (now - self._last) * 1000.0
        self._last = now

    @property
    def stages(self) -> dict[str, float]:
        """Stage → milliseconds so far, a stage that ran twice summed.

        A copy: work that was abandoned may end another stage while this is read.
        """
        return self._stages.copy()

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request began."""
        return (perf_counter() - self.started) * 1000.0

    def server_timing(self) -> str:
        """The stages and the total as a ``Server-Timing`` header (milliseconds)."""
        stages = "".join(f"{stage};dur={duration:.3f}, " for stage, duration in self.stages.items())
        return stages + total_since(self.started, perf_counter())


def total_since(began: float, now: float) -> str:
    """The entry ``total`` of a ``Server-Timing`` header; both times in `perf_counter` seconds."""
    return f"total;dur={(now - began) * 1000.0:.3f}"


def request_id_from(given: bytes | None) -> str:
    """The client's request id if it has 1 to 128 printable ASCII characters, else a new one."""
    if given is not None and len(given) <= MAX_REQUEST_ID:
        text = given.decode("latin-1")
        if _PRINTABLE.fullmatch(text):
            return text
    return new_request_id()


def new_request_id() -> str:
    """32 random hexadecimal digits; they are no secret.

    The system seeds the generator once. Asking the system each time, as uuid4 does, releases the interpreter's lock,
    and the event loop then waits behind the workers: an eighth of its time in overload.
    """
    return f"{_random.getrandbits(128):032x}"
