"""The calibration reads what the kernel counts, and finds the times that made the counts."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from bench.capacity.calibration import by_connections, calibrated
from bench.capacity.pauses import read
from bench.capacity.processor_time import ProcessorTime, thread_time
from cli.capacity.queueing import lone_request_ms


def run(alone: float, batches: float, **more: Any) -> dict[str, Any]:
    """A run of a service whose times are .3, .9 (alone), .2 and .5 (a batch), .4 (a search), .05 and .1 ms."""
    mean_ms = 0.3 + 0.9 + 0.05 + 0.1 + 4 * 0.1
    return {
        "p10_ms": mean_ms - 0.2,
        "p50_ms": mean_ms,
        "p90_ms": mean_ms + 0.2,
        "alone": alone,
        "batches": batches,
        "loop_ms": 0.3 + 0.9 * alone + 0.2 * batches,
        "threads_ms": 0.5 * batches + 0.4 * (1 - alone),
        "redis_ms": 0.05,
        "client_ms": 0.1,
        "seconds": 10.0,
        "pauses_ms": [[1.0, 2.0], [6.0]],
    } | more


LOW = run(0.8, 0.1)
CLOSED = [
    run(1.0, 0.0, connections=1),
    run(0.5, 0.2, connections=4),
    run(0.1, 0.3, connections=8),
    run(0.0, 0.0625, connections=64),
]


def test_times_are_those_that_explain_the_processor_time() -> None:
    found = calibrated(CLOSED, [LOW])
    assert (found.loop_ms, found.alone_ms, found.handoff_ms) == pytest.approx((0.3, 0.9, 0.2))
    assert (found.batch_ms, found.search_ms) == pytest.approx((0.5, 0.4))
    assert (found.redis_ms, found.client_ms) == pytest.approx((0.05, 0.1))
    assert found.wake_ms == pytest.approx(0.1)
    assert lone_request_ms(found) == pytest.approx(CLOSED[0]["p50_ms"])
    assert 0.1 < found.variation < 0.2, "nearly all of it is the search of .9 ms: .4 ÷ 2.563 ÷ .9"


def test_pauses_are_those_of_all_runs_and_cores() -> None:
    found = calibrated(CLOSED, [LOW])
    assert found.pauses_s == pytest.approx(3 / 20), "five runs of 10 s on two cores"
    assert sorted(set(found.pauses_ms)) == [1.0, 2.0, 6.0]


def test_a_figure_is_the_median_of_its_rounds() -> None:
    runs = [run(1.0, 0.0, connections=1) | {"p50_ms": p50_ms} for p50_ms in (5.0, 1.0, 2.0)]
    found = by_connections([runs[0], run(0.5, 0.2, connections=4), *runs[1:]])
    assert [(one["connections"], one["p50_ms"]) for one in found] == [(1, 2.0), (4, LOW["p50_ms"])]
    assert len(found[0]["pauses_ms"][0]) == 6


def test_the_processor_time_of_a_thread_is_what_it_used() -> None:
    def of_me() -> ProcessorTime:
        return thread_time(os.getpid(), threading.get_native_id())

    before, began = of_me(), time.thread_time()
    while time.thread_time() - began < 0.05:
        pass
    used = of_me() - before
    assert used.used_s == pytest.approx(time.thread_time() - began, abs=0.03)
    assert used.waited_s >= 0


def test_a_thread_that_has_ended_used_nothing() -> None:
    assert thread_time(os.getpid(), 2**22 + 1) == ProcessorTime()


def test_a_meter_file_is_read_while_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "0"
    file.write_text("12.5 0.400\n13.25 7.000\n14.1 0.")
    assert read(file) == [(12.5, 0.9), (13.25, 7.5)], "half a period of a millisecond is added"
