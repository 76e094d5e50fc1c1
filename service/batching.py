"""MicroBatcher: lookups that wait at the same time are encoded and searched together.

Nothing is ever waited for. A lookup joins those that the event loop has at hand in the same turn; a few of them are
looked up in the event loop, as that takes less than a hop to another thread. More go to a worker thread as one batch,
and what comes in meanwhile is the next batch: encoder and index leave the interpreter's lock alone, so the event loop
reads and writes while the worker searches, and the busier the service, the larger its batches and the cheaper each
request (docs/adr/0014).
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from index.bundle import Bundle
from service.engine import LookedUp, Lookup, look_up
from service.errors import QueueFull

LARGEST_BATCH = 64
"""As many as the encoder's largest bucket."""

THREAD_NAME = "engine"
_MOST_RESTARTS = 5
_RESTARTS_WITHIN_S = 60.0


class BatchMetrics(Protocol):
    """What a batcher counts."""

    def batch(self, size: int) -> None:
        """Count a batch of so many lookups."""
        ...

    def worker_died(self) -> None:
        """Count the end of a worker thread that was not asked to end."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    bundle: Bundle
    lookup: Lookup
    answer: "asyncio.Future[LookedUp]"


_Batch = list[_Waiting]
_Results = list[LookedUp | Exception]


class MicroBatcher:
    """An engine for one event loop: alone at once, together under load, and bounded.

    A worker thread that ends by an accident is started again and its batch looked up in the event loop, so no request
    is lost; should it end five times within a minute, everything is looked up in the event loop and :attr:`alive` is
    False, for an orchestrator to replace the process.

    Args:
        bound: most lookups that wait.
        inline: most lookups at hand that are looked up in the event loop instead of by the worker.
        threaded: False: never use a worker. On CUDA only one thread may touch encoder and index.
        metrics: counts batches.
        log: told when a worker dies.
    """

    def __init__(
        self,
        *,
        bound: int,
        inline: int = 3,
        threaded: bool = True,
        metrics: BatchMetrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._bound = bound
        self._inline = inline if threaded else LARGEST_BATCH
        self._threaded = threaded
        self._metrics = metrics
        self._log = log
        self._waiting: deque[_Waiting] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._planned = False
        self._worker: _Worker | None = None
        self._deaths: deque[float] = deque(maxlen=_MOST_RESTARTS)
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether batches still go to a worker, where they should."""
        return not self._given_up

    @property
    def depth(self) -> int:
        """Lookups that wait now."""
        return len(self._waiting)

    async def look_up(self, bundle: Bundle, lookup: Lookup) -> LookedUp:
        """Encode and search; see `service.engine.Engine.look_up`.

        Raises:
            QueueFull: as many wait as may.
            EncoderError: the encoder fails on this history.
        """
        if len(self._waiting) >= self._bound:
            raise QueueFull(f"{self._bound} lookups wait already")
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        answer: asyncio.Future[LookedUp] = loop.create_future()
        self._waiting.append(_Waiting(bundle, lookup, answer))
        self._plan()
        return await answer

    def close(self) -> None:
        """End the worker when it has done what it has."""
        self._closed = True
        if self._worker is not None:
            self._worker.end()

    @property
    def _given_up(self) -> bool:
        deaths = self._deaths
        return len(deaths) == _MOST_RESTARTS and deaths[-1] - deaths[0] < _RESTARTS_WITHIN_S

    def _plan(self) -> None:
        """Have what waits looked up in the next turn of the loop, together with what joins it until then."""
        if not self._planned and self._loop is not None and (self._worker is None or self._worker.batch is None):
            self._planned = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._planned = False
        batch = self._take()
        if not batch:
            return
        self._metrics.batch(len(batch))
        if len(batch) <= self._inline or self._given_up:
            _deliver(batch, _looked_up(batch))
        else:
            self._hand_over(batch)
        if self._waiting:
            self._plan()

    def _take(self) -> _Batch:
        """The oldest that wait, of one bundle; those that nobody waits for any more are dropped."""
        batch: _Batch = []
        while self._waiting and len(batch) < LARGEST_BATCH:
            first = self._waiting[0]
            if batch and first.bundle is not batch[0].bundle:
                break
            self._waiting.popleft()
            if not first.answer.done():
                batch.append(first)
        return batch

    def _hand_over(self, batch: _Batch) -> None:
        if self._worker is None and self._loop is not None:
            self._worker = _Worker(self._loop, self._finished, self._died)
        if self._worker is not None:
            self._worker.start(batch)

    def _finished(self, batch: _Batch, results: _Results) -> None:
        _deliver(batch, results)
        if self._waiting:
            self._dispatch()

    def _died(self, worker: "_Worker") -> None:
        """The worker is gone: do its work here, and have another one when there is more."""
        if self._closed or worker is not self._worker:
            return
        self._worker = None
        self._deaths.append(monotonic())
        self._metrics.worker_died()
        self._log.error("engine thread died", given_up=self._given_up)
        batch = worker.batch
        if batch is not None:
            _deliver(batch, _looked_up(batch))
        if self._waiting:
            self._plan()


class _Worker:
    """One thread that looks up one batch after the other.

    Args:
        loop: in which ``finished`` and ``died`` are called.
        finished: given a batch and its results.
        died: called when the thread has ended without being asked to.

    Attributes:
        batch: what it is at; None when it waits. Of the event loop alone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[_Batch, _Results], None],
        died: Callable[["_Worker"], None],
    ) -> None:
        self._loop = loop
        self._finished = finished
        self._died = died
        self._jobs: SimpleQueue[_Batch | None] = SimpleQueue()
        self.batch: _Batch | None = None
        self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
        self._thread.start()

    def start(self, batch: _Batch) -> None:
        """Begin with a batch; only when there is none."""
        self.batch = batch
        self._jobs.put(batch)

    def end(self) -> None:
        """Let the thread end."""
        self._jobs.put(None)

    def _run(self) -> None:
        asked_to_end = False
        try:
            while (batch := self._jobs.get()) is not None:
                results = _looked_up(batch)
                self._loop.call_soon_threadsafe(self._answer, batch, results)
                del batch, results  # while it waits it must not keep a bundle in memory
            asked_to_end = True
        finally:
            if not asked_to_end and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._died, self)

    def _answer(self, batch: _Batch, results: _Results) -> None:
        self.batch = None
        self._finished(batch, results)


def _looked_up(batch: _Batch) -> _Results:
    """What becomes of each; one on which encoder or index fail does not fail the others."""
    bundle = batch[0].bundle
    lookups = [waiting.lookup for waiting in batch]
    for lookup in lookups:
        lookup.watch.lap("queue")
    try:
        return [*look_up(bundle, lookups)]
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
        if len(batch) == 1:
            return [error]
    return [_alone(bundle, lookup) for lookup in lookups]


def _alone(bundle: Bundle, lookup: Lookup) -> LookedUp | Exception:
    try:
        return look_up(bundle, [lookup])[0]
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
        return error


def _deliver(batch: Sequence[_Waiting], results: _Results) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.answer.done():
            continue  # whoever asked gave up
        if isinstance(result, Exception):
            waiting.answer.set_exception(result)
        else:
            waiting.answer.set_result(result)
