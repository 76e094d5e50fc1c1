"""Measures what a request takes, in closed and open loops, and calibrates the simulation without the compared ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bench.capacity.pauses import PauseMeters
from bench.capacity.processor_time import ROLES, by_role, stolen_s
from bench.load.histograms import buckets_of
from bench.load.open_loop import Client, arrivals, requests_of
from bench.serving.running import PATH, RunningContender
from cli.capacity.queueing import LONE_WAKES, WARM_SHARE, ServiceTimes

CONNECTIONS: Final = (1, 2, 4, 8, 16, 64)
_START_S: Final = 0.05
_METRICS_S: Final = 1.1  # the service renders its metrics at most once a second
_FEW_BATCHES: Final = 0.01  # an answer: then the thread did next to nothing
_NORMAL_WIDTH: Final = 2.563  # standard deviations from p10 to p90 of a normal distribution
_LEAST_VARIATION: Final = 0.01


@dataclass(frozen=True)
class Target:
    """What is loaded.

    Attributes:
        running: the service.
        redis_pid: process of its Redis.
        users: with a history in Redis.
        meters: of the core of the service, and of that of all else.
    """

    running: RunningContender
    redis_pid: int
    users: int
    meters: PauseMeters

    def requests(self, seed: int) -> list[bytes]:
        """Requests of users in a random order."""
        order = np.random.default_rng(seed).integers(self.users, size=4_096).tolist()
        contender = self.running.contender
        return requests_of(PATH, [contender.body({"user_id": f"user-{user:06d}", "k": 20}) for user in order])


def closed_run(target: Target, connections: int, seconds: float, seed: int) -> dict[str, Any]:
    """A closed loop; see `_measured`."""
    requests = target.requests(seed)
    found, latencies_ms = _measured(target, lambda client: client.run_closed(requests, connections, seconds))
    return {"connections": connections, **found, **quantiles(latencies_ms)}


def open_run(target: Target, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """An open loop; see `_measured`. Latencies count from the moment a request was due.

    The requests of the first tenth of the time have no part in the latencies, but in all else.
    """
    requests, due = target.requests(seed), arrivals(rate, seconds, seed)
    began = time.perf_counter() + _START_S
    since = began + WARM_SHARE * seconds
    found, latencies_ms = _measured(target, lambda client: client.run(requests, began + due), since)
    return {"rate": rate, **found, **quantiles(latencies_ms)}


def quantiles(latencies_ms: NDArray[np.float64]) -> dict[str, float]:
    """Mean and quantiles of latencies, in milliseconds."""
    percents = (10, 50, 90, 99)
    found = dict(zip(percents, np.percentile(latencies_ms, percents).tolist(), strict=True))
    return {"mean_ms": float(latencies_ms.mean())} | {f"p{percent}_ms": value for percent, value in found.items()}


def _measured(
    target: Target, load: Callable[[Client], None], since: float = 0.0
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """What a load took.

    Args:
        target: what is loaded.
        load: sends the requests.
        since: latencies are of requests that were due from then on, in seconds of `time.perf_counter`.

    Returns:
        ``answers``, ``failed``, ``answers_s`` a second; for each role ``…_ms`` of processor time an answer and
        ``…_waited_ms`` for a core; an answer, ``alone``: searches that ran alone, and ``batches`` of others;
        ``client_share`` of a core that the client used, and ``client_late_p99_ms`` until it sent a request that was
        due; ``stolen``, the cores that the host took; ``seconds``, and ``pauses_ms`` of each core. Then the latencies
        in ms.
    """
    port, client = target.running.port, Client(target.running.port)
    sizes = buckets_of(port, "vlm2rec_batch_size")
    before, stolen, began = by_role(target.running.pid, target.redis_pid), stolen_s(), time.perf_counter()
    try:
        load(client)
    finally:
        client.close()
    ended = time.perf_counter()
    took_s, stolen = ended - began, stolen_s() - stolen
    after = by_role(target.running.pid, target.redis_pid)
    time.sleep(_METRICS_S)
    later = buckets_of(port, "vlm2rec_batch_size")
    due, answered, status = np.array(client.records, dtype=np.float64)[:, :3].T
    good = status == 200
    count, latencies_ms = int(good.sum()), 1_000 * (answered - due)[good & (due >= since)]
    alone, batches = (later[bound] - sizes.get(bound, 0.0) for bound in (1.0, float("inf")))
    found: dict[str, Any] = {"answers": count, "failed": len(good) - count, "answers_s": count / took_s}
    for role in ROLES:
        used = after[role] - before[role]
        found[f"{role}_ms"] = 1_000 * used.used_s / count
        found[f"{role}_waited_ms"] = 1_000 * used.waited_s / count
    found |= {"alone": alone / count, "batches": (batches - alone) / count}
    found["client_share"] = (after["client"] - before["client"]).used_s / took_s
    found["client_late_p99_ms"] = 1_000 * float(np.percentile(client.late_s, 99))
    pauses_ms = [sorted(of_core, reverse=True) for of_core in target.meters.between(began, ended)]
    found |= {"stolen": stolen / took_s, "seconds": took_s, "pauses_ms": pauses_ms}
    return found, latencies_ms


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of the figures of some runs, and all of their pauses."""
    names = [name for name in runs[0] if name != "pauses_ms"]
    cores = zip(*(run["pauses_ms"] for run in runs), strict=True)
    return {name: median(run[name] for run in runs) for name in names} | {
        "pauses_ms": [[length_ms for of_run in of_core for length_ms in of_run] for of_core in cores]
    }


def by_connections(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number of connections the medians over the runs with it."""
    same: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        same.setdefault(run["connections"], []).append(run)
    return [together(found) for found in same.values()]


def calibrated(closed: Sequence[dict[str, Any]], low: Sequence[dict[str, Any]]) -> ServiceTimes:
    """The times of a request, from closed loops and from open ones at a low rate.

    - Processor time, by least squares of the relative differences. Of the loop it is `loop_ms` an answer, `alone_ms` a
      search alone and `handoff_ms` a batch; of the threads `batch_ms` a batch and `search_ms` a search in one.
      `redis_ms` and `client_ms` are those at the low rate.
    - `wake_ms` is the median latency of one connection, less all of that, for each of the times that a core wakes.
    - `variation` gives the width of the latencies of one connection (p10 to p90), which nothing waits in.
    - Pauses are those that the meters saw in all of these runs.

    Args:
        closed: of `closed_run`, some with one connection.
        low: of `open_run`.
    """
    loops, lone = by_connections(closed), together(low)
    single = min(loops, key=lambda run: int(run["connections"]))
    found = [lone, *loops]
    loop_ms, alone_ms, handoff_ms = _least_squares(
        [(run["loop_ms"], (1, run["alone"], run["batches"])) for run in found]
    )
    batch_ms, search_ms = _least_squares(
        [(run["threads_ms"], (run["batches"], 1 - run["alone"])) for run in found if run["batches"] > _FEW_BATCHES]
    )
    used_ms = sum(single[f"{role}_ms"] for role in ROLES)
    # Of independent times: the variance of the sum is the sum of the variances.
    parts_ms = (0.25 * loop_ms, 0.15 * loop_ms, 0.6 * loop_ms, alone_ms, lone["redis_ms"], lone["client_ms"] / 2)
    width_ms = (single["p90_ms"] - single["p10_ms"]) / _NORMAL_WIDTH
    runs = [*closed, *low]
    pauses_ms = [length_ms for run in runs for of_core in run["pauses_ms"] for length_ms in of_core]
    measured_s = sum(run["seconds"] * len(run["pauses_ms"]) for run in runs)
    return ServiceTimes(
        loop_ms=loop_ms,
        alone_ms=alone_ms,
        handoff_ms=handoff_ms,
        batch_ms=batch_ms,
        search_ms=search_ms,
        redis_ms=lone["redis_ms"],
        client_ms=lone["client_ms"],
        wake_ms=max(0.0, (single["p50_ms"] - used_ms) / LONE_WAKES),
        variation=max(_LEAST_VARIATION, width_ms / float(np.linalg.norm(parts_ms))),
        pauses_s=len(pauses_ms) / measured_s,
        pauses_ms=pauses_ms,
    )


def _least_squares(equations: Sequence[tuple[float, tuple[float, ...]]]) -> list[float]:
    """The milliseconds, at least 0, of each thing counted that come closest to processor times, relative to these.

    Args:
        equations: a time in milliseconds, and the counts that it is made of.
    """
    shares = np.array([np.array(counts) / used_ms for used_ms, counts in equations])
    found, _ = nnls(shares, np.ones(len(equations)))
    times: list[float] = found.tolist()
    return times
