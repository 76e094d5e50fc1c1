"""GET /metrics, rendered in a thread once a second, and protected by keys."""

import asyncio
import threading
from collections.abc import Callable
from unittest.mock import Mock

import pytest

from service.telemetry import metrics_page
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage
from tests.support.shops import ADMIN

SCRAPER = "a-metrics-key-for-tests"


class Counted(Metrics):
    """Metrics that count how often they are rendered, and where; a rendering waits until it may end."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []
        self.begun, self.may_end = threading.Event(), threading.Event()

    def exposition(self) -> bytes:
        self.threads.append(threading.current_thread().name)
        self.begun.set()
        assert self.may_end.wait(20)
        return b"%d" % len(self.threads)


def checked(check: Callable[[Counted, MetricsPage], object]) -> None:
    async def go() -> None:
        metrics = Counted()
        page = MetricsPage(metrics)
        await check(metrics, page)  # type: ignore[misc]
        await page.close()

    asyncio.run(asyncio.wait_for(go(), 60))


def test_concurrent_requests_get_one_rendering_made_in_a_thread() -> None:
    async def check(metrics: Counted, page: MetricsPage) -> None:
        asking = [asyncio.create_task(page.content()) for _ in range(20)]
        while not metrics.begun.is_set():
            await asyncio.sleep(0.001)  # the event loop goes on meanwhile
        asking[0].cancel()  # the others still get it
        metrics.may_end.set()
        assert await asyncio.gather(*asking[1:]) == [b"1"] * 19
        assert metrics.threads == ["metrics"]

    checked(check)


def test_requests_within_a_second_get_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(metrics_page, "monotonic", lambda: now[0])
    monkeypatch.setattr(metrics_page, "INTERVAL_S", 1.0)

    async def check(metrics: Counted, page: MetricsPage) -> None:
        metrics.may_end.set()
        assert [await page.content() for _ in range(50)] == [b"1"] * 50
        now[0] += 0.999
        assert await page.content() == b"1"
        now[0] += 0.001
        assert await page.content() == b"2"
        assert len(metrics.threads) == 2

    checked(check)


def test_a_rendering_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page, "INTERVAL_S", 1.0)

    async def check(metrics: Counted, page: MetricsPage) -> None:
        metrics.may_end.set()
        with monkeypatch.context() as patched:
            patched.setattr(Counted, "exposition", lambda _self: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await page.content()
        assert await page.content() == b"1"

    checked(check)


def test_a_failure_to_publish_is_logged_once_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk would fill the log with a line a second."""
    monkeypatch.setattr(metrics_page, "PUBLISH_EVERY_S", 0.0)
    outcomes = ["full", "full", "", "full", "other", "other", ""]
    calls: list[str] = []

    def publish(_self: Metrics) -> None:
        calls.append(outcomes[min(len(calls), len(outcomes) - 1)])
        if calls[-1]:
            raise OSError(calls[-1])

    monkeypatch.setattr(Counted, "publish", publish)

    async def check(_metrics: Counted, page: MetricsPage) -> None:
        page.publish_always()
        while len(calls) < len(outcomes):
            await asyncio.sleep(0.001)

    log = Mock()
    monkeypatch.setattr(metrics_page, "logger", lambda: log)
    checked(check)
    assert [str(call.kwargs["exc_info"]) for call in log.error.call_args_list] == ["full", "full", "other"]


def test_no_times_of_creation() -> None:
    metrics = Metrics()
    metrics.recommended(
        strategy="popular", wanted="popular", degraded=None, history_used=0, unknown=0, encoder_failed=False
    )
    text = metrics.exposition().decode()
    assert "vlm2rec_answers_total{" in text
    assert "_created" not in text


def test_keys_close_the_metrics_and_nothing_else(open_client, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with open_client() as client:
        assert client.get("/metrics").status_code == 200
    file = tmp_path / "keys"
    file.write_text("another-metrics-key-for-tests\n")
    with open_client(metrics_keys=[SCRAPER], metrics_keys_file=file, admin_keys=[ADMIN]) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"X-API-Key": "a-wrong-key-for-tests"}).status_code == 403
        for key in (SCRAPER, "another-metrics-key-for-tests", ADMIN):
            assert client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.get("/items/i1").status_code == 200  # data routes without keys stay open
        refused = client.post("/bundle/reload", headers={"X-API-Key": SCRAPER})
        assert refused.status_code == 403
    with open_client(metrics_keys=[SCRAPER], api_keys=["a-data-key-for-tests"]) as client:
        assert client.get("/items/i1", headers={"X-API-Key": SCRAPER}).status_code == 403
        assert client.get("/metrics", headers={"X-API-Key": "a-data-key-for-tests"}).status_code == 403
