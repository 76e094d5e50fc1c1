"""Counts what the service does, as Prometheus metrics of one application."""

from collections.abc import Callable, Sequence
from functools import cache

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.bundles.metrics import BundleMetrics
from service.runtime.worker_board import WorkerBoard
from service.stores.circuit_breaker import STATES, BreakerState
from service.telemetry.export_metrics import ExportMetrics
from service.telemetry.histograms import observer
from service.telemetry.logs import lines_dropped, lines_failed
from service.telemetry.outcome_metrics import OutcomeMetrics
from service.telemetry.quality_metrics import QualityMetrics
from service.telemetry.retrieval_metrics import RetrievalMetrics
from service.telemetry.worker_metrics import WorkerMetrics

CONTENT_TYPE = CONTENT_TYPE_LATEST

TURNED_AWAY = "turned away"
"""Route label of requests that were refused before their route was known."""

_SECONDS = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_LENGTHS = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_WAITS = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_MOST_NODES = 32
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})


class ClientMetrics:
    """Metrics of connections and of the rate limit; they have no label with a key or an address.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rate_limited = Counter(
            "vlm2rec_rate_limited",
            "Requests refused because their key or address exceeds its rate.",
            registry=registry,
        )
        self._connections = Gauge("vlm2rec_connections", "Open connections.", registry=registry)
        self._dropped = Counter(
            "vlm2rec_connections_dropped", "Connections ended by the service, by reason.", ["reason"], registry=registry
        )

    def rate_limited(self) -> None:
        """Count a request that exceeded its rate."""
        self._rate_limited.inc()

    def connections(self, count: int) -> None:
        """Set the number of open connections."""
        self._connections.set(count)

    def dropped(self, reason: str) -> None:
        """Count a connection that the service ended or refused."""
        self._dropped.labels(reason).inc()


class Metrics:
    """Metrics of the service. They have a registry of their own, so that several applications fit into one process.

    Route labels are templates, never paths, so that their number is bounded.

    Args:
        workers: where the worker processes of one service share their metrics; None: there is only this process.
        board: shows which workers are ready.

    Attributes:
        bundles: metrics of the bundles.
        clients: metrics of connections and of the rate limit.
        quality: metrics of sampled answers.
        retrieval: metrics of searches in another process.
        export: metrics of the export of events.
        outcomes: metrics of kept answers and of what they brought.
    """

    def __init__(self, workers: WorkerMetrics | None = None, board: WorkerBoard | None = None) -> None:
        self._workers = workers
        if workers is not None:
            workers.install()
        # The times of creation are a fifth of all samples, and nothing reads them.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # untyped in the library
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._registry = registry
        self._requests = Counter(
            "vlm2rec_requests", "Answers by route, method and status.", ["route", "method", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "vlm2rec_request_seconds",
            "Seconds from the arrival of a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "vlm2rec_stage_seconds",
            "Seconds of each stage of an answer, as in Server-Timing.",
            ["route", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_progress = Gauge(
            "vlm2rec_requests_in_progress", "Requests between arrival and answer.", registry=registry
        )
        # Finding a child by its labels costs more than counting. There are few children, so they are cached.
        self._count_of = cache(self._requests.labels)
        self._seconds_of = cache(lambda route: observer(self._request_seconds.labels(route)))
        self._stage_of = cache(lambda route, stage: observer(self._stage_seconds.labels(route, stage)))
        self._add_answers(registry)
        self._add_queue(registry)
        self._add_redis(registry)
        Gauge(
            "vlm2rec_log_lines_dropped",
            "Log lines since the start that were not read in time.",
            registry=registry,
        ).set_function(lines_dropped)
        Gauge(
            "vlm2rec_log_lines_failed", "Log lines since the start that could not be written.", registry=registry
        ).set_function(lines_failed)
        self._add_workers(registry, board)
        self.bundles = BundleMetrics(registry)
        self.clients = ClientMetrics(registry)
        self.quality = QualityMetrics(registry)
        self.retrieval = RetrievalMetrics(registry)
        self.export = ExportMetrics(registry)
        self.outcomes = OutcomeMetrics(registry)

    def _add_workers(self, registry: CollectorRegistry, board: WorkerBoard | None) -> None:
        workers = Gauge("vlm2rec_workers", "Worker processes of the service.", registry=registry)
        workers.set(1 if board is None else board.count)
        ready = Gauge("vlm2rec_workers_ready", "Worker processes that are ready.", registry=registry)
        restarts = Gauge(
            "vlm2rec_worker_restarts",
            "Worker processes since the start that died and were replaced.",
            registry=registry,
        )
        if board is None:
            ready.set(1)
        else:
            ready.set_function(board.ready_count)
            restarts.set_function(board.restarts)

    def _add_answers(self, registry: CollectorRegistry) -> None:
        self._answers = Counter("vlm2rec_answers", "Answers with items, by strategy.", ["strategy"], registry=registry)
        self._fallbacks = Counter(
            "vlm2rec_fallbacks",
            "Answers by another strategy than the route's own, by reason.",
            ["strategy", "reason"],
            registry=registry,
        )
        self._degraded = Counter("vlm2rec_degraded", "Degraded answers by reason.", ["reason"], registry=registry)
        self._encoder_errors = Counter("vlm2rec_encoder_errors", "Histories the encoder failed on.", registry=registry)
        self._unknown_items = Counter(
            "vlm2rec_unknown_items", "Items of histories that the bundle lacks.", registry=registry
        )
        self._history_length = Histogram(
            "vlm2rec_history_length", "Items that shaped a query.", buckets=_LENGTHS, registry=registry
        )
        self._answers_of = cache(self._answers.labels)
        self._observe_history = observer(self._history_length)
        events = Counter("vlm2rec_events", "Events by outcome.", ["outcome"], registry=registry)
        self._events_of = cache(events.labels)
        for outcome in ("stored", "duplicate", "without_consent"):
            self._events_of(outcome)  # shown as 0 before the first one
        self._unknown_types = Counter(
            "vlm2rec_events_unknown_type",
            "Events of a type that the table of event types lacks; they have the meaning of its default.",
            registry=registry,
        )
        self._missing_slots = Counter(
            "vlm2rec_answered_missing",
            "Answered items that lack a slot, by reason; imputed: behaviour is predicted instead.",
            ["slot", "reason"],
            registry=registry,
        )
        self._missing_slots_of = cache(self._missing_slots.labels)

    def _add_queue(self, registry: CollectorRegistry) -> None:
        self._batch_size = Histogram(
            "vlm2rec_batch_size", "Searches that ran together.", buckets=_BATCH_SIZES, registry=registry
        )
        self._queue_wait = Histogram(
            "vlm2rec_queue_wait_seconds",
            "Seconds that the oldest search of a batch had waited.",
            buckets=_WAITS,
            registry=registry,
        )
        self._worker_deaths = Counter(
            "vlm2rec_engine_deaths", "Unexpected ends of a thread of the engine.", registry=registry
        )
        self._observe_batch, self._observe_wait = observer(self._batch_size), observer(self._queue_wait)
        self._queue_depth = Gauge("vlm2rec_queue_depth", "Searches that wait now.", registry=registry)
        self._shed = Counter("vlm2rec_shed", "Requests refused or degraded by overload.", ["reason"], registry=registry)
        self._shed_of = cache(self._shed.labels)

    def _add_redis(self, registry: CollectorRegistry) -> None:
        self._redis_seconds = Histogram(
            "vlm2rec_redis_seconds",
            "Seconds of Redis calls until the reply, an error or the timeout.",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._redis_errors = Counter(
            "vlm2rec_redis_errors", "Calls that Redis did not answer.", ["operation"], registry=registry
        )
        breaker = Gauge(
            "vlm2rec_redis_breaker_state",
            "1 for the state of the circuit breaker before Redis.",
            ["state"],
            registry=registry,
        )
        self._breaker = {state: breaker.labels(state) for state in STATES}
        self._breaker["closed"].set(1)
        self._breaker_changes = Counter(
            "vlm2rec_redis_breaker_changes",
            "Changes of the circuit breaker, by the new state.",
            ["state"],
            registry=registry,
        )
        self._redis_node_errors = Counter(
            "vlm2rec_redis_node_errors",
            "Calls that a node of a Redis Cluster did not answer.",
            ["node"],
            registry=registry,
        )
        self._redis_nodes: set[str] = set()
        self._redis_seconds_of = cache(lambda operation: observer(self._redis_seconds.labels(operation)))
        self._redis_errors_of = cache(self._redis_errors.labels)

    def in_progress(self, count: Callable[[], int]) -> None:
        """Set the function that tells the number of requests in progress at every scrape."""
        self._in_progress.set_function(count)

    def answered(self, route: str, method: str, status: int, seconds: float, stages: dict[str, float]) -> None:
        """Count an answer.

        Args:
            route: template, as in ``/items/{item_id}``; ``unmatched`` for none.
            method: HTTP method; unusual ones are counted as ``other``.
            status: HTTP status; 499 if the client left first.
            seconds: from arrival to answer.
            stages: stage → milliseconds.
        """
        self._count_of(route, method if method in _METHODS else "other", status).inc()
        self._seconds_of(route)(seconds)
        for stage, milliseconds in stages.items():
            self._stage_of(route, stage)(milliseconds / 1000.0)

    def recommended(
        self, *, strategy: str, wanted: str, degraded: str | None, history_used: int, unknown: int, encoder_failed: bool
    ) -> None:
        """Count an answer with items.

        Args:
            strategy: how the items were found.
            wanted: the route's own strategy.
            degraded: reason; None: the answer is complete.
            history_used: items that shaped the query.
            unknown: items of the history that the bundle lacks.
            encoder_failed: whether the encoder failed.
        """
        self._answers_of(strategy).inc()
        self._observe_history(history_used)
        if strategy != wanted:
            reason = (
                "encoder"
                if encoder_failed
                else degraded or ("nothing_liked" if strategy == "similar" else "no_history")
            )
            self._fallbacks.labels(strategy, reason).inc()
        if degraded is not None:
            self._degraded.labels(degraded).inc()
        if unknown:
            self._unknown_items.inc(unknown)
        if encoder_failed:
            self._encoder_errors.inc()

    def events(self, *, stored: int, duplicates: int, without_consent: int, unknown_types: int) -> None:
        """Count events that Redis stored, those it had already, those without consent, and all of unknown types."""
        counts = {"stored": stored, "duplicate": duplicates, "without_consent": without_consent}
        for outcome, count in counts.items():
            if count:
                self._events_of(outcome).inc(count)
        if unknown_types:
            self._unknown_types.inc(unknown_types)

    def batch(self, size: int, waited_s: float) -> None:
        """Count searches that ran together; a search that ran alone and at once is a batch of 1 that waited 0.

        Args:
            size: how many, at least 1.
            waited_s: seconds from the arrival of the oldest of them in the queue to the start of the work.
        """
        self._observe_batch(size)
        self._observe_wait(waited_s)

    def worker_died(self) -> None:
        """Count an unexpected end of a thread of the engine."""
        self._worker_deaths.inc()

    def queue_depth(self, count: Callable[[], int]) -> None:
        """Set the function that tells the number of waiting searches at every scrape."""
        self._queue_depth.set_function(count)

    def shed(self, reason: str) -> None:
        """Count a request that was refused or degraded by overload; the reason is one of a few words."""
        self._shed_of(reason).inc()

    def turned_away(self, refused: Sequence[tuple[str, float]]) -> None:
        """Count requests that were refused before their path was read, because too many were in progress.

        Args:
            refused: of each the method, and the seconds from its first bytes to the last of the refusal.
        """
        counts: dict[str, int] = {}  # in overload many at once, nearly all of one method
        observe = self._seconds_of(TURNED_AWAY)
        for method, seconds in refused:
            counts[method] = counts.get(method, 0) + 1
            observe(seconds)
        for method, count in counts.items():
            self._count_of(TURNED_AWAY, method if method in _METHODS else "other", 429).inc(count)
        self._shed_of("refused").inc(len(refused))

    def redis_call(self, operation: str, seconds: float) -> None:
        """Count a call of Redis, whether it succeeded or not.

        Args:
            operation: one of a few words, such as ``recent`` and ``append``.
            seconds: until the reply or the error.
        """
        self._redis_seconds_of(operation)(seconds)

    def redis_error(self, operation: str) -> None:
        """Count a call that failed."""
        self._redis_errors_of(operation).inc()

    def redis_node_error(self, node: str) -> None:
        """Count a call that a node of a cluster did not answer; the nodes after the first 32 count as ``other``."""
        if len(self._redis_nodes) < _MOST_NODES:
            self._redis_nodes.add(node)
        self._redis_node_errors.labels(node if node in self._redis_nodes else "other").inc()

    def breaker_state(self, state: BreakerState) -> None:
        """Set the new state of the circuit breaker before Redis."""
        for known, gauge in self._breaker.items():
            gauge.set(known == state)
        self._breaker_changes.labels(state).inc()

    def missing_slot(self, slot: str, reason: str) -> None:
        """Count an answered item that lacks a slot."""
        self._missing_slots_of(slot, reason).inc()

    def publish(self) -> None:
        """Let the other workers read the gauges of this one; does nothing where there is one process."""
        if self._workers is not None:
            self._workers.publish(self._registry)

    def exposition(self) -> bytes:
        """All metrics of all workers in Prometheus' text format."""
        if self._workers is not None:
            return self._workers.exposition(self._registry)
        return generate_latest(self._registry)
