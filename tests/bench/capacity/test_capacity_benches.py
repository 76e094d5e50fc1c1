"""The benches of the planner fit and compare as they say."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench.capacity.queueing import (
    CALIBRATED,
    COMPARED,
    LOW_RATE,
    Turn,
    agreement,
    calibrated,
    coefficients,
    said,
    table,
)
from bench.capacity.redis_bytes import fitted
from bench.capacity.thread_times import CONNECTIONS, Used, fitted_times
from cli.capacity.coefficients import Coefficients
from cli.capacity.queueing import ServiceTimes, fitted_variation, open_loop, wakes_a_request

TRUE = ServiceTimes(0.3, 0.15, 1.1, 0.8, 0.35, outside_ms=[0.4], variation=0.3)
PEAK = 1_300.0


def test_bytes_of_a_user_and_of_an_event_are_fitted_apart() -> None:
    of_user, of_event = fitted((1, 5, 20), [100 * (300 + 40 * n) for n in (1, 5, 20)], users=100)
    assert (of_user, of_event) == (pytest.approx(300), pytest.approx(40))


@pytest.mark.parametrize(("scale", "holds"), [(1.0, True), (1.24, True), (1.3, False), (0.76, True), (0.7, False)])
def test_a_p99_agrees_within_a_quarter_of_the_measured_one(scale: float, holds: bool) -> None:
    run = np.linspace(1, 10, 1_000)
    found = agreement(500, [run, 0.9 * run, 5 * run], scale * run)  # the median round is the first
    assert found["p99_ms"] == pytest.approx(float(np.percentile(run, 99)), abs=1e-3)
    assert found["difference"] == pytest.approx(scale - 1, abs=1e-3)
    assert found["holds"] is holds


def test_a_failed_request_is_counted_and_is_no_agreement() -> None:
    run = np.append(np.linspace(1, 10, 1_000), np.nan)
    found = agreement(500, [run], run[:-1])
    assert (found["failed"], found["difference"], found["holds"]) == (1, 0, False)


def test_the_bench_prints_what_page_and_planner_take(tmp_path: Path) -> None:
    p50, p99 = {"p50_ms": 2, "simulated_p50_ms": 2.2}, {"p99_ms": 8, "simulated_p99_ms": 6.4}
    quantiles = {"outside_p50_ms": 0.41, "outside_p90_ms": 0.61, "outside_p99_ms": 1.21}
    times = {"loop_ms": 0.2, "search_ms": 0.3, "alone_ms": 0.63, "variation": 0.4, **quantiles}
    found = {
        "items": 100_000,
        "times": times,
        "workers_cost": 1.07,
        "rates": [{"rate": 1512.3, **p50, **p99, "difference": -0.2}],
    }
    assert table(found).splitlines()[2] == "| 1,512 | 2.0 ms | 2.2 ms | 8.0 ms | 6.4 ms | -20% |"
    file = tmp_path / "measured.toml"
    file.write_text(coefficients(found, "2026-12-01"))
    measured = Coefficients.read(file)
    for name, value in {**times, "workers_cost": 1.07}.items():
        assert (measured.value(name), measured.basis([name])) == (value, "computed from measured"), name


@pytest.fixture
def shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulations of a third of the bench's requests."""
    monkeypatch.setattr("bench.capacity.thread_times._REQUESTS", 2_000)
    monkeypatch.setattr("bench.capacity.queueing.fitted_variation", partial(fitted_variation, requests=2_000))


def turn(share: float, seed: int = 0) -> Turn:
    """What a process with the true times uses, had it the wakes of the simulation and some share of lone searches."""
    alone, pairs, in_batches = (0.6 - share, 0.2, 0.2 + share) if share else (0.0, 0.0, 1.0)
    wakes = wakes_a_request(TRUE, 6_000, rate=share * PEAK, connections=CONNECTIONS)
    batches, n = in_batches / (2 + 4 * share), 10_000.0
    in_loop_ms = alone * TRUE.alone_ms + pairs / 2 * (TRUE.alone_ms + TRUE.search_ms)
    used = Used(
        loop_ms=n * (TRUE.loop_ms + wakes * TRUE.wake_ms + in_loop_ms),
        thread_ms=n * (batches * TRUE.batch_ms + in_batches * TRUE.search_ms) + 20.0 * 5,
        searches=n,
        firsts=n * (alone + pairs / 2),
        in_loop=n * (alone + pairs),
        batches=n * batches,
        stages_ms=n * TRUE.alone_ms,
        seconds=20.0,
    )
    return Turn(share, used, open_loop(TRUE, share * PEAK, 6_000, seed) if share else np.empty(0))


@pytest.mark.usefixtures("shorter")
def test_times_are_found_from_what_the_threads_used() -> None:
    found = fitted_times([turn(share) for share in (0.0, 0.2, 0.4, 0.6)], PEAK, [0.4])
    for name in ("loop_ms", "wake_ms", "alone_ms", "batch_ms", "search_ms"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.1), name


@pytest.mark.usefixtures("shorter")
def test_the_calibration_sees_no_rate_that_is_compared() -> None:
    shares = (0.0, LOW_RATE / PEAK, *CALIBRATED, *COMPARED)
    turns = [turn(share) for share in shares]
    wrong = [
        Turn(one.share, one.used - one.used, 9 * one.latencies_ms) if one.share in COMPARED else one for one in turns
    ]
    found = calibrated(wrong, PEAK)
    assert said(found)["loop_ms"] == pytest.approx(TRUE.loop_ms, rel=0.2)
    assert found.variation == pytest.approx(TRUE.variation, abs=0.11)
