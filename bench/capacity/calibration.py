"""Measures what a request takes, in closed and open loops, and calibrates the simulation with the closed ones."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bench.capacity.processor_time import ROLES, by_role, stolen_s
from bench.load.histograms import buckets_of
from bench.load.open_loop import Client, arrivals, requests_of
from bench.serving.running import PATH, RunningContender
from cli.capacity.queueing import (
    LONE_WAKES,
    WARM_SHARE,
    ServiceTimes,
    fitted_contention,
    fitted_variation,
    lone_request_ms,
)

CONNECTIONS: Final = (1, 2, 4, 8, 16, 32, 64)
_START_S: Final = 0.05
_METRICS_S: Final = 1.1  # the service renders its metrics at most once a second
_FEW_BATCHES: Final = 0.01  # an answer: then the threads did next to nothing


@dataclass(frozen=True)
class Target:
    """What is loaded.

    Attributes:
        running: the service.
        redis_pid: process of its Redis.
        users: with a history in Redis.
    """

    running: RunningContender
    redis_pid: int
    users: int

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


def open_run(target: Target, rate: float, seconds: float, seed: int) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """An open loop; see `_measured`. Latencies count from the moment a request was due.

    The requests of the first tenth of the time have no part in the latencies, but in all else.
    """
    requests, due = target.requests(seed), arrivals(rate, seconds, seed)
    began = time.perf_counter() + _START_S
    since = began + WARM_SHARE * seconds
    found, latencies_ms = _measured(target, lambda client: client.run(requests, began + due), since)
    return {"rate": rate, **found}, latencies_ms


def quantiles(latencies_ms: NDArray[np.float64]) -> dict[str, float]:
    """Mean and quantiles of latencies, in milliseconds."""
    found = {f"p{percent}_ms": float(np.percentile(latencies_ms, percent)) for percent in (50, 90, 99)}
    return {"mean_ms": float(latencies_ms.mean()), **found}


def _measured(
    target: Target, load: Callable[[Client], None], since: float = 0.0
) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """What a load took.

    Args:
        target: what is loaded.
        load: sends the requests.
        since: latencies are of requests that were due from then on, in seconds of `time.perf_counter`.

    Returns:
        ``answers``, ``failed``, ``answers_s`` a second, and an answer: for each role ``…_ms`` of processor time,
        ``…_waited_ms`` for a core and ``…_sleeps``; ``alone``: searches that ran alone, and ``batches`` of others;
        ``stolen``, the share of all cores that the host took. Then the latencies in ms.
    """
    sizes, client = buckets_of(target.running.port, "vlm2rec_batch_size"), Client(target.running.port)
    before, stolen, began = by_role(target.running, target.redis_pid), stolen_s(), time.perf_counter()
    try:
        load(client)
    finally:
        client.close()
    took_s, stolen = time.perf_counter() - began, stolen_s() - stolen
    after = by_role(target.running, target.redis_pid)
    time.sleep(_METRICS_S)
    later = buckets_of(target.running.port, "vlm2rec_batch_size")
    due, answered, status = np.array(client.records, dtype=np.float64)[:, :3].T
    good = status == 200
    count, latencies_ms = int(good.sum()), 1_000 * (answered - due)[good & (due >= since)]
    alone, batches = (later[bound] - sizes.get(bound, 0.0) for bound in (1.0, float("inf")))
    found: dict[str, Any] = {"answers": count, "failed": len(good) - count, "answers_s": count / took_s}
    for role in ROLES:
        used = after[role] - before[role]
        found[f"{role}_ms"] = 1_000 * used.used_s / count
        found[f"{role}_waited_ms"] = 1_000 * used.waited_s / count
        found[f"{role}_sleeps"] = used.sleeps / count
    found |= {"alone": alone / count, "batches": (batches - alone) / count}
    return found | {"stolen": stolen / (took_s * _cores())}, latencies_ms


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def together(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The medians of all figures of some runs."""
    return {name: median(run[name] for run in runs) for name in runs[0]}


def by_connections(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number of connections the medians over the runs with it."""
    same: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        same.setdefault(run["connections"], []).append(run)
    return [together(found) for found in same.values()]


def calibrated(
    closed: Sequence[dict[str, Any]], idle: Sequence[dict[str, Any]], *, workers: int, cores: int, slice_ms: float
) -> ServiceTimes:
    """The times of a request, from closed loops and from open ones without queues.

    - Processor time of each role, by least squares of the relative differences. Of the loop it is `loop_ms`, and
      `alone_ms` for each search that ran alone; of the threads `batch_ms` a batch and `search_ms` a search; of Redis
      `redis_ms` and of the client `client_ms`. A sleep of the loop, Redis or the client takes `turn_ms` besides.
    - `wake_ms` is the mean latency without queues, less all of that, for each of the times that a thread wakes.
    - `variation` gives the p99 without queues.
    - `contention` gives the rate of most connections.

    Args:
        closed: of `closed_run`.
        idle: of `open_run`, with the latencies' `quantiles`.
        workers: processes of the service.
        cores: of this machine.
        slice_ms: see `ServiceTimes`.
    """
    loops, lone = by_connections(closed), together(idle)
    found, most = [lone, *loops], max(loops, key=lambda run: int(run["connections"]))
    loop_ms, alone_ms, redis_ms, client_ms, turn_ms = _least_squares(
        [(run["loop_ms"], (1, run["alone"], 0, 0, run["loop_sleeps"])) for run in found]
        + [(run["redis_ms"], (0, 0, 1, 0, run["redis_sleeps"])) for run in found]
        + [(run["client_ms"], (0, 0, 0, 1, run["client_sleeps"])) for run in found]
    )
    batch_ms, search_ms = _least_squares(
        [(run["threads_ms"], (run["batches"], 1 - run["alone"])) for run in found if run["batches"] > _FEW_BATCHES]
    )
    times = ServiceTimes(
        loop_ms=loop_ms,
        alone_ms=alone_ms,
        batch_ms=batch_ms,
        search_ms=search_ms,
        redis_ms=redis_ms,
        client_ms=client_ms,
        turn_ms=turn_ms,
        workers=workers,
        threads=max(1, min(cores // workers, 4)),
        cores=cores,
        slice_ms=slice_ms,
    )
    times = replace(times, wake_ms=max(0.0, (lone["mean_ms"] - lone_request_ms(times)) / LONE_WAKES))
    times = fitted_variation(times, lone["rate"], lone["p99_ms"])
    return fitted_contention(times, most["answers_s"], int(most["connections"]))


def _least_squares(equations: Sequence[tuple[float, tuple[float, ...]]]) -> list[float]:
    """The milliseconds, at least 0, of each thing counted that come closest to processor times, relative to these.

    Args:
        equations: the time of a role an answer, in milliseconds, and the counts an answer that it is made of.
    """
    shares = np.array([np.array(counts) / used_ms for used_ms, counts in equations])
    found, _ = nnls(shares, np.ones(len(equations)))
    times: list[float] = found.tolist()
    return times
