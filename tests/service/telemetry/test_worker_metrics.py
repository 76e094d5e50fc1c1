"""The metrics of several workers: each kind is merged as it should be, and a death loses no count."""

import errno
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.values import MutexValue

from service.runtime.worker_board import WorkerBoard, WorkerState
from service.settings.worker_place import WorkerPlace
from service.telemetry.metrics import Metrics
from service.telemetry.worker_metrics import RULES, WorkerMetrics


@pytest.fixture(autouse=True)
def plain_values() -> Iterator[None]:
    yield
    values.ValueClass = MutexValue
    for worker in _USED:
        for file in worker.shared._files.values():
            file._f.close()


_USED: list["Worker"] = []  # a worker keeps its files open as long as its process lives


class Worker:
    """A worker's metrics. The library creates values by one global class, so labels belong to the newest worker."""

    def __init__(self, directory: Path, number: int, count: int = 2) -> None:
        _USED.append(self)
        self.board = WorkerBoard(directory, count)
        self.board.set_state(number, WorkerState.READY)
        self.board.beat(number)
        place = WorkerPlace(number=number, count=count, directory=directory)
        self.shared = WorkerMetrics(place, self.board)
        self.metrics = Metrics(self.shared, self.board)

    def serve(self, requests: int) -> None:
        for _ in range(requests):
            self.metrics.answered("/recommend", "POST", 200, 0.004, {"search": 2.0})
        self.metrics.in_progress(lambda: requests)
        self.metrics.publish()


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels; each occurs once."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found
            found[key] = sample.value
    return found


ANSWERED = ("vlm2rec_requests_total", (("method", "POST"), ("route", "/recommend"), ("status", "200")))
SECONDS = ("vlm2rec_request_seconds_count", (("route", "/recommend"),))
BELOW_5_MS = ("vlm2rec_request_seconds_bucket", (("le", "0.005"), ("route", "/recommend")))
IN_PROGRESS = ("vlm2rec_requests_in_progress", ())


def test_any_worker_shows_the_sums_of_all(tmp_path: Path) -> None:
    first = Worker(tmp_path, 1)
    first.serve(3)
    second = Worker(tmp_path, 2)
    second.serve(4)
    for worker in (first, second):
        shown = samples(worker.metrics.exposition())
        assert shown[ANSWERED] == shown[SECONDS] == shown[BELOW_5_MS] == 7
        assert shown["vlm2rec_request_seconds_sum", (("route", "/recommend"),)] == pytest.approx(0.028)
        assert shown[IN_PROGRESS] == 7
        assert shown["vlm2rec_workers_ready", ()] == shown["vlm2rec_workers", ()] == 2


def test_the_same_families_as_one_process_shows(tmp_path: Path) -> None:
    def types(text: bytes) -> dict[str, str]:
        found = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text.decode(), re.MULTILINE))
        shown = {re.sub(r"(_total|_bucket|_sum|_count)$", "", name) for name, _ in samples(text)}
        return {name: kind for name, kind in found.items() if name.removesuffix("_total") in shown}

    alone = Metrics()
    alone.answered("/recommend", "POST", 200, 0.004, {"search": 2.0})
    worker = Worker(tmp_path, 1)
    worker.metrics.answered("/recommend", "POST", 200, 0.004, {"search": 2.0})
    assert types(worker.metrics.exposition()) == types(alone.exposition())


def test_a_replacement_goes_on_with_the_counts_of_the_one_that_died(tmp_path: Path) -> None:
    first = Worker(tmp_path, 1)
    first.serve(3)
    second = Worker(tmp_path, 2)
    second.serve(4)
    second.board.reset(2)  # it died: what it counted stays, what it had in progress is gone
    shown = samples(first.metrics.exposition())
    assert (shown[ANSWERED], shown[IN_PROGRESS], shown["vlm2rec_workers_ready", ()]) == (7, 3, 1)
    assert shown["vlm2rec_workers", ()] == 2
    replacement = Worker(tmp_path, 2)
    replacement.serve(5)
    assert samples(first.metrics.exposition())[ANSWERED] == samples(replacement.metrics.exposition())[ANSWERED] == 12


def test_no_count_of_a_killed_process_is_lost(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from tests.service.telemetry.test_worker_metrics import Worker\n"
        "worker = Worker(Path(sys.argv[1]), 2)\n"
        "worker.serve(1000)\n"
        "worker.metrics.answered('/recommend', 'POST', 200, 0.004, {})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[3], check=False)
    assert ended.returncode == -9
    first = Worker(tmp_path, 1)
    first.serve(1)
    shown = samples(first.metrics.exposition())
    assert shown[ANSWERED] == 1002
    cpu = shown["process_cpu_seconds_total", ()]
    first.board.reset(2)
    assert samples(first.metrics.exposition())["process_cpu_seconds_total", ()] >= cpu  # no fall, so no false rate


def test_labels_of_earlier_bundles_do_not_stay(tmp_path: Path) -> None:
    first, second = Worker(tmp_path, 1), Worker(tmp_path, 2)
    for pin in ("a", "b", "c", "d"):
        for worker in (first, second):
            worker.metrics.bundles.desired(pin, behind=False)
            worker.metrics.publish()
    pins = [key for key in samples(first.metrics.exposition()) if key[0] == "vlm2rec_bundle_pin_info"]
    assert pins == [("vlm2rec_bundle_pin_info", (("bundle", "d"),))]


def test_each_gauge_by_its_rule(tmp_path: Path) -> None:
    first, second = Worker(tmp_path, 1), Worker(tmp_path, 2)
    first.metrics.quality.checked(0.9, filtered=False, cpu_s=0.5)
    second.metrics.quality.checked(1.0, filtered=False, cpu_s=0.25)
    first.metrics.quality.slot_shares({"text": 0.2}, 0.5)  # the second has measured none: its balance is NaN
    first.metrics.bundles.desired(None, behind=True)
    second.metrics.bundles.desired(None, behind=False)
    second.metrics.breaker_state("open")
    first.metrics.publish()
    second.metrics.publish()
    shown = samples(first.metrics.exposition())
    assert shown["vlm2rec_recall", (("filtered", "no"),)] == pytest.approx(0.95)
    assert shown["vlm2rec_recall_check_cpu_seconds_total", ()] == 0.75
    assert shown["vlm2rec_slot_balance", ()] == 0.5
    assert shown["vlm2rec_bundle_behind", ()] == 1
    states = {key[1][0][1]: value for key, value in shown.items() if key[0] == "vlm2rec_redis_breaker_state"}
    assert states == {"closed": 1, "open": 1, "half-open": 0} or states["closed"] == states["open"] == 1
    assert math.isnan(RULES["vlm2rec_slot_balance"]([math.nan, math.nan]))


def test_without_room_for_the_gauges_the_metrics_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is when they are needed most; its own gauges are as of now, those of others as of before."""
    first, second = Worker(tmp_path, 1), Worker(tmp_path, 2)
    second.serve(5)
    with monkeypatch.context() as full:

        def no_room(path: Path, _text: str) -> None:
            path.touch()  # the name has room, what it holds has none
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        full.setattr(Path, "write_text", no_room)
        first.metrics.in_progress(lambda: 3)
        with pytest.raises(OSError, match="No space left"):
            first.metrics.publish()
        shown = samples(first.metrics.exposition())
        assert (shown[ANSWERED], shown[IN_PROGRESS]) == (5, 8)
    assert not list(tmp_path.glob("*.part"))
    first.metrics.publish()
    assert samples(second.metrics.exposition())[IN_PROGRESS] == 8


def test_every_rule_is_of_a_metric_that_exists() -> None:
    text = Metrics().exposition().decode()
    families = {name.removesuffix("_total") for name in re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE)}
    assert {name.removesuffix("_total") for name in RULES} <= families


def test_a_file_that_grows_keeps_every_count(tmp_path: Path) -> None:
    worker = Worker(tmp_path, 1)
    for number in range(2500):  # far more labels than there are
        worker.metrics.turned_away([("GET", 0.001)])
        worker.metrics.shed(f"reason {number}")
    assert (tmp_path / "counter_1.db").stat().st_size > 256 << 10
    shown = samples(worker.metrics.exposition())
    assert shown["vlm2rec_shed_total", (("reason", "refused"),)] == 2500
    assert all(shown["vlm2rec_shed_total", (("reason", f"reason {number}"),)] == 1 for number in range(2500))
