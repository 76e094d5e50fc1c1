"""MicroBatcher: lookups that wait at the same time are encoded and searched together.

Nothing is ever waited for. A lookup joins those that the event loop has at hand in the same turn. One that is alone is
looked up at once in the event loop, which takes less than a hop to another thread. Several go to a worker thread as one
batch, and what comes in while all workers are busy is the next batch: encoder and index let go of the interpreter's
lock, so the event loop reads and writes while the workers search, and the busier the service, the larger its batches
and the cheaper each request (docs/adr/0014).
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from time import monotonic
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from service.errors import ENDING, NotReady, QueueFull
from service.recommend.engine import SearchJob, SearchResult, look_up

THREAD_NAME: Final = "engine"
_LARGEST_BATCH: Final = 16  # more leaves one thread idle while the other works, fewer cost more each (docs/adr/0014)
_MOST_DEATHS: Final = 5
_DEATHS_WITHIN_S: Final = 60.0


class BatchMetrics(Protocol):
    """What a batcher counts."""

    def batch(self, size: int, waited_s: float) -> None:
        """Count a batch of so many lookups, the oldest of which waited for so many seconds."""
        ...

    def worker_died(self) -> None:
        """Count the end of a worker thread that nobody asked for."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    bundle: Bundle
    lookup: SearchJob
    answer: "asyncio.Future[SearchResult]"
    since: float


_Batch = list[_Waiting]
_Results = list[SearchResult | Exception]


class MicroBatcher:
    """An engine for one event loop: alone at once, together under load, and bounded.

    The batch of a worker thread that ends by an accident is looked up in the event loop, and another worker takes its
    place, so no request is lost. Should five end within a minute, everything is looked up in the event loop and
    :attr:`alive` is False, for an orchestrator to replace the process.

    Args:
        bound: most lookups that wait, at least 1.
        threads: most workers; 0: everything is looked up in the event loop, as on CUDA, where only one thread may touch
            encoder and index.
        metrics: counts batches.
        log: told when a worker dies.
    """

    def __init__(self, *, bound: int, threads: int, metrics: BatchMetrics, log: FilteringBoundLogger) -> None:
        self._bound = bound
        self._threads = threads
        self._metrics = metrics
        self._log = log
        self._waiting: deque[_Waiting] = deque()
        self._planned = False
        self._workers: list[_Worker] = []
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether batches still go to workers, where they should."""
        deaths = self._deaths
        return len(deaths) < _MOST_DEATHS or deaths[-1] - deaths[0] > _DEATHS_WITHIN_S

    @property
    def depth(self) -> int:
        """Lookups that wait now."""
        return len(self._waiting)

    async def look_up(self, bundle: Bundle, lookup: SearchJob) -> SearchResult:
        """Encode and search; see `service.recommend.engine.Engine.look_up`.

        Raises:
            QueueFull: as many wait as may.
            NotReady: the batcher is closed, or was before this lookup was begun.
            EncoderError: the encoder fails on this history.
        """
        if self._closed:
            raise NotReady(ENDING)
        if len(self._waiting) >= self._bound:
            raise QueueFull(f"{self._bound} lookups wait already")
        answer: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(bundle, lookup, answer, monotonic()))
        self._plan()
        return await answer

    def close(self) -> None:
        """End the workers when they have done what they have; what only waits is refused."""
        self._closed = True
        waiting = list(self._waiting)
        self._waiting.clear()
        _refuse(waiting)
        for worker in self._workers:
            worker.end()

    def _plan(self) -> None:
        """Have what waits looked up in the next turn of the loop, together with what joins it until then."""
        if self._waiting and not self._planned and self._has_room:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._planned = False
        # Looked at anew: since this turn was planned, a worker that became ready may have taken another batch.
        while self._has_room and (batch := self._take()):
            self._metrics.batch(len(batch), monotonic() - batch[0].since)
            if len(batch) == 1 or not self._threaded:
                _deliver(batch, _looked_up(batch))
                break  # others had to wait meanwhile: let the loop turn
            self._worker().start(batch)
        self._plan()  # where there is no room, whoever is ready first takes what waits

    @property
    def _has_room(self) -> bool:
        """Whether what waits can be looked up now: here, by a worker that waits too, or by another one."""
        return not self._threaded or len(self._workers) < self._threads or self._idle() is not None

    @property
    def _threaded(self) -> bool:
        return self._threads > 0 and self.alive

    def _idle(self) -> "_Worker | None":
        return next((worker for worker in self._workers if worker.batch is None), None)

    def _worker(self) -> "_Worker":
        """One that has nothing to do, started if need be; there are fewer than may be, or one is idle."""
        worker = self._idle()
        if worker is None:
            worker = _Worker(asyncio.get_running_loop(), self._finished, self._died)
            self._workers.append(worker)
        return worker

    def _take(self) -> _Batch:
        """The oldest that wait, of one bundle; those that nobody waits for any more are dropped."""
        batch: _Batch = []
        while self._waiting and len(batch) < _LARGEST_BATCH:
            first = self._waiting[0]
            if batch and first.bundle is not batch[0].bundle:
                break
            self._waiting.popleft()
            if not first.answer.done():
                batch.append(first)
        return batch

    def _finished(self, batch: _Batch, results: _Results) -> None:
        _deliver(batch, results)
        self._dispatch()

    def _died(self, worker: "_Worker", reason: str) -> None:
        """A worker is gone: do its work here; another one is started when there is more."""
        if self._closed:
            _refuse(worker.batch or ())
            return
        self._workers.remove(worker)
        self._deaths.append(monotonic())
        self._metrics.worker_died()
        self._log.error("engine thread died", reason=reason, given_up=not self.alive)
        if worker.batch is not None:
            _deliver(worker.batch, _looked_up(worker.batch))
        self._plan()


class _Worker:
    """One thread that looks up one batch after the other.

    Args:
        loop: in which ``finished`` and ``died`` are called.
        finished: given a batch and its results.
        died: called with the reason when the thread has ended without being asked to.

    Attributes:
        batch: what it is at; None when it waits. Of the event loop alone.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[_Batch, _Results], None],
        died: Callable[["_Worker", str], None],
    ) -> None:
        self._loop = loop
        self._finished = finished
        self._died = died
        self._jobs: SimpleQueue[_Batch | None] = SimpleQueue()
        self.batch: _Batch | None = None
        threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()

    def start(self, batch: _Batch) -> None:
        """Begin with a batch; only when there is none."""
        self.batch = batch
        self._jobs.put(batch)

    def end(self) -> None:
        """Let the thread end."""
        self._jobs.put(None)

    def _run(self) -> None:
        try:
            while (batch := self._jobs.get()) is not None:
                results = _looked_up(batch)
                self._loop.call_soon_threadsafe(self._answer, batch, results)
                del batch, results  # while it waits it must not keep a bundle in memory
        except BaseException as error:  # noqa: BLE001 - the thread ends here; whoever takes over says why
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._died, self, repr(error))

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


def _alone(bundle: Bundle, lookup: SearchJob) -> SearchResult | Exception:
    try:
        return look_up(bundle, [lookup])[0]
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
        return error


def _refuse(waiting: Sequence[_Waiting]) -> None:
    _deliver(waiting, [NotReady(ENDING) for _ in waiting])


def _deliver(batch: Sequence[_Waiting], results: _Results) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.answer.done():
            continue  # whoever asked gave up
        if isinstance(result, Exception):
            waiting.answer.set_exception(result)
        else:
            waiting.answer.set_result(result)
