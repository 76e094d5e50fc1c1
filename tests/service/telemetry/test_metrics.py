"""Metrics: a scrape shows what was counted, and docs/metrics.md lists every metric."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from index.bundle.bundle import Bundle
from service.bundles.metrics import BundleMetrics
from service.telemetry.metrics import Metrics
from tests.support.exposed import exposed
from tests.support.shops import OpenClient, metric

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"
ROWS = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]


def families() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Exposed name → type and labels."""
    registry = Metrics()._registry
    found = {}
    for collector in registry._collector_to_names:
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", ())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found[name] = (family.type, tuple(labels))
    return found


def test_the_page_lists_every_metric_with_its_type_and_labels() -> None:
    listed = {}
    for name, kind, *_ in ROWS:
        of_type, _, labels = kind.removesuffix(" ⟳").partition(": ")
        listed[name.strip("|` ")] = (of_type.removesuffix(" ⟳"), tuple(filter(None, labels.split(", "))))
    assert len(listed) == len(ROWS)
    assert listed == families()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("|` "))
def test_every_row_says_what_it_means(row: list[str]) -> None:
    assert len(row) == 4
    assert len(row[2]) > 5 or row[2] == "bytes"


def test_batches_and_the_queue() -> None:
    metrics, waiting = Metrics(), [7]
    metrics.batch(1, 0.0)
    metrics.batch(6, 0.0015)
    metrics.queue_depth(lambda: waiting[0])
    metrics.shed("queue_full")
    metrics.shed("queue_full")
    assert exposed(metrics, "vlm2rec_batch_size_bucket", le="1.0") == 1
    assert exposed(metrics, "vlm2rec_batch_size_bucket", le="8.0") == 2
    assert exposed(metrics, "vlm2rec_batch_size_sum") == 7
    assert exposed(metrics, "vlm2rec_queue_wait_seconds_sum") == 0.0015
    assert exposed(metrics, "vlm2rec_queue_wait_seconds_bucket", le="0.001") == 1
    assert exposed(metrics, "vlm2rec_queue_depth") == 7
    waiting[0] = 3
    assert exposed(metrics, "vlm2rec_queue_depth") == 3
    assert exposed(metrics, "vlm2rec_shed_total", reason="queue_full") == 2


def test_redis_and_its_breaker() -> None:
    metrics = Metrics()
    states = ("closed", "half_open", "open")

    def shown() -> list[float | None]:
        return [exposed(metrics, "vlm2rec_redis_breaker_state", state=state) for state in states]

    assert shown() == [1, 0, 0]
    metrics.redis_call("recent", 0.25)
    metrics.redis_error("recent")
    metrics.breaker_state("open")
    assert shown() == [0, 0, 1]
    assert exposed(metrics, "vlm2rec_redis_seconds_count", operation="recent") == 1
    assert exposed(metrics, "vlm2rec_redis_seconds_sum", operation="recent") == 0.25
    assert exposed(metrics, "vlm2rec_redis_errors_total", operation="recent") == 1
    assert exposed(metrics, "vlm2rec_redis_breaker_changes_total", state="open") == 1


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"strategy": "popular"}, "no_history"),
        ({"strategy": "similar"}, "nothing_liked"),
        ({"strategy": "similar", "encoder_failed": True}, "encoder"),
        ({"strategy": "popular", "degraded": "deadline"}, "deadline"),
        ({"strategy": "popular", "degraded": "history_unavailable", "encoder_failed": True}, "encoder"),
    ],
)
def test_fallbacks_by_reason(answer: dict[str, object], reason: str) -> None:
    metrics = Metrics()
    usual = {"wanted": "sequence", "degraded": None, "history_used": 0, "unknown": 0, "encoder_failed": False}
    metrics.recommended(**{**usual, **answer})
    assert exposed(metrics, "vlm2rec_fallbacks_total", strategy=str(answer["strategy"]), reason=reason) == 1
    metrics.recommended(**{**usual, "strategy": "sequence"})
    assert metrics.exposition().decode().count("vlm2rec_fallbacks_total{") == 1


def test_requests_in_progress() -> None:
    metrics = Metrics()
    metrics.in_progress(lambda: 1)
    assert exposed(metrics, "vlm2rec_requests_in_progress") == 1


def test_a_bundle_shows_its_report(open_client: OpenClient, bundle: Bundle) -> None:
    with open_client() as client:
        for kind, recall in bundle.manifest.index.recall.items():
            assert metric(client, "vlm2rec_bundle_figure", figure=f"recall.{kind}") == recall
        share = bundle.manifest.gate.figures["slot_share.image"]
        assert metric(client, "vlm2rec_bundle_figure", figure="slot_share.image") == share > 0
        assert metric(client, "vlm2rec_bundle_bound", figure="recall.plain") == bundle.manifest.gate.bounds["recall"]
        assert metric(client, "vlm2rec_bundle_slot_dims", slot="image") == 4
        assert metric(client, "vlm2rec_bundle_shortfalls") == len(bundle.manifest.shortfalls)
        assert metric(client, "vlm2rec_bundle_unused_modality", slot="image") == 0


def test_a_modality_that_hardly_counts_is_shown(bundle: Bundle) -> None:
    registry = CollectorRegistry()
    metrics = BundleMetrics(registry)
    figures = bundle.manifest.gate.figures | {"missing.image": 0.1, "slot_share.image": 0.003}
    gate = bundle.manifest.gate.model_copy(update={"figures": figures})
    metrics._report(bundle.manifest.model_copy(update={"gate": gate}))
    found = {
        slot: registry.get_sample_value("vlm2rec_bundle_unused_modality", {"slot": slot}) for slot in ("text", "image")
    }
    assert found == {"text": 0, "image": 1}


def test_events_are_counted_from_zero_by_outcome() -> None:
    """A counter that appears with its first event hides that event from a rate."""
    metrics = Metrics()
    outcomes = ("stored", "duplicate", "without_consent")

    def shown() -> list[float | None]:
        values = [metrics._registry.get_sample_value("vlm2rec_events_total", {"outcome": name}) for name in outcomes]
        return [*values, metrics._registry.get_sample_value("vlm2rec_events_unknown_type_total")]

    assert shown() == [0, 0, 0, 0]
    metrics.events(stored=3, duplicates=0, without_consent=2, unknown_types=1)
    assert shown() == [3, 0, 2, 1]
