"""Simulates threads that share the cores of a machine, by the rules of Linux' fair scheduler.

A thread sleeps until it has a job. Then it takes an idle core, that of its last run if it can. If none is idle it
waits for the core of its last run, behind those that wait already. It keeps a core until it has no more jobs, or until
it makes way for a thread that waits: never before it has run for a slice, and then at the next tick of the kernel's
clock, or when another thread begins to wait. A core without threads takes one that waits for another.
"""

from collections import deque
from collections.abc import Callable, Generator
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


class _Core:
    """One core.

    Args:
        environment: of the simulation.
    """

    def __init__(self, environment: "simpy.Environment") -> None:
        self.busy = False
        self.waiting: deque[tuple[Thread, simpy.Event]] = deque()
        self.wanted = environment.event()


class Cores:
    """The cores of one machine.

    Args:
        environment: of the simulation; its unit is the millisecond.
        count: how many.
        slice_ms: the shortest time after which a running thread makes way.
        tick_ms: period of the kernel's clock.
    """

    def __init__(
        self, environment: "simpy.Environment", count: int, slice_ms: float = SLICE_MS, tick_ms: float = TICK_MS
    ) -> None:
        self.environment = environment
        self.slice_ms = slice_ms
        self.tick_ms = tick_ms
        self._cores = [_Core(environment) for _ in range(count)]
        self.placed = 0

    def first(self) -> _Core:
        """The core of a thread that has not run yet: of each thread another one, in turn."""
        self.placed += 1
        return self._cores[self.placed % len(self._cores)]

    def acquire(self, thread: "Thread") -> "Generator[simpy.Event, Any, bool]":
        """Wait for a core for a thread; True if one was idle."""
        for core in (thread.core, *self._cores):
            if not core.busy:
                core.busy, thread.core = True, core
                return True
        core, turn = thread.core, self.environment.event()
        core.waiting.append((thread, turn))
        core.wanted.succeed()
        core.wanted = self.environment.event()
        yield turn
        return False

    def release(self, core: _Core) -> None:
        """Let the next thread have a core."""
        longest = core if core.waiting else max(self._cores, key=lambda other: len(other.waiting))
        if longest.waiting:
            thread, turn = longest.waiting.popleft()
            thread.core = core
            turn.succeed()
        else:
            core.busy = False


class Thread:
    """One thread: it does its jobs one after the other.

    Args:
        cores: that it runs on.
        wake_ms: from its first job to its first instruction, on an idle core, which it keeps busy meanwhile.
        turn_ms: of a core, each time that it wakes.
        slowness: the factor by which everything takes longer now.

    Attributes:
        running: whether it has a core.
        core: that of its last run.
        used_ms: of a core, so far.
    """

    def __init__(
        self, cores: Cores, *, wake_ms: float = 0.0, turn_ms: float = 0.0, slowness: Callable[[], float] = lambda: 1.0
    ) -> None:
        self.running = False
        self.core = cores.first()
        self.used_ms = 0.0
        self._cores = cores
        self._environment = cores.environment
        self._wake_ms = wake_ms
        self._turn_ms = turn_ms
        self._slowness = slowness
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
                yield self._environment.timeout(self._wake_ms)
            yield from self._compute(self._turn_ms)
            while self._jobs:
                cost, then = self._jobs.popleft()
                yield from self._compute(cost())
                then()
            self._has_jobs = self._environment.event()
            self._released()

    def _acquired(self) -> "Generator[simpy.Event, Any, bool]":
        was_idle = yield from self._cores.acquire(self)
        self.running, self._slice_began_ms = True, self._environment.now
        return was_idle

    def _released(self) -> None:
        self.running = False
        self._cores.release(self.core)

    def _compute(self, cost_ms: float) -> Steps:
        """Run for milliseconds of a core, with pauses in which it makes way."""
        environment, cores, left_ms = self._environment, self._cores, cost_ms
        while left_ms > 0:
            slowness = self._slowness()
            whole_ms, began_ms = left_ms * slowness, environment.now
            waited_for, over_ms = bool(self.core.waiting), self._slice_began_ms + cores.slice_ms
            if not waited_for:
                done = environment.timeout(whole_ms)
                yield done | self.core.wanted
                self._renew_slice()
                make_way = environment.now >= self._slice_began_ms + cores.slice_ms
            elif began_ms < over_ms:
                done = environment.timeout(min(whole_ms, over_ms - began_ms))
                yield done
                make_way = False
            else:
                tick_ms = (began_ms // cores.tick_ms + 1) * cores.tick_ms
                done = environment.timeout(min(whole_ms, tick_ms - began_ms))
                yield done | self.core.wanted
                make_way = True
            ran_ms = environment.now - began_ms
            self.used_ms += ran_ms
            left_ms -= ran_ms / slowness
            if left_ms <= 1e-9:
                return
            if make_way and self.core.waiting:
                self._released()
                yield from self._acquired()

    def _renew_slice(self) -> None:
        """A thread for whose core none waited has a new slice from each tick at which its slice was over."""
        tick_ms = self._environment.now // self._cores.tick_ms * self._cores.tick_ms
        if tick_ms >= self._slice_began_ms + self._cores.slice_ms:
            self._slice_began_ms = tick_ms
