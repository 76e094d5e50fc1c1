"""The benches of the planner fit and compare as they say."""

import numpy as np
import pytest

from bench.capacity.queueing import verdict
from bench.capacity.redis_bytes import fitted


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
