"""Calls a store only while it answers: a circuit breaker for calls of several threads."""

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from service.errors import RetrieverUnavailable

_T = TypeVar("_T")


class Breaker(Protocol):
    """Decides whether a call is made; see `service.stores.circuit_breaker`."""

    @property
    def now(self) -> float:
        """The time by its clock, for the start of a call."""
        ...

    @property
    def lets_through(self) -> bool:
        """Whether a call may be made."""
        ...

    def take_probe(self) -> bool:
        """Whether the caller is to probe now."""
        ...

    def succeeded(self) -> None:
        """Record that a call or the probe was answered."""
        ...

    def failed(self, began: float) -> None:
        """Record that a call or the probe, begun at this time, was not answered."""
        ...


Observe = Callable[[float, bool], None]


class Guard:
    """Makes calls through a breaker; while it is open, one thread at a time repeats the call that failed last.

    Args:
        breaker: of its own; it is used under a lock.
        observe: called after every call with its seconds and whether it was answered.
    """

    def __init__(self, breaker: Breaker, observe: Observe = lambda *_: None) -> None:
        self._breaker = breaker
        self._observe = observe
        self._lock = threading.Lock()
        self._failed: Callable[[], object] | None = None

    def call(self, work: Callable[[], _T], probe: Callable[[], object]) -> _T:
        """Run a call of the store.

        Args:
            work: raises RetrieverUnavailable if the store does not answer.
            probe: a small call of the same kind, made later to see whether the store answers again.

        Raises:
            RetrieverUnavailable: the store does not answer, or did not answer lately.
        """
        with self._lock:
            let_through, began = self._breaker.lets_through, self._breaker.now
            due = not let_through and self._failed is not None and self._breaker.take_probe()
        if due:
            threading.Thread(target=self._probe, name="retriever-probe", daemon=True).start()
        if not let_through:
            raise RetrieverUnavailable("the store of the items' vectors did not answer lately; it is asked again soon")
        try:
            result = work()
        except RetrieverUnavailable:
            self._ended(began, probe)
            raise
        self._ended(began, None)
        return result

    def _probe(self) -> None:
        probe, began = self._failed, self._breaker.now
        try:
            if probe is not None:
                probe()
        except Exception:  # noqa: BLE001 - whatever it is, the store does not answer yet
            self._ended(began, probe)
        else:
            self._ended(began, None)

    def _ended(self, began: float, failed: Callable[[], object] | None) -> None:
        """Record the end of a call; the probe to make later if it failed, None if it was answered."""
        with self._lock:
            if failed is None:
                self._breaker.succeeded()
            else:
                self._failed = failed
                self._breaker.failed(began)
            seconds = self._breaker.now - began
        self._observe(seconds, failed is None)
