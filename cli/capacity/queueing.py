"""Simulates the queues of one worker of the service, which has a core of its own, and of what lies outside of it.

The worker is an event loop and one thread that searches batches, by the rules of `service.recommend.batching`: the
searches that are ready in one turn of the loop form a batch; one alone runs in the loop, several run in the thread, at
most 16 at a time; what arrives meanwhile forms the next batch. Loop and thread share the core. Histories are read by
the rules of `service.stores.redis_pipeline`: one exchange at a time, with all calls that wait. Redis and the client
share another core.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from cli.capacity.core import SLICE_MS, Cost, Pauses, SimulatedCore, Steps, Thread
from cli.errors import CapacityError

if TYPE_CHECKING:
    import simpy

LARGEST_BATCH: Final = 16
LONE_WAKES: Final = 4
"""Times that an idle core wakes for a request without others: for the loop, Redis, the loop and the client."""
WARM_SHARE: Final = 0.1
"""Of the requests of an open loop; their latencies do not count."""
_READ_SHARE: Final = 0.25  # of a request's time in the loop: until its history is asked for
_FOUND_SHARE: Final = 0.15  # from the history to its search; the rest writes the answer
_SEND_SHARE: Final = 0.5  # of the client's time for a request
_BISECTIONS: Final = 7
_DRAWN: Final = 4_096


@dataclass(frozen=True)
class ServiceTimes:
    """What a request takes, in milliseconds of a core unless said otherwise.

    Attributes:
        loop_ms: of the event loop, a request without its search.
        alone_ms: of the event loop, a search alone.
        handoff_ms: of the event loop, a batch that the thread searches, however many searches it has.
        batch_ms: of the thread, a batch, however many searches it has.
        search_ms: of the thread, each search of a batch besides.
        redis_ms: of Redis.
        client_ms: of the client, which is one thread.
        wake_ms: from the event that wakes a thread to its first instruction, where its core is idle.
        remote_ms: latency of a search in another service; no core is busy meanwhile.
        variation: standard deviation of a time over its mean.
        pauses_s: pauses a second of each core.
        pauses_ms: lengths of which one is drawn for each pause.
        slice_ms: a thread that has run so long makes way for one that waits for its core.
    """

    loop_ms: float
    alone_ms: float
    handoff_ms: float
    batch_ms: float
    search_ms: float
    redis_ms: float
    client_ms: float
    wake_ms: float = 0.0
    remote_ms: float = 0.0
    variation: float = 0.3
    pauses_s: float = 0.0
    pauses_ms: Sequence[float] = ()
    slice_ms: float = SLICE_MS


class _SimulatedWorker:
    """One process: its event loop, its thread, and the calls and searches that wait."""

    def __init__(self, simulation: "_Simulation", core: SimulatedCore) -> None:
        self._simulation = simulation
        self._times = simulation.times
        self._loop = Thread(core, wake_ms=self._times.wake_ms)
        self._thread = Thread(core, wake_ms=self._times.wake_ms)
        self._calls: list[Callable[[], None]] = []
        self._in_exchange = False
        self._waiting: deque[Callable[[], None]] = deque()
        self._planned = False
        self._searching = False
        self._alone: Callable[[], None] | None = None

    def request(self, answer: Callable[[], None]) -> None:
        """Handle a request that has arrived; `answer` is called when it has been answered."""
        simulation, times = self._simulation, self._times

        def read() -> None:
            self._calls.append(lambda: self._loop.add(simulation.cost(_FOUND_SHARE * times.loop_ms), search))
            self._exchange()

        def search() -> None:
            self._waiting.append(lambda: simulation.after(times.remote_ms, write))
            self._plan()

        def write() -> None:
            self._loop.add(simulation.cost((1 - _READ_SHARE - _FOUND_SHARE) * times.loop_ms), answer)

        self._loop.add(simulation.cost(_READ_SHARE * times.loop_ms), read)

    def _exchange(self) -> None:
        """Ask Redis in the next turn of the loop for all that waits then, unless it has not answered yet."""
        if self._in_exchange or not self._calls:
            return
        self._in_exchange = True
        replies: list[Callable[[], None]] = []

        def send() -> None:
            replies.extend(self._calls)
            self._calls.clear()
            redis_ms = self._times.redis_ms * len(replies)
            self._simulation.redis.add(self._simulation.cost(redis_ms), lambda: self._loop.add(_nothing, receive))

        def receive() -> None:
            self._in_exchange = False
            for reply in replies:
                reply()
            self._exchange()

        self._loop.add(_nothing, send)

    def _plan(self) -> None:
        """Dispatch in the next turn of the loop, after what is ready already."""
        if self._waiting and not self._planned and not self._searching:
            self._planned = True
            self._loop.add(self._dispatch, self._dispatched)

    def _dispatch(self) -> float:
        """Take what waits; milliseconds of the loop, in which a search alone runs."""
        self._planned = False
        if self._searching or not self._waiting:
            return 0.0
        batch = [self._waiting.popleft() for _ in range(min(LARGEST_BATCH, len(self._waiting)))]
        if len(batch) == 1:
            self._alone = batch[0]
            return self._times.alone_ms * self._simulation.factor()
        self._start(batch)
        return self._times.handoff_ms * self._simulation.factor()

    def _dispatched(self) -> None:
        if self._alone is not None:
            self._alone()
            self._alone = None
        self._plan()

    def _start(self, batch: list[Callable[[], None]]) -> None:
        def cost_ms() -> float:
            factor = self._simulation.factor
            return self._times.batch_ms * factor() + self._times.search_ms * sum(factor() for _ in batch)

        def report() -> None:
            self._searching = False
            for done in batch:
                done()
            self._loop.add_first(self._dispatch, self._dispatched)

        self._searching = True
        self._thread.add(cost_ms, lambda: self._loop.add(_nothing, report))


class _Simulation:
    """One run: the worker, Redis and the client, and the latencies of the requests that were answered."""

    def __init__(self, environment: "simpy.Environment", times: ServiceTimes, seed: int) -> None:
        self.environment = environment
        self.times = times
        self.latencies_ms: list[float] = []
        self.answered: Callable[[], None] = lambda: None
        self.ended_ms = 0.0
        self._rng = np.random.default_rng(seed)
        self._factors: list[float] = []
        own, other = (
            SimulatedCore(environment, times.slice_ms, pauses=Pauses(_drawn_pauses(times, [seed, 2, number])))
            for number in range(2)
        )
        self._worker = _SimulatedWorker(self, own)
        self.redis, self._client = (Thread(other, wake_ms=times.wake_ms) for _ in range(2))

    def send(self, due_ms: float) -> None:
        """Let the client send a request that is due."""

        def sent() -> None:
            self._worker.request(answer)

        def answer() -> None:
            self._client.add(self.cost((1 - _SEND_SHARE) * self.times.client_ms), received)

        def received() -> None:
            self.ended_ms = self.environment.now
            self.latencies_ms.append(self.ended_ms - due_ms)
            self.answered()

        self._client.add(self.cost(_SEND_SHARE * self.times.client_ms), sent)

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
    """The mean latency of requests to a service without any other load and without pauses, in milliseconds."""
    cores_ms = times.loop_ms + times.alone_ms + times.redis_ms + times.client_ms
    return cores_ms + times.remote_ms + LONE_WAKES * times.wake_ms


def highest_rate(times: ServiceTimes, p99_ms: float, requests: int = 3_000) -> float:
    """The highest rate a second at which the 99th percentile of the latency is at most a bound; 0 if there is none."""
    search_ms = min(times.alone_ms, times.search_ms + (times.batch_ms + times.handoff_ms) / LARGEST_BATCH)
    low, high = 0.0, 1_000 / max(times.loop_ms + search_ms, times.redis_ms + times.client_ms)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if np.percentile(open_loop(times, middle, requests), 99) <= p99_ms:
            low = middle
        else:
            high = middle
    return low


def _drawn_pauses(times: ServiceTimes, seed: Sequence[int]) -> Iterator[tuple[float, float]]:
    """Pauses at random moments, without an end."""
    if not times.pauses_s:
        return
    rng, begin_ms = np.random.default_rng(seed), 0.0
    lengths_ms = np.asarray(times.pauses_ms, dtype=np.float64)
    while True:
        gaps_ms = rng.exponential(1_000 / times.pauses_s, _DRAWN).tolist()
        for gap_ms, length_ms in zip(gaps_ms, rng.choice(lengths_ms, _DRAWN).tolist(), strict=True):
            begin_ms += gap_ms
            yield begin_ms, length_ms
            begin_ms += length_ms


def _nothing() -> float:
    """The time of a turn of the loop that is counted elsewhere."""
    return 0.0


def _started(times: ServiceTimes, seed: int) -> _Simulation:
    try:
        import simpy
    except ImportError:
        raise CapacityError("the simulation needs simpy: pip install 'vlm2rec[plan]'") from None
    return _Simulation(simpy.Environment(), times, seed)
