"""Simulates the queues of one service process: an event loop, threads that search batches, and what lies outside.

The rules are those of `service.recommend.batching`: a search joins those that are ready in one turn of the event loop;
one alone runs in the loop; several go to an idle thread as a batch of at most 16; what arrives while all threads are
busy forms the next batch. A time that begins while other threads of the process are busy takes longer (the
interpreter's lock), and still longer if they are more than the cores. Times vary by a gamma distribution.
"""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cli.errors import CapacityError

if TYPE_CHECKING:
    import simpy

LARGEST_BATCH: Final = 16
_ARRIVAL_SHARE: Final = 0.4  # of a request's time in the loop, before its search; the rest writes the answer
_WARM_SHARE: Final = 0.1
_BISECTIONS: Final = 7


@dataclass(frozen=True)
class ServiceTimes:
    """The times of one process, in milliseconds.

    Attributes:
        loop_ms: in the event loop, a request, without its search.
        search_ms: of a thread, a search in a batch.
        alone_ms: of a search alone.
        outside_ms: latencies of which one is drawn for each request; they occupy neither loop nor thread.
        threads: that search.
        cores: that loop and threads share.
        contention: time beside another busy thread over that without, at least 1.
        variation: standard deviation of a time over its mean.
    """

    loop_ms: float
    search_ms: float
    alone_ms: float
    outside_ms: Sequence[float]
    threads: int = 2
    cores: int = 2
    contention: float = 1.0
    variation: float = 0.3


class _Process:
    """One run: the state of loop and threads, and the latencies of the requests that were answered."""

    def __init__(self, environment: "simpy.Environment", times: ServiceTimes, seed: int) -> None:
        import simpy

        self.environment = environment
        self.latencies_ms: list[float] = []
        self._times = times
        self._rng = np.random.default_rng(seed)
        self._loop = simpy.Resource(environment, capacity=1)
        self._idle = times.threads
        self._waiting: deque[simpy.Event] = deque()
        self._planned = False
        self._busy = 0  # loop and threads
        self._factors = np.empty(0)
        self._outside = np.empty(0)

    def request(self) -> "Generator[simpy.Event, Any, None]":
        """One request from the moment it is due to its answer."""
        began = self.environment.now
        yield self.environment.timeout(self._drawn_outside())
        yield from self._in_loop(self._times.loop_ms * _ARRIVAL_SHARE)
        found = self.environment.event()
        self._waiting.append(found)
        self._plan()
        yield found
        yield from self._in_loop(self._times.loop_ms * (1 - _ARRIVAL_SHARE))
        self.latencies_ms.append(self.environment.now - began)

    def _plan(self) -> None:
        """Dispatch in the next turn of the loop, after what is ready already."""
        if self._waiting and not self._planned and self._idle > 0:
            self._planned = True
            self.environment.process(self._dispatch())

    def _dispatch(self) -> "Generator[simpy.Event, Any, None]":
        with self._loop.request() as turn:
            yield turn
            self._planned = False
            while self._idle > 0 and self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(LARGEST_BATCH, len(self._waiting)))]
                if len(batch) == 1:
                    yield from self._work(self._times.alone_ms)
                    batch[0].succeed()
                    break
                self._idle -= 1
                self.environment.process(self._in_thread(batch))
        self._plan()

    def _in_thread(self, batch: "list[simpy.Event]") -> "Generator[simpy.Event, Any, None]":
        yield from self._work(self._times.search_ms * len(batch))
        self._idle += 1
        for found in batch:
            found.succeed()
        self._plan()

    def _in_loop(self, mean_ms: float) -> "Generator[simpy.Event, Any, None]":
        with self._loop.request() as turn:
            yield turn
            yield from self._work(mean_ms)

    def _work(self, mean_ms: float) -> "Generator[simpy.Event, Any, None]":
        self._busy += 1
        slower = self._times.contention if self._busy > 1 else 1.0
        slower *= max(1.0, self._busy / self._times.cores)
        yield self.environment.timeout(mean_ms * slower * self._drawn_factor())
        self._busy -= 1

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
    environment, process = _started(times, seed)
    gaps_ms = np.random.default_rng([seed, 1]).exponential(1_000 / rate, requests)

    def arrive() -> "Generator[simpy.Event, Any, None]":
        for gap_ms in gaps_ms.tolist():
            yield environment.timeout(gap_ms)
            environment.process(process.request())

    environment.process(arrive())
    environment.run()
    return np.array(process.latencies_ms[int(_WARM_SHARE * requests) :])


def closed_loop(times: ServiceTimes, connections: int, requests: int, seed: int = 0) -> float:
    """Answers a second when each of some connections sends a request after the previous answer."""
    environment, process = _started(times, seed)

    def connection() -> "Generator[simpy.Event, Any, None]":
        while len(process.latencies_ms) < requests:
            yield from process.request()

    for _ in range(connections):
        environment.process(connection())
    environment.run()
    return 1_000 * len(process.latencies_ms) / float(environment.now)


def highest_rate(times: ServiceTimes, p99_ms: float, requests: int = 3_000) -> float:
    """The highest rate a second at which the 99th percentile of the latency is at most a bound; 0 if there is none."""
    # Loop and threads all search without a pause, at the shorter of the two times: no process answers more.
    searching = 1_000 * (times.threads + 1) / min(times.search_ms, times.alone_ms)
    low, high = 0.0, min(1_000 / times.loop_ms, searching)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if np.percentile(open_loop(times, middle, requests), 99) <= p99_ms:
            low = middle
        else:
            high = middle
    return low


def fitted_contention(times: ServiceTimes, peak: float, connections: int, requests: int = 3_000) -> ServiceTimes:
    """The same times with the contention at which a closed loop gets a measured number of answers a second.

    The contention is 1 … 4; where even 1 gives fewer answers than were measured, it is 1.
    """
    low, high = 1.0, 4.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        faster = closed_loop(replace(times, contention=middle), connections, requests) > peak
        low, high = (middle, high) if faster else (low, middle)
    return replace(times, contention=low)


def _started(times: ServiceTimes, seed: int) -> "tuple[simpy.Environment, _Process]":
    try:
        import simpy
    except ImportError:
        raise CapacityError("the simulation needs simpy: pip install 'vlm2rec[plan]'") from None
    environment = simpy.Environment()
    return environment, _Process(environment, times, seed)
