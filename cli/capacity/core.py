"""Simulates threads that share one core, by the rules of Linux' fair scheduler.

A thread sleeps until it has a job. It keeps the core until it has no more jobs, or until it makes way for a thread that
waits: never before it has run for a slice, and then at the next tick of the kernel's clock, or when another thread
begins to wait. In a pause the core runs no thread at all, as when the host of a virtual machine runs something else.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import simpy

Steps = Generator["simpy.Event", Any, None]
Cost = Callable[[], float]
"""Milliseconds of a core, asked for when the job begins."""

SLICE_MS: Final = 1.4
"""The base slice on two or three cores: 0.7 ms × (1 + log2 of the cores, rounded down)."""
TICK_MS: Final = 4.0
"""Of the kernel's clock at 250 Hz."""
_DONE_MS: Final = 1e-6  # far above the rounding of moments after days; less is no work


class Pauses:
    """The times in which a core runs nothing.

    Args:
        found: begin and length of each in milliseconds, one after another, without an end or with one.
    """

    def __init__(self, found: Iterator[tuple[float, float]] | None = None) -> None:
        self._found = iter(()) if found is None else found
        self._begins = [float("-inf")]
        self._worked = [0.0]  # at the begin of each: milliseconds until then that were no pause
        self._ends = [0.0]

    def end(self, began_ms: float, work_ms: float) -> float:
        """When work ends that begins at a time and takes milliseconds of the core."""
        worked_ms = self.worked(began_ms) + work_ms
        while self._worked[-1] <= worked_ms and self._more():
            pass
        before = max(0, bisect_right(self._worked, worked_ms - _DONE_MS) - 1)
        return self._ends[before] + worked_ms - self._worked[before]

    def worked(self, moment_ms: float) -> float:
        """Milliseconds from 0 until a moment that were no pause."""
        while self._begins[-1] <= moment_ms and self._more():
            pass
        before = bisect_right(self._begins, moment_ms) - 1
        return self._worked[before] + max(0.0, moment_ms - self._ends[before])

    def _more(self) -> bool:
        """Append the next pause; False if there is none."""
        following = next(self._found, None)
        if following is None:
            return False
        begin_ms, length_ms = following
        begin_ms = max(begin_ms, self._ends[-1])
        self._worked.append(self._worked[-1] + begin_ms - self._ends[-1])
        self._begins.append(begin_ms)
        self._ends.append(begin_ms + length_ms)
        return True


class SimulatedCore:
    """One core.

    Args:
        environment: of the simulation; its unit is the millisecond.
        slice_ms: the shortest time after which a running thread makes way.
        tick_ms: period of the kernel's clock.
        pauses: of the core.

    Attributes:
        waiting: threads that could run, each with the event that lets it.
        wanted: succeeds when another thread begins to wait.
    """

    def __init__(
        self,
        environment: "simpy.Environment",
        slice_ms: float = SLICE_MS,
        tick_ms: float = TICK_MS,
        pauses: Pauses | None = None,
    ) -> None:
        self.environment = environment
        self.slice_ms = slice_ms
        self.tick_ms = tick_ms
        self.pauses = pauses or Pauses()
        self.waiting: deque[simpy.Event] = deque()
        self.wanted = environment.event()
        self._busy = False

    def acquire(self) -> "Generator[simpy.Event, Any, bool]":
        """Wait for the core; True if it was idle."""
        if not self._busy:
            self._busy = True
            return True
        turn = self.environment.event()
        self.waiting.append(turn)
        self.wanted.succeed()
        self.wanted = self.environment.event()
        yield turn
        return False

    def release(self) -> None:
        """Let the next thread run."""
        if self.waiting:
            self.waiting.popleft().succeed()
        else:
            self._busy = False

    def lasts(self, work_ms: float) -> float:
        """Milliseconds from now until work of so many milliseconds ends, if nothing but pauses interrupts it."""
        now = self.environment.now
        return max(0.0, self.pauses.end(now, work_ms) - now)


class Thread:
    """One thread: it does its jobs one after the other.

    Args:
        core: that it runs on.
        wake_ms: from its first job to its first instruction, where the core was idle; the core is busy meanwhile.
    """

    def __init__(self, core: SimulatedCore, *, wake_ms: float = 0.0) -> None:
        self._core = core
        self._environment = core.environment
        self._wake_ms = wake_ms
        self._jobs: deque[tuple[Cost, Callable[[], None]]] = deque()
        self._has_jobs = self._environment.event()
        self._slice_began_ms = 0.0
        self._environment.process(self._run())

    def add(self, cost: Cost, then: Callable[[], None]) -> None:
        """A job after all others.

        Args:
            cost: of it.
            then: called when it is done.
        """
        self._jobs.append((cost, then))
        self._wake()

    def add_first(self, cost: Cost, then: Callable[[], None]) -> None:
        """A job before all others that have not begun; see `add`."""
        self._jobs.appendleft((cost, then))
        self._wake()

    def _wake(self) -> None:
        if not self._has_jobs.triggered:
            self._has_jobs.succeed()

    def _run(self) -> Steps:
        while True:
            yield self._has_jobs
            was_idle = yield from self._acquired()
            if was_idle and self._wake_ms:
                yield self._environment.timeout(self._core.lasts(self._wake_ms))
            while self._jobs:
                cost, then = self._jobs.popleft()
                yield from self._compute(cost())
                then()
            self._has_jobs = self._environment.event()
            self._core.release()

    def _acquired(self) -> "Generator[simpy.Event, Any, bool]":
        was_idle = yield from self._core.acquire()
        self._slice_began_ms = self._environment.now
        return was_idle

    def _compute(self, cost_ms: float) -> Steps:
        """Run for milliseconds of the core, and make way meanwhile."""
        environment, core, left_ms = self._environment, self._core, cost_ms
        while left_ms > _DONE_MS:
            began_ms, whole_ms = environment.now, core.lasts(left_ms)
            over_ms = self._slice_began_ms + core.slice_ms
            if not core.waiting:
                yield environment.timeout(whole_ms) | core.wanted
                make_way = environment.now >= over_ms
            elif began_ms < over_ms:
                yield environment.timeout(min(whole_ms, over_ms - began_ms))
                make_way = False
            else:
                tick_ms = (began_ms // core.tick_ms + 1) * core.tick_ms
                yield environment.timeout(min(whole_ms, tick_ms - began_ms)) | core.wanted
                make_way = True
            left_ms -= core.pauses.worked(environment.now) - core.pauses.worked(began_ms)
            if left_ms > _DONE_MS and make_way and core.waiting:
                core.release()
                yield from self._acquired()
