"""How far the events are exported, as the service shows it."""

import math
from pathlib import Path
from time import time

import pytest

from service.stores.event_export import waiting_ages
from service.stores.event_export.redis_event_export import Waiting
from service.telemetry import export_metrics
from service.telemetry.metrics import Metrics
from tests.support.exposed import exposed
from tests.support.shops import OpenClient, eventually, metric
from tests.support.stores.exports import Shop


def shown(metrics: Metrics) -> tuple[float, float]:
    oldest, waiting = (exposed(metrics, f"vlm2rec_export_{name}") for name in ("oldest_seconds", "waiting_events"))
    assert oldest is not None
    assert waiting is not None
    return oldest, waiting


def test_the_oldest_of_events_and_erasures_counts() -> None:
    metrics, now = Metrics(), time()
    assert all(map(math.isnan, shown(metrics)))
    nothing = Waiting(0, None, None, 0)
    metrics.export.waiting([nothing] * 64)
    assert shown(metrics) == (0.0, 0.0)
    metrics.export.waiting([nothing, Waiting(5, f"{(now - 60) * 1000:.0f}-3", None, 0), Waiting(2, None, None, 0)])
    assert shown(metrics) == (pytest.approx(60, abs=1), 7.0)
    metrics.export.waiting([nothing, Waiting(0, None, int((now - 90) * 1000), 0)])
    assert shown(metrics) == (pytest.approx(90, abs=1), 0.0)
    metrics.export.waiting(None)
    assert all(map(math.isnan, shown(metrics)))


def test_events_with_ids_of_the_future_are_as_old_as_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    for seen, number in ((5000.0, 1), (5030.0, 2)):  # the oldest is another one, as the stream is full
        monkeypatch.setattr(waiting_ages, "monotonic", lambda seen=seen: seen)
        metrics.export.waiting([Waiting(5, f"{(time() + 3600) * 1000:.0f}-{number}", None, 0, "9-9")])
    assert shown(metrics) == (30.0, 5.0)


def test_the_service_shows_what_waits_and_what_is_lost(
    open_client: OpenClient, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_metrics.ExportPolling.__init__, "__kwdefaults__", {"interval_s": 0.01})
    shop = Shop(redis_url, tmp_path / "export")

    async def attach(_store: object) -> None:
        await shop.export()

    with open_client(redis_url=redis_url, redis_prefix=shop.prefix, stream_cap=64 * 3) as client:
        assert math.isnan(metric(client, "vlm2rec_export_oldest_seconds") or 0.0)
        shop.run(attach)
        eventually(lambda: metric(client, "vlm2rec_export_oldest_seconds") == 0.0)
        events = [{"user_id": "anna", "item_id": "i1"}] * 5
        assert client.post("/events", json={"events": events}).status_code == 200
        eventually(lambda: metric(client, "vlm2rec_export_waiting_events") == 3.0)
        assert metric(client, "vlm2rec_events_lost_total") == 2.0
        eventually(lambda: (metric(client, "vlm2rec_export_oldest_seconds") or 0.0) > 0.0)
        shop.run(attach)
        eventually(lambda: metric(client, "vlm2rec_export_waiting_events") == 0.0)
