"""The benches of the planner fit and compare as they say."""

from pathlib import Path

import numpy as np
import pytest

from bench.capacity.queueing import coefficients, table, verdict
from bench.capacity.redis_bytes import fitted
from cli.capacity.coefficients import Coefficients


def test_bytes_of_a_user_and_of_an_event_are_fitted_apart() -> None:
    of_user, of_event = fitted((1, 5, 20), [100 * (300 + 40 * n) for n in (1, 5, 20)], users=100)
    assert (of_user, of_event) == (pytest.approx(300), pytest.approx(40))


@pytest.mark.parametrize(("scale", "holds"), [(1.0, True), (1.24, True), (1.3, False), (0.76, True), (0.7, False)])
def test_a_p99_agrees_within_a_quarter_of_the_measured_one(scale: float, holds: bool) -> None:
    run = np.linspace(1, 10, 1_000)
    found = verdict(500, [run, 0.9 * run, 5 * run], scale * run)  # the median round is the first
    assert found["p99_ms"] == pytest.approx(float(np.percentile(run, 99)), abs=1e-3)
    assert found["difference"] == pytest.approx(scale - 1, abs=1e-3)
    assert found["holds"] is holds


def test_a_failed_request_is_counted_and_is_no_agreement() -> None:
    run = np.append(np.linspace(1, 10, 1_000), np.nan)
    found = verdict(500, [run], run[:-1])
    assert (found["failed"], found["difference"], found["holds"]) == (1, 0, False)


def test_the_bench_prints_what_page_and_planner_take(tmp_path: Path) -> None:
    p50, p99 = {"p50_ms": 2, "simulated_p50_ms": 2.2}, {"p99_ms": 8, "simulated_p99_ms": 6.4}
    quantiles = {"outside_p50_ms": 0.41, "outside_p90_ms": 0.61, "outside_p99_ms": 1.21}
    times = {"loop_ms": 0.2, "search_ms": 0.3, "alone_ms": 0.63, "contention": 1.25, **quantiles}
    found = {"items": 100_000, "times": times, "rates": [{"rate": 1512.3, **p50, **p99, "difference": -0.2}]}
    assert table(found).splitlines()[2] == "| 1,512 | 2.0 ms | 2.2 ms | 8.0 ms | 6.4 ms | -20% |"
    file = tmp_path / "measured.toml"
    file.write_text(coefficients(found, "2026-12-01"))
    measured = Coefficients.read(file)
    for name, value in {"loop_ms": 0.2, "search_ms": 0.3, "alone": 2.1, "contention": 1.25, **quantiles}.items():
        assert (measured.value(name), measured.basis([name])) == (value, "computed from measured"), name
