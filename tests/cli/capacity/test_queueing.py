"""The simulation gives what queueing theory says where theory says something."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from cli.capacity.queueing import (
    ServiceTimes,
    closed_loop,
    fitted_contention,
    fitted_variation,
    highest_rate,
    lone_request_ms,
    open_loop,
)
from cli.errors import CapacityError

TIMES = ServiceTimes(
    loop_ms=0.25,
    alone_ms=0.6,
    batch_ms=0.2,
    search_ms=0.4,
    redis_ms=0.04,
    client_ms=0.06,
    variation=0.01,
    workers=1,
    threads=2,
    cores=8,
)
FREE = replace(TIMES, redis_ms=1e-9, client_ms=1e-9)


def test_without_load_a_request_takes_the_sum_of_its_times() -> None:
    times = replace(TIMES, wake_ms=0.1, remote_ms=2.0)
    latencies_ms = open_loop(times, rate=2, requests=200)
    assert lone_request_ms(times) == pytest.approx(0.25 + 0.6 + 0.04 + 0.06 + 2.0 + 4 * 0.1)
    assert np.median(latencies_ms) == pytest.approx(lone_request_ms(times) + 0.1, rel=0.01)  # the client wakes to send
    assert closed_loop(times, 1, 400).rate == pytest.approx(1_000 / lone_request_ms(times), rel=0.01)


@pytest.mark.parametrize(
    ("times", "most"),
    [
        (replace(FREE, search_ms=1.0, batch_ms=0.0, threads=2), 2_000),  # two threads of a millisecond a search
        (replace(FREE, search_ms=1.0, batch_ms=16.0, threads=1), 500),  # 32 ms for 16 searches
        (replace(FREE, search_ms=1.0, batch_ms=0.0, threads=1, workers=2), 2_000),
        (replace(FREE, loop_ms=1.0, search_ms=0.1, threads=4), 1_000),  # one loop
        (replace(FREE, loop_ms=1.0, search_ms=0.1, workers=3), 3_000),
        (replace(FREE, redis_ms=0.5, workers=3), 2_000),
        (replace(FREE, client_ms=0.5, workers=3), 2_000),
        (replace(FREE, loop_ms=0.5, search_ms=0.5, batch_ms=0.0, workers=2, threads=1, cores=1), 1_000),
    ],
    ids=["two threads", "a batch", "two workers", "the loop", "three loops", "redis", "the client", "one core"],
)
def test_the_bottleneck_bounds_a_closed_loop(times: ServiceTimes, most: float) -> None:
    assert closed_loop(times, 192, 6_000).rate == pytest.approx(most, rel=0.06)


def test_redis_and_client_take_their_share_of_the_cores_unless_they_have_their_own() -> None:
    shared = replace(FREE, loop_ms=0.3, search_ms=0.3, batch_ms=0.0, redis_ms=0.2, client_ms=0.2, threads=1, cores=1)
    assert closed_loop(shared, 64, 3_000).rate == pytest.approx(1_000, rel=0.06)
    assert closed_loop(replace(shared, dedicated=True), 64, 3_000).rate == pytest.approx(1_000 / 0.6, rel=0.06)


def test_batches_make_a_busy_process_cheaper() -> None:
    # Alone, each request takes .85 ms of the loop: 1,176 a second at most. Batches leave the loop .25 ms of it.
    latencies_ms = open_loop(TIMES, rate=1_700, requests=4_000)
    assert np.percentile(latencies_ms, 99) < 20


def test_one_thread_queue_waits_as_a_queue_with_random_arrivals_does() -> None:
    """M/D/1: the mean wait is load ÷ (2 × (1 - load)) of a service time (Pollaczek-Khinchine)."""
    client = replace(FREE, client_ms=1.0, loop_ms=1e-9, alone_ms=1e-9, batch_ms=0.0, search_ms=1e-9)
    low, high = (float(np.mean(open_loop(client, rate, 8_000))) for rate in (500, 800))
    # Two visits to the client instead of one: between a single visit and the waits of two.
    assert 1 + 0.5 < low < 1 + 2 * 0.5
    assert 1 + 0.8 * 2.0 < high < 1 + 2 * 2.0


def test_cores_and_contention_slow_what_runs_at_the_same_time() -> None:
    free = closed_loop(TIMES, 64, 3_000).rate
    assert closed_loop(replace(TIMES, contention=1.5), 64, 3_000).rate < 0.8 * free
    assert closed_loop(replace(TIMES, cores=1), 64, 3_000).rate < 0.8 * free


def test_contention_is_of_one_process() -> None:
    """A search alone runs in the loop, so of two workers with a connection each no two threads of one run."""
    two = replace(TIMES, workers=2, threads=1)
    assert closed_loop(replace(two, contention=3.0), 2, 500).rate == pytest.approx(closed_loop(two, 2, 500).rate)


def test_the_contention_is_found_from_the_highest_rate() -> None:
    slow = replace(TIMES, contention=1.7)
    found = fitted_contention(TIMES, closed_loop(slow, 64, 4_000, seed=3).rate, 64)
    assert found == replace(TIMES, contention=pytest.approx(1.7, abs=0.1))


def test_the_variation_is_found_from_requests_one_after_another() -> None:
    varied = replace(TIMES, variation=0.6)
    p99_ms = float(np.percentile(closed_loop(varied, 1, 8_000, seed=3).latencies_ms, 99))
    assert fitted_variation(TIMES, p99_ms) == replace(TIMES, variation=pytest.approx(0.6, abs=0.06))


def test_the_highest_rate_keeps_to_the_bound_and_falls_with_it() -> None:
    slow = replace(TIMES, search_ms=1.0)  # at most 2,000 a second from two threads
    tight, loose = (highest_rate(slow, bound_ms, 1_500) for bound_ms in (4.0, 15.0))
    assert 0 < tight < loose < 2_300
    assert np.percentile(open_loop(slow, 0.9 * tight, 3_000, seed=5), 99) < 1.1 * 4
    assert highest_rate(slow, 0.9, 300) == 0  # less than one request takes


def test_searches_of_seconds_have_a_highest_rate_too() -> None:
    slow = replace(TIMES, search_ms=2_000.0, alone_ms=2_000.0, batch_ms=0.0, threads=2, slice_ms=100.0)
    assert 0.3 < highest_rate(slow, 10_000.0, 600) < 1.5  # two threads answer one a second, the loop half a one


def test_the_same_seed_gives_the_same_latencies() -> None:
    first, again = (open_loop(TIMES, 500, 300, seed=4) for _ in range(2))
    assert np.array_equal(first, again)


def test_without_simpy_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpy", None)
    with pytest.raises(CapacityError, match=r"pip install 'vlm2rec\[plan\]'"):
        open_loop(TIMES, 1, 10)
