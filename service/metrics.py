"""Prometheus metrics, in a registry of their own so that several apps can live in one process."""

from functools import cache

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from service.bundle_metrics import BundleMetrics
from service.client_metrics import ClientMetrics

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_LENGTHS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500)
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


class Metrics:
    """What the service counts. Route labels are templates, never paths, so that their number is bounded.

    Attributes:
        bundles: what the watcher of bundles counts.
        clients: what is counted of connections and callers.
    """

    def __init__(self) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._registry = registry
        self._requests = Counter(
            "vlm2rec_requests", "Answers by route, method and status.", ["route", "method", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "vlm2rec_request_seconds",
            "From the arrival of a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "vlm2rec_stage_seconds",
            "Time of each stage of an answer, as in Server-Timing.",
            ["route", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        # Looking up a child by its labels costs more than counting; there are few, so they are kept.
        self._count_of = cache(self._requests.labels)
        self._seconds_of = cache(self._request_seconds.labels)
        self._stage_of = cache(self._stage_seconds.labels)
        self._answers = Counter("vlm2rec_answers", "Answers with items, by strategy.", ["strategy"], registry=registry)
        self._fallbacks = Counter(
            "vlm2rec_fallbacks", "Answers by a lesser strategy than the route's own.", ["strategy"], registry=registry
        )
        self._degraded = Counter("vlm2rec_degraded", "Degraded answers by reason.", ["reason"], registry=registry)
        self._encoder_errors = Counter("vlm2rec_encoder_errors", "Histories the encoder failed on.", registry=registry)
        self._unknown_items = Counter(
            "vlm2rec_unknown_items", "Items of histories that the bundle does not have.", registry=registry
        )
        self._history_length = Histogram(
            "vlm2rec_history_length", "Items that shaped a query.", buckets=_LENGTHS, registry=registry
        )
        self._events = Counter("vlm2rec_events", "Events by what became of them.", ["outcome"], registry=registry)
        self._redis_errors = Counter(
            "vlm2rec_redis_errors", "Calls that Redis did not answer.", ["operation"], registry=registry
        )
        self._lacking = Counter(
            "vlm2rec_answered_missing",
            "Answered items that lack a slot, by reason.",
            ["slot", "reason"],
            registry=registry,
        )
        self.bundles = BundleMetrics(registry)
        self.clients = ClientMetrics(registry)

    def answered(self, route: str, method: str, status: int, seconds: float, stages: dict[str, float]) -> None:
        """Count an answer.

        Args:
            route: template, as in ``/items/{item_id}``; ``unmatched`` for none.
            method: HTTP method; unusual ones are counted together.
            status: HTTP status; 499 when the client left first.
            seconds: from arrival to answer.
            stages: stage → milliseconds.
        """
        self._count_of(route, method if method in _METHODS else "other", status).inc()
        self._seconds_of(route).observe(seconds)
        for stage, milliseconds in stages.items():
            self._stage_of(route, stage).observe(milliseconds / 1000.0)

    def recommended(
        self, *, strategy: str, wanted: str, degraded: str | None, history_used: int, unknown: int, trouble: bool
    ) -> None:
        """Count an answer with items.

        Args:
            strategy: how they were found.
            wanted: the route's own strategy.
            degraded: reason, None if it is whole.
            history_used: items that shaped the query.
            unknown: items of the history that the bundle does not have.
            trouble: whether the encoder failed.
        """
        self._answers.labels(strategy).inc()
        self._history_length.observe(history_used)
        if strategy != wanted:
            self._fallbacks.labels(strategy).inc()
        if degraded is not None:
            self._degraded.labels(degraded).inc()
        if unknown:
            self._unknown_items.inc(unknown)
        if trouble:
            self._encoder_errors.inc()

    def events(self, *, stored: int, duplicates: int) -> None:
        """Count events that Redis holds now."""
        self._events.labels("stored").inc(stored)
        self._events.labels("duplicate").inc(duplicates)

    def redis_error(self, operation: str) -> None:
        """Count a call that Redis did not answer."""
        self._redis_errors.labels(operation).inc()

    def lacking(self, slot: str, reason: str) -> None:
        """Count an answered item that lacks a slot."""
        self._lacking.labels(slot, reason).inc()

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
