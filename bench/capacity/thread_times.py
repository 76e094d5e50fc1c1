"""Reads what a service process used of its core, and fits the times of the simulation to it."""

import re
import urllib.request
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bench.serving.running import RunningContender
from cli.capacity.queueing import ServiceTimes, wakes_a_request

CONNECTIONS: Final = 64
"""Of a closed loop."""
_SAMPLES: Final = re.compile(
    r'^vlm2rec_(batch_size_bucket\{le="(?:1|2|4).0"\}|batch_size_count|batch_size_sum'
    r'|stage_seconds_sum\{route="/recommend",stage="(?:encode|search|rank)"\}) (\S+)',
    re.MULTILINE,
)
_REQUESTS: Final = 6_000  # that are simulated to count how often the loop wakes up
_STEPS: Final = 5
_FIRST_GUESS_MS: Final = 0.3


@dataclass(frozen=True)
class Used:
    """What a process has used so far, or between two moments.

    Attributes:
        loop_ms: processor time of the event loop's thread.
        thread_ms: of all other threads.
        searches: how many there were.
        firsts: batches in the loop, those of one search too.
        in_loop: searches in the loop; of a batch of three or four, three and a half.
        batches: batches in the thread.
        stages_ms: time of the stages of a search, of all requests together; those of a batch count for each of it.
        seconds: by the clock.
    """

    loop_ms: float
    thread_ms: float
    searches: float
    firsts: float
    in_loop: float
    batches: float
    stages_ms: float
    seconds: float

    @classmethod
    def of(cls, running: RunningContender) -> Self:
        """What the process of a contender with one worker has used so far."""
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/metrics", timeout=10) as answer:
            found = {name: float(value) for name, value in _SAMPLES.findall(answer.read().decode())}
        alone, two, four = (found[f'batch_size_bucket{{le="{most}.0"}}'] for most in (1, 2, 4))
        tasks = {int(task.name): _processor_ms(task) for task in Path(f"/proc/{running.pid}/task").iterdir()}
        loop_ms = tasks.pop(running.pid)
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        return cls(
            loop_ms=loop_ms,
            thread_ms=sum(tasks.values()),
            searches=found["batch_size_sum"],
            firsts=four,
            in_loop=alone + 2 * (two - alone) + 3.5 * (four - two),
            batches=found["batch_size_count"] - four,
            stages_ms=1_000 * sum(value for name, value in found.items() if name.startswith("stage")),
            seconds=uptime_s,
        )

    def __sub__(self, earlier: "Used") -> "Used":
        return Used(*(now - then for now, then in zip(astuple(self), astuple(earlier), strict=True)))


@dataclass(frozen=True)
class Turn:
    """One load of the process.

    Attributes:
        share: of the rate of a closed loop; 0 for such a loop itself.
        used: meanwhile.
        latencies_ms: of the requests; NaN for one that was not answered with 200.
    """

    share: float
    used: Used
    latencies_ms: NDArray[np.float64]


def fitted_times(turns: Sequence[Turn], peak: float, outside_ms: Sequence[float]) -> ServiceTimes:
    """The times that give the processor times which were used.

    A search alone takes what its stages took at the lowest rate, where nearly all are alone. Batches and their searches
    are fitted to the other threads' processor time, with a part that does not depend on the load; further searches of
    a batch in the loop take as much as those. What is left of the event loop is fitted to requests and to how often it
    wakes up, which the simulation says: threads of one process also wait for each other, so the kernel's count of its
    waits is too high.

    Args:
        turns: at several rates.
        peak: answers a second of a closed loop.
        outside_ms: of `ServiceTimes`.
    """
    opened = [turn for turn in turns if turn.share]
    lowest = min(turn.share for turn in opened)
    lone = [turn.used for turn in opened if turn.share == lowest]
    alone_ms = sum(used.stages_ms for used in lone) / sum(used.searches for used in lone)
    batch_ms, search_ms, _ = _non_negative(
        [(u.batches / u.searches, 1 - u.in_loop / u.searches, u.seconds / u.searches) for u in (t.used for t in turns)],
        [turn.used.thread_ms / turn.used.searches for turn in turns],
    )
    left_ms = [
        (used.loop_ms - alone_ms * used.firsts - search_ms * (used.in_loop - used.firsts)) / used.searches
        for used in (turn.used for turn in turns)
    ]
    loop_ms = wake_ms = _FIRST_GUESS_MS
    for _ in range(_STEPS):
        times = ServiceTimes(loop_ms, wake_ms, alone_ms, batch_ms, search_ms, outside_ms)
        wakes = {
            share: wakes_a_request(times, _REQUESTS, rate=share * peak, connections=CONNECTIONS)
            for share in {turn.share for turn in turns}
        }
        loop_ms, wake_ms = _non_negative([(1.0, wakes[turn.share]) for turn in turns], left_ms)
    return ServiceTimes(loop_ms, wake_ms, alone_ms, batch_ms, search_ms, outside_ms)


def _non_negative(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """The non-negative solution with the smallest squares of relative errors."""
    scale = np.asarray(values, dtype=np.float64)
    solution, _ = nnls(np.asarray(rows) / scale[:, None], np.ones(len(scale)))
    found: list[float] = solution.tolist()
    return found


def _processor_ms(task: Path) -> float:
    """Processor time of a thread; 0 if it has ended."""
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e6
    except OSError:
        return 0.0
