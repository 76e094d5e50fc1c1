"""The benches of the planner fit and compare as they say."""

from pathlib import Path

import numpy as np
import pytest

from bench.capacity.queueing import TIMES, coefficients, said, table, verdict
from bench.capacity.redis_bytes import fitted
from cli.capacity.coefficients import Coefficients
from cli.capacity.queueing import ServiceTimes


def test_bytes_of_a_user_and_of_an_event_are_fitted_apart() -> None:
    of_user, of_event = fitted((1, 5, 20), [100 * (300 + 40 * n) for n in (1, 5, 20)], users=100)
    assert (of_user, of_event) == (pytest.approx(300), pytest.approx(40))


@pytest.mark.parametrize(("scale", "holds"), [(1.0, True), (1.24, True), (1.3, False), (0.76, True), (0.7, False)])
def test_a_p99_agrees_within_a_quarter_of_the_measured_one(scale: float, holds: bool) -> None:
    simulated_ms = np.linspace(1, 10, 1_000)
    p50_ms, p99_ms = np.percentile(simulated_ms, [50, 99]).tolist()
    found = verdict({"rate": 500.0, "p50_ms": p50_ms, "p99_ms": p99_ms}, 0, scale * simulated_ms)
    assert found["p99_ms"] == pytest.approx(p99_ms, abs=1e-3)
    assert found["difference"] == pytest.approx(scale - 1, abs=1e-3)
    assert found["holds"] is holds


def test_a_failed_request_is_no_agreement() -> None:
    simulated_ms = np.linspace(1, 10, 1_000)
    p99_ms = float(np.percentile(simulated_ms, 99))
    found = verdict({"rate": 500.0, "p50_ms": 5.5, "p99_ms": p99_ms}, 1, simulated_ms)
    assert (found["failed"], found["difference"], found["holds"]) == (1, pytest.approx(0, abs=1e-3), False)


def test_the_bench_prints_what_page_and_planner_take(tmp_path: Path) -> None:
    p50, p99 = {"p50_ms": 2, "simulated_p50_ms": 2.2}, {"p99_ms": 8, "simulated_p99_ms": 6.4}
    values = {name: 0.1 * number for number, name in enumerate(TIMES, 1)}
    times = said(ServiceTimes(**values, pauses_ms=[1.0, 2.0, 9.0]))
    found = {"items": 100_000, "times": times, "rates": [{"rate": 1512.3, **p50, **p99, "difference": -0.2}]}
    assert table(found).splitlines()[2] == "| 1,512 | 2.0 ms | 2.2 ms | 8.0 ms | 6.4 ms | -20% |"
    file = tmp_path / "measured.toml"
    file.write_text(coefficients(found, "2026-12-01"))
    known = Coefficients.read(file)
    assert known.value("pause_p50_ms") == 2.0
    for name, value in values.items():
        assert (known.value(name), known.basis([name])) == (pytest.approx(value), "computed from measured"), name
