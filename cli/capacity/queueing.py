"""Simulates the queues of a service: worker processes, Redis and clients, on cores that they share or on their own.

Each worker is an event loop and threads that search batches, by the rules of `service.recommend.batching`: a search
joins those that are ready in one turn of the event loop; one alone runs in the loop; several go to an idle thread as a
batch of at most 16; what arrives while all threads are busy forms the next batch. Whatever takes time takes it of a
core, so that threads wait for each other wherever there are more of them than cores.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from cli.capacity.cores import SLICE_MS, Cores, Cost, Steps, Thread
from cli.errors import CapacityError

if TYPE_CHECKING:
    import simpy

LARGEST_BATCH: Final = 16
_READ_SHARE: Final = 0.25  # of a request's time in the loop: until it has been sent to Redis
_FOUND_SHARE: Final = 0.15  # from the history to its search; the rest writes the answer
_SEND_SHARE: Final = 0.5  # of the client's time for a request
WARM_SHARE: Final = 0.1  # of the requests of an open loop; their latencies do not count
_BISECTIONS: Final = 7
LONE_WAKES: Final = 5  # client, loop, Redis, loop and client
_DRAWN: Final = 4_096


@dataclass(frozen=True)
class ServiceTimes:
    """What a request takes, in milliseconds of a core unless said otherwise, and where it runs.

    Attributes:
        loop_ms: of the event loop of a worker, without the search.
        alone_ms: of the event loop, a search alone.
        batch_ms: of a thread, a batch of searches, however many they are.
        search_ms: of a thread, each search of a batch besides.
        redis_ms: of the Redis server.
        client_ms: of the client, which is one thread.
        turn_ms: of an event loop, Redis or client, each time that it wakes.
        wake_ms: an idle core to run a thread that wakes.
        remote_ms: latency of a search in another service; no core is busy meanwhile.
        workers: processes.
        threads: of each worker, that search batches.
        cores: of the machine of the workers.
        dedicated: Redis and client have a core of their own each; else they share those of the workers.
        contention: time beside another running thread of the process over that without, at least 1.
        variation: standard deviation of a time over its mean.
        slice_ms: a thread that has run so long makes way for one that waits for a core.
    """

    loop_ms: float
    alone_ms: float
    batch_ms: float
    search_ms: float
    redis_ms: float
    client_ms: float
    turn_ms: float = 0.0
    wake_ms: float = 0.0
    remote_ms: float = 0.0
    workers: int = 2
    threads: int = 1
    cores: int = 2
    dedicated: bool = False
    contention: float = 1.0
    variation: float = 0.3
    slice_ms: float = SLICE_MS


class _Worker:
    """One process: its event loop, its threads, and the searches that wait for them."""

    def __init__(self, simulation: "_Simulation") -> None:
        self.connections = 0
        self.batches: list[int] = []
        self._simulation = simulation
        self._times = simulation.times
        self._waiting: deque[Callable[[], None]] = deque()
        self._planned = False
        self._alone: Callable[[], None] | None = None
        wake_ms, turn_ms, cores = self._times.wake_ms, self._times.turn_ms, simulation.cores
        self.loop = Thread(cores, wake_ms=wake_ms, turn_ms=turn_ms, slowness=self._slowness)
        self._idle = [Thread(cores, wake_ms=wake_ms, slowness=self._slowness) for _ in range(self._times.threads)]
        self._threads = (self.loop, *self._idle)

    def request(self, answer: Callable[[], None]) -> None:
        """Handle a request that has arrived; `answer` is called when it has been answered."""
        simulation = self._simulation

        def read() -> None:
            simulation.redis.add(simulation.cost(self._times.redis_ms), found)

        def found() -> None:
            self.loop.add(simulation.cost(_FOUND_SHARE * self._times.loop_ms), search)

        def search() -> None:
            self._waiting.append(lambda: simulation.after(self._times.remote_ms, write))
            self._plan()

        def write() -> None:
            share = 1 - _READ_SHARE - _FOUND_SHARE
            self.loop.add(simulation.cost(share * self._times.loop_ms), answer)

        self.loop.add(simulation.cost(_READ_SHARE * self._times.loop_ms), read)

    def _slowness(self) -> float:
        return self._times.contention if sum(thread.running for thread in self._threads) > 1 else 1.0

    def _plan(self) -> None:
        """Dispatch in the next turn of the loop, after what is ready already."""
        if self._waiting and not self._planned and self._idle:
            self._planned = True
            self.loop.add(self._dispatch, self._dispatched)

    def _dispatch(self) -> float:
        """Start batches in idle threads; milliseconds of the loop, in which a search alone runs."""
        self._planned = False
        while self._idle and self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(LARGEST_BATCH, len(self._waiting)))]
            self.batches.append(len(batch))
            if len(batch) == 1:
                self._alone = batch[0]
                return self._times.alone_ms * self._simulation.factor()
            self._start(self._idle.pop(), batch)
        return 0.0

    def _dispatched(self) -> None:
        if self._alone is not None:
            self._alone()
            self._alone = None
        self._plan()

    def _start(self, thread: Thread, batch: list[Callable[[], None]]) -> None:
        def cost_ms() -> float:
            factor = self._simulation.factor
            return self._times.batch_ms * factor() + self._times.search_ms * sum(factor() for _ in batch)

        def report() -> None:
            self._idle.append(thread)
            for done in batch:
                done()
            self.loop.add_first(self._dispatch, self._dispatched)

        thread.add(cost_ms, lambda: self.loop.add(lambda: 0.0, report))


class _Simulation:
    """One run: workers, Redis and client, and the latencies of the requests that were answered."""

    def __init__(self, environment: "simpy.Environment", times: ServiceTimes, seed: int) -> None:
        self.environment = environment
        self.times = times
        self.latencies_ms: list[float] = []
        self.answered: Callable[[], None] = lambda: None
        self.ended_ms = 0.0
        self._rng = np.random.default_rng(seed)
        self._factors: list[float] = []
        self.cores = Cores(environment, times.cores, times.slice_ms)
        self.redis, self.client = (
            Thread(
                Cores(environment, 1, times.slice_ms) if times.dedicated else self.cores,
                wake_ms=times.wake_ms,
                turn_ms=times.turn_ms,
            )
            for _ in range(2)
        )
        self.workers = [_Worker(self) for _ in range(times.workers)]
        self._idle: list[_Worker] = []  # of each connection without a request, the last used last

    def send(self, due_ms: float) -> None:
        """Let the client send a request that is due, over a connection that is idle or new."""

        def sent() -> None:
            worker = self._idle.pop() if self._idle else self._connected()
            receive_ms = (1 - _SEND_SHARE) * self.times.client_ms
            worker.request(lambda: self.client.add(self.cost(receive_ms), lambda: received(worker)))

        def received(worker: _Worker) -> None:
            self.ended_ms = self.environment.now
            self.latencies_ms.append(self.ended_ms - due_ms)
            self._idle.append(worker)
            self.answered()

        self.client.add(self.cost(_SEND_SHARE * self.times.client_ms), sent)

    def cost(self, mean_ms: float) -> Cost:
        """A time of this mean, which varies."""
        return lambda: mean_ms * self.factor()

    def after(self, delay_ms: float, then: Callable[[], None]) -> None:
        """Call after a delay in which no core is busy."""
        if not delay_ms:
            then()
            return

        def wait() -> Steps:
            yield self.environment.timeout(delay_ms)
            then()

        self.environment.process(wait())

    def factor(self) -> float:
        """A random factor of mean 1; drawn in blocks, as single draws would take most of the time."""
        if not self._factors:
            shape = 1 / self.times.variation**2
            self._factors = self._rng.gamma(shape, 1 / shape, _DRAWN).tolist()
        return self._factors.pop()

    def _connected(self) -> _Worker:
        """The worker of a new connection: that with the fewest."""
        worker = min(self.workers, key=lambda worker: worker.connections)
        worker.connections += 1
        return worker


def open_loop(times: ServiceTimes, rate: float, requests: int, seed: int = 0) -> NDArray[np.float64]:
    """Latencies in milliseconds of requests that come at random moments of a constant rate (Poisson).

    Args:
        times: of the service.
        rate: requests a second, above 0.
        requests: how many; the first tenth is not returned.
        seed: of all that is random.
    """
    simulation = _started(times, seed)
    gaps_ms = np.random.default_rng([seed, 1]).exponential(1_000 / rate, requests)

    def arrive() -> Steps:
        for gap_ms in gaps_ms.tolist():
            yield simulation.environment.timeout(gap_ms)
            simulation.send(simulation.environment.now)

    simulation.environment.process(arrive())
    simulation.environment.run()
    return np.array(simulation.latencies_ms[int(WARM_SHARE * requests) :])


@dataclass(frozen=True)
class ClosedLoop:
    """What connections got that each send a request after the previous answer.

    Attributes:
        rate: answers a second.
        latencies_ms: of all requests.
    """

    rate: float
    latencies_ms: NDArray[np.float64]


def closed_loop(times: ServiceTimes, connections: int, requests: int, seed: int = 0) -> ClosedLoop:
    """Connections that each send a request after the previous answer.

    Args:
        times: of the service.
        connections: how many.
        requests: at least so many are answered.
        seed: of all that is random.
    """
    simulation = _started(times, seed)

    def answered() -> None:
        if len(simulation.latencies_ms) < requests:
            simulation.send(simulation.environment.now)

    simulation.answered = answered
    for _ in range(connections):
        simulation.send(0.0)
    simulation.environment.run()
    latencies_ms = np.array(simulation.latencies_ms)
    return ClosedLoop(1_000 * len(latencies_ms) / simulation.ended_ms, latencies_ms)


def lone_request_ms(times: ServiceTimes) -> float:
    """The mean latency of requests to a service without any other load, in milliseconds."""
    cores_ms = times.loop_ms + times.alone_ms + times.redis_ms + times.client_ms
    return cores_ms + times.remote_ms + LONE_WAKES * (times.wake_ms + times.turn_ms)


def highest_rate(times: ServiceTimes, p99_ms: float, requests: int = 3_000) -> float:
    """The highest rate a second at which the 99th percentile of the latency is at most a bound; 0 if there is none."""
    low, high = 0.0, _most(times)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if np.percentile(open_loop(times, middle, requests), 99) <= p99_ms:
            low = middle
        else:
            high = middle
    return low


def _most(times: ServiceTimes) -> float:
    """A rate a second above which work would pile up for ever: more than loops or cores can do."""
    search_ms = min(times.alone_ms, times.search_ms + times.batch_ms / LARGEST_BATCH)
    others_ms = 0.0 if times.dedicated else times.redis_ms + times.client_ms
    most = min(times.workers / times.loop_ms, times.cores / (times.loop_ms + search_ms + others_ms))
    return 1_000 * min(most, 1 / max(times.redis_ms, times.client_ms))


def fitted_variation(times: ServiceTimes, rate: float, p99_ms: float, requests: int = 4_000) -> ServiceTimes:
    """The same times with the variation at which requests at a low rate have a measured 99th percentile."""
    low, high = 0.01, 3.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        slower = np.percentile(open_loop(replace(times, variation=middle), rate, requests), 99) > p99_ms
        low, high = (low, middle) if slower else (middle, high)
    return replace(times, variation=low)


def fitted_contention(times: ServiceTimes, peak: float, connections: int, requests: int = 3_000) -> ServiceTimes:
    """The same times with the contention at which a closed loop gets a measured number of answers a second.

    The contention is 1 … 4; where even 1 gives fewer answers than were measured, it is 1.
    """
    low, high = 1.0, 4.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        faster = closed_loop(replace(times, contention=middle), connections, requests).rate > peak
        low, high = (middle, high) if faster else (low, middle)
    return replace(times, contention=low)


def _started(times: ServiceTimes, seed: int) -> _Simulation:
    try:
        import simpy
    except ImportError:
        raise CapacityError("the simulation needs simpy: pip install 'vlm2rec[plan]'") from None
    return _Simulation(simpy.Environment(), times, seed)
