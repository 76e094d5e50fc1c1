"""Distributes the shards of a plan over workers that may start late, fail and die.

A shard that failed is made again by any worker, with the same bytes. Both kinds of failures are bounded: a shard that
fails several times, and workers of which none starts, end the job with one error. What is finished stays for the next.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Protocol

from training.embedding.distributed.shard_worker import PlannedItem
from training.embedding.plan import EmbeddingPlan
from training.errors import EmbeddingsError, JobStopped

MOST_ATTEMPTS: Final = 4
"""Times that a shard is tried."""

MOST_FAILED_STARTS: Final = 3
"""Starts of workers that may fail in a row; with more workers as many as there may be."""

_WAIT_S: Final = 1.0
_AGAIN: Final = "start the same command again to go on"

Task = Any
"""A call of a worker under way; compared by identity or hash."""
Worker = Any
"""A worker; compared by identity or hash."""


@dataclass(frozen=True)
class Failure:
    """Why a call failed.

    Attributes:
        reason: in words.
        lost: whether the worker is gone.
    """

    reason: str
    lost: bool


class Workers(Protocol):
    """The workers of an engine."""

    def wanted(self) -> int:
        """How many workers the machines have room for now, at least 1."""
        ...

    def start(self) -> tuple[Worker, Task]:
        """Start a worker; the call under way is its `ShardWorker.prepare`."""
        ...

    def encode(self, worker: Worker, number: int, planned: Sequence[PlannedItem]) -> Task:
        """Begin `ShardWorker.encode`."""
        ...

    def wait(self, tasks: Sequence[Task], timeout_s: float) -> Sequence[Task]:
        """Those that have ended, once one has or after the time."""
        ...

    def failure(self, task: Task) -> Failure | None:
        """Why an ended call failed; None if it succeeded."""
        ...

    def end(self, worker: Worker) -> None:
        """End a worker at once, whatever it does; it may be gone."""
        ...

    def room(self) -> str:
        """What the machines have and what is free, in words."""
        ...


@dataclass
class ShardPool:
    """Makes the missing shards of a plan with workers.

    Args:
        workers: of the engine.
        start_timeout_s: seconds after which a job without a single started worker ends.
        clock: seconds, monotonic.
        collect: called with the number of a shard that a worker has made, to bring it into the plan's directory.
    """

    workers: Workers
    start_timeout_s: float = 300.0
    clock: Callable[[], float] = monotonic
    collect: Callable[[int], None] = lambda _number: None
    _tasks: dict[Task, tuple[Worker, int | None]] = field(default_factory=dict)
    _attempts: Counter[int] = field(default_factory=Counter)
    _started: set[Worker] = field(default_factory=set)
    _failed_starts: int = 0
    _reason: str = ""

    def encode(
        self,
        plan: EmbeddingPlan,
        numbers: Sequence[int],
        finished: Callable[[int], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make shards.

        Args:
            plan: of all shards; where nothing collects them, its directory is one that the workers see.
            numbers: of the missing shards.
            finished: called with the number of each shard that is finished and complete.
            stopped: asked about once a second; true ends the job.

        Raises:
            EmbeddingsError: a shard failed too often, or no worker can be started.
            JobStopped: ``stopped`` returned true.
        """
        waiting, began = deque(numbers), self.clock()
        try:
            while waiting or any(number is not None for _, number in self._tasks.values()):
                self._start_workers(len(waiting))
                for task in self.workers.wait(list(self._tasks), _WAIT_S):
                    worker, number = self._tasks.pop(task)
                    self._ended(plan, waiting, worker, number, self.workers.failure(task), finished)
                    if worker in self._started:
                        self._give(plan, waiting, worker)
                if stopped():
                    raise JobStopped(f"stopped while shards were embedded; {_AGAIN}")
                if self._started:
                    began = self.clock()
                elif self.clock() - began > self.start_timeout_s:
                    raise EmbeddingsError(
                        f"no worker has started for {self.start_timeout_s:g} s ({self.workers.room()}); free some of "
                        f"it, then {_AGAIN}"
                    )
        finally:
            for worker in {*self._started, *(worker for worker, _ in self._tasks.values())}:
                self.workers.end(worker)
            self._tasks.clear()
            self._started.clear()

    def _start_workers(self, waiting: int) -> None:
        """Start as many as there is room and work for, unless too many starts failed in a row."""
        wanted = self.workers.wanted()
        if self._failed_starts >= max(MOST_FAILED_STARTS, wanted):
            if not self._tasks:
                raise EmbeddingsError(
                    f"{self._failed_starts} workers in a row could not start, the last one because: {self._reason}. "
                    f"Fix the cause, then {_AGAIN}"
                )
            return
        starting = sum(number is None for _, number in self._tasks.values())
        for _ in range(min(wanted - len(self._tasks), waiting - starting)):
            worker, task = self.workers.start()
            self._tasks[task] = worker, None

    def _ended(
        self,
        plan: EmbeddingPlan,
        waiting: deque[int],
        worker: Worker,
        number: int | None,
        failure: Failure | None,
        finished: Callable[[int], None],
    ) -> None:
        """Record the end of a call."""
        if failure is None and number is not None:
            self.collect(number)
            if not plan.has(number):
                failure = Failure(f"{plan.directory} has no such shard here: it must be on a shared disk", lost=False)
        if failure is None:
            self._failed_starts = 0
            self._started.add(worker)
            if number is not None:
                finished(number)
            return
        self._reason = failure.reason
        if number is None or failure.lost:
            self._started.discard(worker)
            self.workers.end(worker)
        if number is None:
            self._failed_starts += 1
            return
        self._attempts[number] += 1
        if self._attempts[number] >= MOST_ATTEMPTS:
            raise EmbeddingsError(
                f"shard {number} failed {MOST_ATTEMPTS} times, the last time because: {failure.reason}. Fix the cause, "
                f"then {_AGAIN}"
            )
        waiting.append(number)

    def _give(self, plan: EmbeddingPlan, waiting: deque[int], worker: Worker) -> None:
        """Give a worker the next shard, or end it."""
        if not waiting:
            self._started.discard(worker)
            self.workers.end(worker)
            return
        number = waiting.popleft()
        self._tasks[self.workers.encode(worker, number, plan.planned(number))] = worker, number
