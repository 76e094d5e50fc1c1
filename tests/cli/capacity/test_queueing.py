"""The simulation gives what queueing theory says where theory says something."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import simpy

from cli.capacity.queueing import (
    IN_LOOP,
    LARGEST_BATCH,
    SLICE_MS,
    ServiceTimes,
    _Core,
    closed_loop,
    fitted_variation,
    highest_rate,
    open_loop,
    wakes_a_request,
)
from cli.errors import CapacityError
from service.recommend import batching
from service.settings.load import load_settings

TIMES = ServiceTimes(
    loop_ms=0.25, wake_ms=0.05, alone_ms=0.6, batch_ms=0.2, search_ms=0.3, outside_ms=[1.0], variation=0.01
)
LOOP = replace(TIMES, loop_ms=1.0, wake_ms=0.0, alone_ms=1e-9, batch_ms=0.0, search_ms=1e-9, outside_ms=[0.0])


def test_batches_are_as_large_as_those_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.settings.load.available_cores", lambda: 1)
    assert load_settings(registry="r").most_in_loop == IN_LOOP
    assert batching.LARGEST_BATCH == LARGEST_BATCH


def test_without_load_a_request_takes_the_sum_of_its_times() -> None:
    latencies_ms = open_loop(TIMES, rate=2, requests=200)
    # The loop wakes up for the request, and for the answer of Redis.
    assert np.median(latencies_ms) == pytest.approx(1.0 + 0.25 + 2 * 0.05 + 0.6, rel=0.01)
    assert wakes_a_request(TIMES, 200, rate=2) == pytest.approx(2, abs=0.05)
    assert closed_loop(TIMES, 1, 400) == pytest.approx(1_000 / 1.95, rel=0.01)


@pytest.mark.parametrize(
    ("times", "most"),
    [
        (replace(TIMES, search_ms=1.0, batch_ms=0.0, loop_ms=0.1, alone_ms=1.0), 1_000 / 1.1),
        (replace(TIMES, search_ms=0.1, batch_ms=1.6, loop_ms=0.3), 1_000 / (0.3 + 0.1 + 1.6 / 16)),
        (LOOP, 1_000),
    ],
    ids=["searches", "batches of 16", "the loop"],
)
def test_the_core_bounds_a_closed_loop(times: ServiceTimes, most: float) -> None:
    assert closed_loop(replace(times, wake_ms=0.0), 128, 4_000) == pytest.approx(most, rel=0.06)


def test_batches_make_a_busy_process_cheaper() -> None:
    # Alone, each request takes .85 ms of the core: 1,176 a second at most. In batches of 16 it takes .56 ms.
    latencies_ms = open_loop(TIMES, rate=1_500, requests=4_000)
    assert np.percentile(latencies_ms, 99) < 40


def test_one_loop_queue_waits_as_a_queue_with_random_arrivals_does() -> None:
    """M/D/1: the mean wait is load ÷ (2 × (1 - load)) of a service time (Pollaczek-Khinchine)."""
    low, high = (float(np.mean(open_loop(LOOP, rate, 8_000))) for rate in (500, 800))
    # Three visits to the loop instead of one: between a single visit and the waits of three.
    assert 1 + 0.5 < low < 1 + 3 * 0.5
    assert 1 + 0.8 * 2.0 < high < 1 + 3 * 2.0


@pytest.mark.parametrize(("woken", "ends_ms"), [(True, 0.5 + 1.0), (False, SLICE_MS + 1.0)])
def test_the_loop_runs_at_once_where_it_wakes_up_and_else_after_a_slice(woken: bool, ends_ms: float) -> None:
    environment = simpy.Environment()
    core = _Core(environment)
    core.work("thread", 10.0)
    environment.run(until=0.5)
    environment.run(until=core.work("loop", 1.0, woken=woken))
    assert environment.now == pytest.approx(ends_ms)


def test_loop_and_thread_take_turns() -> None:
    environment = simpy.Environment()
    core = _Core(environment)
    thread, loop = core.work("thread", 10.0), core.work("loop", 10.0)
    environment.run(until=thread)
    assert environment.now == pytest.approx(10.0 + 7 * SLICE_MS)  # its eighth slice is its last
    environment.run(until=loop)
    assert environment.now == pytest.approx(20.0)


def test_the_loop_wakes_up_less_often_the_busier_it_is() -> None:
    wakes = [wakes_a_request(TIMES, 4_000, rate=rate) for rate in (100, 600, 1_200)]
    assert wakes[0] > wakes[1] > wakes[2] > 0


def test_the_variation_is_found_from_latencies() -> None:
    varied = replace(TIMES, variation=0.8)
    p99_ms = {rate: float(np.percentile(open_loop(varied, rate, 4_000, seed=3), 99)) for rate in (600.0, 900.0)}
    found = fitted_variation(TIMES, p99_ms, 2_000)
    assert found == replace(TIMES, variation=pytest.approx(0.8, abs=0.21))


def test_the_highest_rate_keeps_to_the_bound_and_falls_with_it() -> None:
    tight, loose = (highest_rate(TIMES, bound_ms, 1_500) for bound_ms in (6.0, 15.0))
    assert 0 < tight < loose < 1_000 / (0.25 + 0.3)
    assert np.percentile(open_loop(TIMES, 0.9 * tight, 3_000, seed=5), 99) < 1.1 * 6
    assert highest_rate(TIMES, 1.0, 300) == 0  # less than one request takes


def test_searches_of_seconds_have_a_highest_rate_too() -> None:
    slow = replace(TIMES, search_ms=2_000.0, alone_ms=2_000.0, batch_ms=0.0)
    assert 0.1 < highest_rate(slow, 10_000.0, 600) < 0.5  # one core answers half a one a second


def test_searches_of_hours_end() -> None:
    """Late in such a run the clock cannot tell slices of a millisecond apart."""
    slow = replace(TIMES, batch_ms=1e18, loop_ms=10.0)
    assert open_loop(slow, 100.0, 300).shape == (270,)


def test_the_same_seed_gives_the_same_latencies() -> None:
    first, again = (open_loop(TIMES, 500, 300, seed=4) for _ in range(2))
    assert np.array_equal(first, again)


def test_without_simpy_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simpy", None)
    with pytest.raises(CapacityError, match=r"pip install 'vlm2rec\[plan\]'"):
        open_loop(TIMES, 1, 10)
