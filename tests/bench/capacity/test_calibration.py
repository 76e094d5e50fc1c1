"""The calibration reads what the kernel and the service count, and finds the times that made the counts."""

import os
import threading
import time
from typing import Any

import pytest

from bench.capacity.calibration import calibrated, medians
from bench.capacity.processor_time import ProcessorTime, thread_time


def closed(connections: int, alone: float, batches: float) -> dict[str, Any]:
    """A run of a service whose times are .3, .9 (alone), .5 (a batch), .4 (a search), .05 and .1 ms, and .1 to wake."""
    mean_ms = 0.3 + 0.9 + 0.05 + 0.1 + 4 * 0.1
    return {
        "connections": connections,
        "mean_ms": mean_ms,
        "p99_ms": 1.5 * mean_ms,
        "answers_s": 1_000 / mean_ms * min(connections, 3),
        "alone": alone,
        "batches": batches,
        "loop_ms": 0.3 + 0.9 * alone,
        "threads_ms": 0.5 * batches + 0.4 * (1 - alone),
        "redis_ms": 0.05,
        "client_ms": 0.1,
    }


def test_times_are_those_that_explain_the_processor_time() -> None:
    runs = [closed(1, 1.0, 0.0), closed(4, 0.5, 0.2), closed(64, 0.02, 0.08)]
    found = calibrated(runs, workers=2, cores=2)
    assert (found.loop_ms, found.alone_ms) == (pytest.approx(0.3), pytest.approx(0.9))
    assert (found.batch_ms, found.search_ms) == (pytest.approx(0.5), pytest.approx(0.4))
    assert (found.redis_ms, found.client_ms) == (pytest.approx(0.05), pytest.approx(0.1))
    assert found.wake_ms == pytest.approx(0.1)
    assert (found.workers, found.threads, found.cores) == (2, 1, 2)
    assert 0.1 < found.variation < 0.5
    assert found.contention >= 1


def test_a_figure_is_the_median_of_its_rounds() -> None:
    runs = [closed(1, 1.0, 0.0) | {"mean_ms": mean_ms} for mean_ms in (5.0, 1.0, 2.0)]
    found = medians([runs[0], closed(4, 0.5, 0.2), *runs[1:]])
    assert [(run["connections"], run["mean_ms"]) for run in found] == [(1, 2.0), (4, closed(4, 0.5, 0.2)["mean_ms"])]


def test_the_processor_time_of_a_thread_is_what_it_used() -> None:
    def of_me() -> ProcessorTime:
        return thread_time(os.getpid(), threading.get_native_id())

    before, began = of_me(), time.thread_time()
    while time.thread_time() - began < 0.05:
        pass
    for _ in range(5):
        time.sleep(0.001)
    used = of_me() - before
    assert used.used_s == pytest.approx(time.thread_time() - began, abs=0.03)
    assert used.sleeps >= 5
    assert used.waited_s >= 0


def test_a_thread_that_has_ended_used_nothing() -> None:
    assert thread_time(os.getpid(), 2**22 + 1) == ProcessorTime()
