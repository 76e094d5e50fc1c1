"""Simulates the queues of one service process that has a core of its own: event loop, search thread, what lies outside.

The rules are those of `service.recommend.batching` with one thread: a search joins those that are ready in one turn of
the event loop; up to four run in the loop; more go to the thread as a batch of at most 16; what arrives while the
thread is busy forms the next batch. The loop runs as soon as it wakes up; while both have work, loop and thread take
turns. Times vary by a gamma distribution. Redis and clients are on other cores.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cli.errors import CapacityError

if TYPE_CHECKING:
    import simpy

LARGEST_BATCH: Final = 16
IN_LOOP: Final = 4
"""Largest batch that runs in the event loop, as `service.settings.load.Settings.most_in_loop` on one core."""
SLICE_MS: Final = 1.4  # assumed: the base slice of Linux, .7 ms times 1 + log2 of two cores; it was not measured
# Parts of a request's time in the loop: until Redis is asked, what Redis answered, and the answer.
_READ, _HISTORY, _ANSWER = 0.35, 0.15, 0.5
_BEFORE: Final = 0.5  # part of the time outside before the loop reads the request; in the rest Redis answers
_WARM_SHARE: Final = 0.1
_BISECTIONS: Final = 7
_ROUNDING_MS: Final = 1e-9
_ROUNDING: Final = 1e-13  # of the time that has passed: less cannot be added to it
_LONGEST_SLICE: Final = 1 / 64  # of what is left, so that searches of seconds do not take thousands of slices
_VARIATIONS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)

_LOOP, _THREAD = "loop", "thread"
_Step = Callable[[], "Generator[simpy.Event, Any, None]"]


@dataclass(frozen=True)
class ServiceTimes:
    """The times of one process with one search thread, in milliseconds.

    Attributes:
        loop_ms: of the event loop, a request, without its search.
        wake_ms: of the event loop, more each time it had been idle.
        alone_ms: of the event loop, a search alone.
        batch_ms: of the thread, a batch of more searches than run in the loop, however many.
        search_ms: each search of a batch in the thread, on top, and each beyond the first of one in the loop.
        outside_ms: latencies of which one is drawn for each request; they occupy neither loop nor thread.
        variation: standard deviation of a time over its mean, above 0.
    """

    loop_ms: float
    wake_ms: float
    alone_ms: float
    batch_ms: float
    search_ms: float
    outside_ms: Sequence[float]
    variation: float = 0.3


class _Core:
    """A core that runs one of those who have work: the one that woke up first, then each in turn for a slice."""

    def __init__(self, environment: "simpy.Environment") -> None:
        self._environment = environment
        self._left_ms: dict[str, float] = {}
        self._done: dict[str, simpy.Event] = {}
        self._running: str | None = None
        self._used_ms = 0.0  # of its slice
        self._since = 0.0
        self._plans = 0

    def work(self, who: str, ms: float, *, woken: bool = False) -> "simpy.Event":
        """An event that happens when so much work of somebody is done.

        Args:
            who: has no other work now.
            ms: how long it takes without others.
            woken: it slept, so it runs at once.
        """
        self._advance()
        self._left_ms[who], self._done[who] = ms, self._environment.event()
        if woken:
            self._running, self._used_ms = who, 0.0
        self._plan()
        return self._done[who]

    def _advance(self) -> None:
        passed_ms, self._since = self._environment.now - self._since, self._environment.now
        if self._running in self._left_ms:
            self._left_ms[self._running] -= passed_ms
            self._used_ms += passed_ms

    def _plan(self) -> None:
        """Wake up when the work is done or the slice is over, unless somebody's work changes before."""
        self._plans += 1
        plan = self._plans
        if self._running not in self._left_ms:
            self._running, self._used_ms = next(iter(self._left_ms), None), 0.0
        running = self._running
        if running is None:
            return
        next_ms = self._left_ms[running]
        if len(self._left_ms) > 1:
            slice_ms = max(SLICE_MS, min(self._left_ms.values()) * _LONGEST_SLICE, self._rounding_ms())
            next_ms = min(next_ms, slice_ms - self._used_ms)
        timer = self._environment.timeout(max(next_ms, 0.0))
        timer.callbacks.append(lambda _: self._end(running) if plan == self._plans else None)

    def _end(self, ended: str) -> None:
        self._advance()
        others = [who for who in self._left_ms if who != ended]
        if others and self._left_ms[ended] > self._rounding_ms():  # without others it ended, whatever rounding left
            self._running, self._used_ms = others[0], 0.0
            self._plan()
            return
        del self._left_ms[ended]
        self._done.pop(ended).succeed()
        # Further work may follow at this moment, within the same slice.
        self._environment.timeout(0).callbacks.append(lambda _: self._again())

    def _rounding_ms(self) -> float:
        return max(_ROUNDING_MS, _ROUNDING * float(self._environment.now))

    def _again(self) -> None:
        self._advance()
        self._plan()


class _Process:
    """One run: the state of loop and thread, and what became of the requests."""

    def __init__(self, environment: "simpy.Environment", times: ServiceTimes, seed: int) -> None:
        self.environment = environment
        self.latencies_ms: list[float] = []
        self.wakes = 0
        self._times = times
        self._rng = np.random.default_rng(seed)
        self._core = _Core(environment)
        self._ready: deque[_Step] = deque()  # what the loop does in its next turn
        self._asleep: simpy.Event | None = None
        self._waiting: deque[simpy.Event] = deque()  # searches; each ends when it is found
        self._planned = False
        self._thread_idle = True
        self._factors = np.empty(0)
        self._outside = np.empty(0)
        environment.process(self._loop())

    def request(self) -> "Generator[simpy.Event, Any, None]":
        """One request from the moment it is due to its answer."""
        began, outside_ms = self.environment.now, self._drawn_outside()
        yield self.environment.timeout(_BEFORE * outside_ms)
        yield self._in_loop(_READ)
        yield self.environment.timeout((1 - _BEFORE) * outside_ms)
        yield self._in_loop(_HISTORY)
        found = self.environment.event()
        self._waiting.append(found)
        self._plan()
        yield found
        yield self._in_loop(_ANSWER)
        self.latencies_ms.append(self.environment.now - began)

    def _in_loop(self, part: float) -> "simpy.Event":
        """An event that happens when the loop has done a part of a request."""
        done = self.environment.event()

        def step() -> "Generator[simpy.Event, Any, None]":
            yield self._work(_LOOP, part * self._times.loop_ms)
            done.succeed()

        self._soon(step)
        return done

    def _soon(self, step: _Step) -> None:
        self._ready.append(step)
        if self._asleep is not None:
            self._asleep.succeed()
            self._asleep = None

    def _loop(self) -> "Generator[simpy.Event, Any, None]":
        while True:
            if not self._ready:
                yield self.environment.timeout(0)  # a request that waited for the last step goes on at this moment
            if not self._ready:
                self._asleep = self.environment.event()
                yield self._asleep
                self.wakes += 1
                yield self._work(_LOOP, self._times.wake_ms, woken=True)
            turn, self._ready = self._ready, deque()
            for step in turn:
                yield from step()

    def _plan(self) -> None:
        """Dispatch in the next turn of the loop, after what is ready already."""
        if self._waiting and not self._planned and self._thread_idle:
            self._planned = True
            self._soon(self._dispatch)

    def _dispatch(self) -> "Generator[simpy.Event, Any, None]":
        self._planned = False
        if self._thread_idle and self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(LARGEST_BATCH, len(self._waiting)))]
            if len(batch) <= IN_LOOP:
                yield self._work(_LOOP, self._times.alone_ms + self._times.search_ms * (len(batch) - 1))
                for found in batch:
                    found.succeed()
                yield self.environment.timeout(0)  # their answers come before the next batch
            else:
                self._thread_idle = False
                self.environment.process(self._in_thread(batch))
        self._plan()

    def _in_thread(self, batch: "list[simpy.Event]") -> "Generator[simpy.Event, Any, None]":
        yield self._work(_THREAD, self._times.batch_ms + self._times.search_ms * len(batch))

        def finished() -> "Generator[simpy.Event, Any, None]":
            self._thread_idle = True
            for found in batch:
                found.succeed()
            yield from self._dispatch()

        self._soon(finished)

    def _work(self, who: str, mean_ms: float, *, woken: bool = False) -> "simpy.Event":
        return self._core.work(who, mean_ms * self._drawn_factor(), woken=woken)

    def _drawn_factor(self) -> float:
        """A random factor of mean 1; drawn in blocks, as single draws would take most of the time."""
        if not len(self._factors):
            shape = 1 / self._times.variation**2
            self._factors = self._rng.gamma(shape, 1 / shape, 4_096)
        factor, self._factors = float(self._factors[-1]), self._factors[:-1]
        return factor

    def _drawn_outside(self) -> float:
        if not len(self._outside):
            self._outside = self._rng.choice(np.asarray(self._times.outside_ms, dtype=np.float64), 4_096)
        drawn, self._outside = float(self._outside[-1]), self._outside[:-1]
        return drawn


def open_loop(times: ServiceTimes, rate: float, requests: int, seed: int = 0) -> NDArray[np.float64]:
    """Latencies in milliseconds of requests that come at random moments of a constant rate (Poisson).

    Args:
        times: of the process.
        rate: requests a second, above 0.
        requests: how many; the first tenth is not returned.
        seed: of all that is random.
    """
    return np.array(_opened(times, rate, requests, seed).latencies_ms[int(_WARM_SHARE * requests) :])


def closed_loop(times: ServiceTimes, connections: int, requests: int, seed: int = 0) -> float:
    """Answers a second when each of some connections sends a request after the previous answer."""
    process = _closed(times, connections, requests, seed)
    return 1_000 * len(process.latencies_ms) / float(process.environment.now)


def wakes_a_request(
    times: ServiceTimes, requests: int, *, rate: float = 0.0, connections: int = 0, seed: int = 0
) -> float:
    """How often the event loop wakes up for a request, in an open loop of a rate or a closed one of connections."""
    run = _opened(times, rate, requests, seed) if rate else _closed(times, connections, requests, seed)
    return run.wakes / len(run.latencies_ms)


def highest_rate(times: ServiceTimes, p99_ms: float, requests: int = 3_000) -> float:
    """The highest rate a second at which the 99th percentile of the latency is at most a bound; 0 if there is none."""
    in_batches_ms = times.batch_ms / LARGEST_BATCH + times.search_ms
    low, high = 0.0, 1_000 / (times.loop_ms + min(times.alone_ms, in_batches_ms))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if np.percentile(open_loop(times, middle, requests), 99) <= p99_ms:
            low = middle
        else:
            high = middle
    return low


def fitted_variation(times: ServiceTimes, p99_ms: Mapping[float, float], requests: int = 6_000) -> ServiceTimes:
    """The same times with the variation of .1 … 1 that comes closest to measured latencies.

    Args:
        times: of the process.
        p99_ms: the measured 99th percentile of the latency in milliseconds, by requests a second.
        requests: that are simulated at each rate.

    Returns:
        Those with the smallest sum of squares of the logarithms of simulated ÷ measured.
    """

    def distance(variation: float) -> float:
        simulated = [open_loop(replace(times, variation=variation), rate, requests) for rate in p99_ms]
        ratios = [np.percentile(some, 99) / ms for some, ms in zip(simulated, p99_ms.values(), strict=True)]
        return float(np.square(np.log(ratios)).sum())

    return replace(times, variation=min(_VARIATIONS, key=distance))


def _opened(times: ServiceTimes, rate: float, requests: int, seed: int) -> _Process:
    environment, process = _started(times, seed)
    gaps_ms = np.random.default_rng([seed, 1]).exponential(1_000 / rate, requests)

    def arrive() -> "Generator[simpy.Event, Any, None]":
        for gap_ms in gaps_ms.tolist():
            yield environment.timeout(gap_ms)
            environment.process(process.request())

    environment.process(arrive())
    environment.run()
    return process


def _closed(times: ServiceTimes, connections: int, requests: int, seed: int) -> _Process:
    environment, process = _started(times, seed)

    def connection() -> "Generator[simpy.Event, Any, None]":
        while len(process.latencies_ms) < requests:
            yield from process.request()

    for _ in range(connections):
        environment.process(connection())
    environment.run()
    return process


def _started(times: ServiceTimes, seed: int) -> "tuple[simpy.Environment, _Process]":
    try:
        import simpy
    except ImportError:
        raise CapacityError("the simulation needs simpy: pip install 'vlm2rec[plan]'") from None
    environment = simpy.Environment()
    return environment, _Process(environment, times, seed)
