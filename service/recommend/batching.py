"""Batches searches that wait at the same time, without ever delaying one to fill a batch.

A search joins those that arrive in the same turn of the event loop. A single one runs at once in the event loop, which
takes less time than a hop to another thread; so do a few on a process with one core, where a thread and the loop would
take turns. More go to a worker thread as one batch, and those that arrive while all threads are busy form the next
batch. Encoder and index release the interpreter's lock, so the event loop reads and writes while the threads search:
the busier the service, the larger its batches and the cheaper each request (docs/adr/0014).
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
from service.errors import ENDING, NotReady, QueueFull, RetrieverUnavailable
from service.recommend.engine import SearchJob, SearchResult, run_searches
from service.retrieval.faiss_retriever import FAISS
from service.retrieval.retriever import Retriever

THREAD_NAME: Final = "engine"
LARGEST_BATCH: Final = 16  # more leaves one thread idle while the other works, fewer cost more each (docs/adr/0014)
_MOST_DEATHS: Final = 5
_DEATHS_WITHIN_S: Final = 60.0


class BatchMetrics(Protocol):
    """Metrics of a batcher."""

    def batch(self, size: int, waited_s: float) -> None:
        """Count a batch of this many searches, the oldest of which waited for this many seconds."""
        ...

    def worker_died(self) -> None:
        """Count the unexpected end of a worker thread."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    bundle: Bundle
    job: SearchJob
    result: "asyncio.Future[SearchResult]"
    since: float


_Batch = list[_Waiting]
_Results = list[SearchResult | Exception]


class MicroBatcher:
    """A search engine for one event loop with a bounded queue: few searches run at once, more as a batch in a thread.

    If a worker thread ends unexpectedly, its batch runs in the event loop and another worker takes its place, so no
    request is lost. If five end within a minute, every search runs in the event loop and :attr:`alive` is False, for
    an orchestrator to replace the process.

    Args:
        bound: most searches that wait, at least 1.
        threads: most workers; 0: every search runs in the event loop, as on CUDA, where only one thread may use encoder
            and index.
        in_loop: largest batch that runs in the event loop where there are workers, at least 1.
        metrics: counts batches.
        log: logs the unexpected end of a worker.
        retriever: finds the items; while one that waits does, no search runs in the event loop as long as there are
            workers.
    """

    def __init__(
        self,
        *,
        bound: int,
        threads: int,
        in_loop: int = 1,
        metrics: BatchMetrics,
        log: FilteringBoundLogger,
        retriever: Retriever = FAISS,
    ) -> None:
        self._retriever = retriever
        self._bound = bound
        self._threads = threads
        self._in_loop = in_loop
        self._metrics = metrics
        self._log = log
        self._waiting: deque[_Waiting] = deque()
        self._planned = False
        self._workers: list[_Worker] = []
        self._deaths: deque[float] = deque(maxlen=_MOST_DEATHS)
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether workers are still started; False after too many of them ended."""
        deaths = self._deaths
        return len(deaths) < _MOST_DEATHS or deaths[-1] - deaths[0] > _DEATHS_WITHIN_S

    @property
    def depth(self) -> int:
        """Number of searches that wait now."""
        return len(self._waiting)

    async def search(self, bundle: Bundle, job: SearchJob) -> SearchResult:
        """Encode and search; see `service.recommend.engine.SearchEngine.search`.

        Raises:
            QueueFull: the queue is full.
            NotReady: the batcher is closed, or was closed before this search began.
            EncoderError: the encoder fails on this history.
            RetrieverUnavailable: another store is searched and does not answer.
        """
        if self._closed:
            raise NotReady(ENDING)
        if len(self._waiting) >= self._bound:
            raise QueueFull(f"{self._bound} searches wait already")
        result: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(bundle, job, result, monotonic()))
        self._plan()
        return await result

    def close(self) -> None:
        """End the workers after their current batches; refuse the searches that wait."""
        self._closed = True
        waiting = list(self._waiting)
        self._waiting.clear()
        _refuse(waiting)
        for worker in self._workers:
            worker.end()

    def _plan(self) -> None:
        """Schedule a dispatch in the next turn of the loop, so that searches which arrive until then join the batch."""
        if self._waiting and not self._planned and self._has_room:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._planned = False
        # Checked again: since this turn was planned, a worker that became idle may have taken a batch.
        while self._has_room and (batch := self._take()):
            self._metrics.batch(len(batch), monotonic() - batch[0].since)
            if not self._threaded or (len(batch) <= self._in_loop and not self._retriever.waits):
                _deliver(batch, _run_batch(batch, self._retriever))
                break  # other callbacks had to wait meanwhile
            self._worker().start(batch)
        self._plan()  # if no worker is free, the first one that becomes idle dispatches again

    @property
    def _has_room(self) -> bool:
        """Whether a waiting search can run now: in the event loop, in an idle worker or in a new one."""
        return not self._threaded or len(self._workers) < self._threads or self._idle() is not None

    @property
    def _threaded(self) -> bool:
        return self._threads > 0 and self.alive

    def _idle(self) -> "_Worker | None":
        return next((worker for worker in self._workers if worker.batch is None), None)

    def _worker(self) -> "_Worker":
        """An idle worker, or a new one; to be called only if :attr:`_has_room`."""
        worker = self._idle()
        if worker is None:
            worker = _Worker(asyncio.get_running_loop(), self._finished, self._died, self._retriever)
            self._workers.append(worker)
        return worker

    def _take(self) -> _Batch:
        """The oldest waiting searches of one bundle, without those whose callers were cancelled."""
        batch: _Batch = []
        while self._waiting and len(batch) < LARGEST_BATCH:
            first = self._waiting[0]
            if batch and first.bundle is not batch[0].bundle:
                break
            self._waiting.popleft()
            if not first.result.done():
                batch.append(first)
        return batch

    def _finished(self, batch: _Batch, results: _Results) -> None:
        _deliver(batch, results)
        self._dispatch()

    def _died(self, worker: "_Worker", reason: str) -> None:
        """Run the batch of a worker that has ended in the event loop; the next dispatch starts another worker."""
        if self._closed:
            _refuse(worker.batch or ())
            return
        self._workers.remove(worker)
        self._deaths.append(monotonic())
        self._metrics.worker_died()
        self._log.error("engine thread died", reason=reason, given_up=not self.alive)
        if worker.batch is not None:
            _deliver(worker.batch, _run_batch(worker.batch, self._retriever))
        self._plan()


class _Worker:
    """One thread that runs one batch after the other.

    Args:
        loop: in which ``finished`` and ``died`` are called.
        finished: called with a batch and its results.
        died: called with the reason when the thread has ended unexpectedly.
        retriever: finds the items.

    Attributes:
        batch: the batch in progress; None when the worker is idle. Used in the event loop only.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[_Batch, _Results], None],
        died: Callable[["_Worker", str], None],
        retriever: Retriever,
    ) -> None:
        self._retriever = retriever
        self._loop = loop
        self._finished = finished
        self._died = died
        self._jobs: SimpleQueue[_Batch | None] = SimpleQueue()
        self.batch: _Batch | None = None
        threading.Thread(target=self._run, name=THREAD_NAME, daemon=True).start()

    def start(self, batch: _Batch) -> None:
        """Start a batch; the worker must be idle."""
        self.batch = batch
        self._jobs.put(batch)

    def end(self) -> None:
        """End the thread after its current batch."""
        self._jobs.put(None)

    def _run(self) -> None:
        try:
            while (batch := self._jobs.get()) is not None:
                results = _run_batch(batch, self._retriever)
                self._loop.call_soon_threadsafe(self._report, batch, results)
                del batch, results  # an idle worker must not keep a bundle in memory
        except BaseException as error:  # noqa: BLE001 - the thread ends here; `died` logs the reason
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._died, self, repr(error))

    def _report(self, batch: _Batch, results: _Results) -> None:
        self.batch = None
        self._finished(batch, results)


def _run_batch(batch: _Batch, retriever: Retriever) -> _Results:
    """A result or an error for each search; one on which encoder or index fail does not fail the others."""
    bundle = batch[0].bundle
    jobs = [waiting.job for waiting in batch]
    for job in jobs:
        job.watch.lap("queue")
    try:
        return [*run_searches(bundle, jobs, retriever)]
    except RetrieverUnavailable as error:  # not of one search: each alone would wait as long
        return [error for _ in batch]
    except Exception as error:  # noqa: BLE001 - it is raised in the caller
        if len(batch) == 1:
            return [error]
    return [_run_alone(bundle, job, retriever) for job in jobs]


def _run_alone(bundle: Bundle, job: SearchJob, retriever: Retriever) -> SearchResult | Exception:
    try:
        return run_searches(bundle, [job], retriever)[0]
    except Exception as error:  # noqa: BLE001 - it is raised in the caller
        return error


def _refuse(waiting: Sequence[_Waiting]) -> None:
    _deliver(waiting, [NotReady(ENDING) for _ in waiting])


def _deliver(batch: Sequence[_Waiting], results: _Results) -> None:
    for waiting, result in zip(batch, results, strict=True):
        if waiting.result.done():
            continue  # its caller was cancelled
        if isinstance(result, Exception):
            waiting.result.set_exception(result)
        else:
            waiting.result.set_result(result)
