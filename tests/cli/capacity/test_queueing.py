"""The simulation gives what queueing theory says where theory says something."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from cli.capacity import queueing
from cli.capacity.queueing import ServiceTimes, closed_loop, highest_rate, lone_request_ms, open_loop
from cli.errors import CapacityError

TIMES = ServiceTimes(
    loop_ms=0.25,
    alone_ms=0.6,
    handoff_ms=0.1,
    batch_ms=0.2,
    search_ms=0.3,
    redis_ms=0.04,
    client_ms=0.06,
    variation=0.01,
)
NOTHING = 1e-9
FREE = replace(TIMES, redis_ms=NOTHING, client_ms=NOTHING)
ALONE = replace(FREE, loop_ms=NOTHING, alone_ms=1.0)


def test_without_load_a_request_takes_the_sum_of_its_times() -> None:
    times = replace(TIMES, wake_ms=0.1, remote_ms=2.0)
    latencies_ms = open_loop(times, rate=2, requests=200)
    assert lone_request_ms(times) == pytest.approx(0.25 + 0.6 + 0.04 + 0.06 + 2.0 + 4 * 0.1)
    assert np.median(latencies_ms) == pytest.approx(lone_request_ms(times) + 0.1, rel=0.05)  # the client wakes to send
    assert closed_loop(times, 1, 400).rate == pytest.approx(1_000 / (lone_request_ms(times) + 0.1), rel=0.05)


@pytest.mark.parametrize(
    ("times", "most"),
    [
        (replace(FREE, handoff_ms=1.6, batch_ms=3.2), 1_000 / (0.25 + 0.3 + (1.6 + 3.2) / 16)),
        (replace(FREE, handoff_ms=NOTHING, batch_ms=0.0), 1_000 / (0.25 + 0.3)),
        (replace(FREE, redis_ms=1.0), 1_000),
        (replace(FREE, client_ms=1.0), 1_000),
        (replace(FREE, redis_ms=0.5, client_ms=0.5), 1_000),  # they share a core
        (replace(FREE, pauses_s=100.0, pauses_ms=[5.0], batch_ms=0.0, handoff_ms=0.0), 1_000 / 0.55 / 1.5),
    ],
    ids=["full batches", "searches", "redis", "the client", "both", "pauses of a third of the time"],
)
def test_the_bottleneck_bounds_a_closed_loop(times: ServiceTimes, most: float) -> None:
    assert closed_loop(times, 192, 6_000).rate == pytest.approx(most, rel=0.06)


def test_batches_make_a_busy_process_cheaper() -> None:
    # Alone, each request takes .85 ms of the loop: 1,176 a second at most.
    latencies_ms = open_loop(TIMES, rate=1_500, requests=6_000)
    assert np.percentile(latencies_ms, 99) < 30


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("variation", [0.01, 1.0], ids=["M/D/1", "M/M/1"])
def test_searches_one_by_one_wait_as_in_a_queue_of_one_server(
    load: float, variation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean wait is load × (1 + variation²) ÷ (2 × (1 - load)) of a service time (Pollaczek-Khinchine)."""
    monkeypatch.setattr(queueing, "LARGEST_BATCH", 1)
    times = replace(ALONE, variation=variation)
    latencies_ms = np.concatenate([open_loop(times, 1_000 * load, 10_000, seed) for seed in range(4)])
    expected_ms = 1 + load * (1 + variation**2) / (2 * (1 - load))
    assert latencies_ms.mean() == pytest.approx(expected_ms, rel=0.07)


def test_the_p99_of_searches_one_by_one_is_that_of_an_exponential_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """M/M/1: latencies are exponential with the mean 1 ÷ (1 - load) of a service time, so p99 is ln(100) of that."""
    monkeypatch.setattr(queueing, "LARGEST_BATCH", 1)
    times = replace(ALONE, variation=1.0)
    latencies_ms = np.concatenate([open_loop(times, 500, 10_000, seed) for seed in range(4)])
    assert np.percentile(latencies_ms, 99) == pytest.approx(2 * np.log(100), rel=0.1)


def test_a_request_that_comes_in_a_pause_waits_for_its_end() -> None:
    """Pauses of 40 ms take a fifth of the time of each of two cores, so 36 % of the requests wait for up to 40 ms."""
    times = replace(FREE, pauses_s=6.25, pauses_ms=[40.0])
    latencies_ms = open_loop(times, 20, 8_000)
    still_ms = float(np.median(open_loop(FREE, 20, 500)))
    assert np.mean(latencies_ms > still_ms + 0.5) == pytest.approx(0.36, abs=0.06)
    assert np.percentile(latencies_ms, 97) > 30


def test_the_highest_rate_keeps_to_the_bound_and_falls_with_it() -> None:
    slow = replace(TIMES, search_ms=1.0)
    tight, loose = (highest_rate(slow, bound_ms, 1_500) for bound_ms in (6.0, 15.0))
    assert 0 < tight < loose < 1_000 / (0.25 + 0.6)
    assert np.percentile(open_loop(slow, 0.9 * tight, 3_000, seed=5), 99) < 1.15 * 6
    assert highest_rate(slow, 0.9, 300) == 0  # less than one request takes


def test_searches_of_seconds_have_a_highest_rate_too() -> None:
    slow = replace(TIMES, search_ms=2_000.0, alone_ms=2_000.0, batch_ms=0.0, slice_ms=100.0)
    assert 0.2 < highest_rate(slow, 10_000.0, 600) < 0.5


def test_the_same_seed_gives_the_same_latencies() -> None:
    paused = replace(TIMES, pauses_s=10, pauses_ms=[1.0, 2.0])
    first, again = (open_loop(paused, 500, 300, seed=4) for _ in range(2))
    assert np.array_equal(first, again)


def test_without_simpy_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpy", None)
    with pytest.raises(CapacityError, match=r"pip install 'vlm2rec\[plan\]'"):
        open_loop(TIMES, 1, 10)
