"""Wires the service: builds every object that the routes and the server use, from the settings."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Final
from weakref import WeakKeyDictionary

from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.bundle.event_types import EventTypes
from index.machine.cores import available_cores
from service.access.auth import open_key_rings
from service.bundles.active_bundle import ActiveBundle
from service.bundles.comparison import ShadowBounds
from service.bundles.loaded_bundles import LoadedBundles
from service.bundles.loader import BundleLoader
from service.bundles.operator_state import OperatorState
from service.bundles.watcher import Watcher
from service.bundles.worker_bundles import WorkerBundles
from service.http.admission import Admission
from service.outcomes.outcomes import Outcomes
from service.recommend.batching import MicroBatcher
from service.recommend.contributions import computed
from service.recommend.online_recall import OnlineRecall
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.retrieval.faiss_retriever import FAISS
from service.retrieval.guard import Guard
from service.retrieval.retriever import Retriever
from service.runtime.background_tasks import Background
from service.runtime.bounded_executor import BoundedExecutor
from service.runtime.worker_board import WorkerBoard
from service.settings.groups import ObservabilitySettings
from service.settings.load import Settings
from service.settings.retrieval_settings import parse_milvus_url
from service.stores.circuit_breaker import CircuitBreaker, WorstState
from service.stores.deployment.cluster_histories import ClusterHistories
from service.stores.event_export.redis_event_export import RedisEventExport
from service.stores.outcomes.redis_outcomes import RedisOutcomes
from service.stores.protocols import OperatorStateStore
from service.stores.rates.redis_rates import RedisRates
from service.stores.redis_client import RedisWatch
from service.stores.redis_faults import RedisFaults
from service.stores.redis_histories import RedisHistories
from service.stores.redis_operator_state import RedisOperatorState
from service.stores.redis_renewal import Renewal
from service.telemetry.export_metrics import ExportPolling
from service.telemetry.logs import logger
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage
from service.telemetry.worker_metrics import WorkerMetrics

_DOWNLOAD_LOG_S: Final = 10.0
_WAITING_THREADS: Final = 8  # of the engine, where a search waits for another process
_RETRIEVER_PATIENCE: Final = 0.9  # times its timeout, so that the breaker opens at the first search without an answer
_RETRIEVER_PAUSE_S: Final = 0.2
_LONGEST_RETRIEVER_PAUSE_S: Final = 5.0


class Container:
    """The objects of one service; they connect and load only when the application starts."""

    def __init__(self, settings: Settings) -> None:
        self.active_bundle, engine, place = ActiveBundle(), settings.engine, settings.worker
        self.board = board = None if place is None else WorkerBoard(place.directory, place.count)
        shared = None if place is None or board is None else WorkerMetrics(place, board)
        self.log, self.metrics = log, metrics = logger(), Metrics(shared, board)
        self.redis_faults, renewal = RedisFaults(log), Renewal()
        watch = RedisWatch(
            metrics.redis_call,
            metrics.redis_error,
            metrics.breaker_state,
            self.redis_faults.outcome,
            metrics.export.lost,
            metrics.redis_node_error,
        )
        rates = RedisRates(settings.redis, watch=watch, renewal=renewal) if settings.access.rate_shared else None
        limited = metrics.clients.rate_limited
        self.keys = open_key_rings(settings.access, on_refusal=limited, log=log, workers=place, rates=rates)
        histories = ClusterHistories if settings.redis.kind == "cluster" else RedisHistories
        self.histories = histories(settings.redis, settings.histories, watch=watch, renewal=renewal)
        self.redis_kind = settings.redis.kind
        self._events = settings.events
        self._event_types = WeakKeyDictionary[Bundle, EventTypes]()
        self.export_polling = ExportPolling(RedisEventExport(settings.redis), metrics.export)
        self.outcome_store = RedisOutcomes(settings.redis, settings.outcomes, watch=watch, renewal=renewal)
        self.outcomes = None
        if settings.outcomes.outcomes:
            self.outcomes = Outcomes(self.outcome_store, settings.outcomes, metrics.outcomes, log, computed)
        self.recent = RecentHistories(settings.comparison.shadow_histories)
        store = RedisOperatorState(settings.redis, watch=watch, renewal=renewal)
        operator_state = open_operator_state(settings, store, on_erasure=self.recent.clear)
        self.operator_state, hidden = operator_state, operator_state.hidden
        self.retriever = retriever = open_retriever(settings, metrics)
        loaded, downloaded = metrics.bundles.loaded, metrics.bundles.downloaded
        loader = BundleLoader(settings.bundles, on_load=loaded, on_download=downloaded, retriever=retriever)
        self.loaded_bundles = LoadedBundles(
            active_bundle=self.active_bundle,
            hidden=hidden,
            loader=loader,
            recent=self.recent,
            evaluation_queries=settings.comparison.shadow_histories,
            metrics=metrics.bundles,
            log=log,
            workers=None if place is None or board is None else WorkerBundles(place, board, loader.root),
        )
        bounds = ShadowBounds(settings.comparison)
        self.watcher = Watcher(loaded=self.loaded_bundles, operator_state=operator_state, bounds=bounds)
        threads = 0 if loader.one_thread else engine.threads
        if retriever.waits:
            threads = engine.engine_threads or _WAITING_THREADS
        bound = engine.queue_bound
        self.batcher = MicroBatcher(
            bound=bound,
            threads=threads,
            in_loop=settings.most_in_loop,
            metrics=metrics,
            log=log,
            retriever=retriever,
        )
        self.online_recall = open_online_recall(settings.observability, metrics, log, self.active_bundle)
        self.recommender = Recommender(
            self.histories, self.batcher, hidden, self.recent, self.online_recall, self.event_types
        )
        workers = 1 if place is None else place.count
        self.executor = BoundedExecutor(threads=max(1, available_cores() // 2 // workers))
        self.encoder_executor = None if loader.one_thread else self.executor
        self.admission = Admission(engine.queue_bound, on_batch_refused=partial(metrics.shed, "refused"))
        self.metrics_page = MetricsPage(metrics)
        metrics.in_progress(lambda: self.admission.in_progress)
        metrics.queue_depth(lambda: self.batcher.depth)

    def event_types(self, bundle: Bundle) -> EventTypes:
        """What the types of events mean for answers from a bundle; made once for each, with a line on what it lacks."""
        found = self._event_types.get(bundle)
        if found is None:
            found = self._event_types[bundle] = self._events.over(bundle.manifest.event_types)
            if lacking := sorted(self._events.event_outcomes.keys() - found.types.keys()):
                self.log.warning("outcomes of types that the bundle lacks", bundle=bundle.id, types=lacking)
        return found


def open_retriever(settings: Settings, metrics: Metrics | None = None) -> Retriever:
    """What finds the items of bundles.

    Args:
        settings: of the service.
        metrics: counts the calls of another process; None: they are not counted.

    Raises:
        StartError: its library is not installed.
    """
    chosen = settings.retrieval
    if chosen.kind == "faiss":
        return FAISS
    from service.retrieval.milvus.client import MilvusAddress
    from service.retrieval.milvus.opening import VectorFetching, open_milvus

    watched = None if metrics is None else metrics.retrieval
    count: Callable[[int, int], None] = _count_nothing
    worst = WorstState(None if watched is None else watched.breaker_state)

    def breaker(name: str) -> CircuitBreaker:
        return CircuitBreaker(
            patience_s=_RETRIEVER_PATIENCE * chosen.timeout_s,
            first_pause_s=_RETRIEVER_PAUSE_S,
            longest_pause_s=_LONGEST_RETRIEVER_PAUSE_S,
            on_change=worst.of(name),
        )

    if watched is None:
        searches, fetches = Guard(breaker("search")), Guard(breaker("fetch"))
    else:
        searches, fetches = Guard(breaker("search"), watched.called), Guard(breaker("fetch"), watched.fetched)
        count = watched.vectors
    fetching = None
    if chosen.retriever_cache_mb:
        fetching = VectorFetching(fetches, chosen.retriever_cache_mb, count)
    address = MilvusAddress(*parse_milvus_url(chosen.retriever), chosen.token)
    return open_milvus(address, chosen.timeout_s, searches, fetching)


def _count_nothing(_cached: int, _fetched: int) -> None:
    """Count no vectors."""


def open_online_recall(
    settings: ObservabilitySettings, metrics: Metrics, log: FilteringBoundLogger, active_bundle: ActiveBundle
) -> OnlineRecall:
    """What measures a sample of the answers."""
    return OnlineRecall(
        metrics.quality,
        log,
        checks_per_s=settings.recall_checks_per_s,
        cpu_share=settings.recall_check_cpu,
        thread=Background("recall-check", nice=19),
        is_active=active_bundle.is_active,
    )


def open_first_loader(settings: Settings) -> BundleLoader:
    """What loads the bundle that a service starts with; logs a download now and then, as nothing answers meanwhile."""
    arrived, logged = 0, monotonic()

    def on_download(size: int) -> None:
        nonlocal arrived, logged
        arrived += size
        if monotonic() - logged > _DOWNLOAD_LOG_S:
            logged = monotonic()
            logger().info("bundle is downloaded", bytes=arrived)

    return BundleLoader(settings.bundles, on_download=on_download, retriever=open_retriever(settings))


def open_worker_bundles(settings: Settings, root: Path) -> WorkerBundles | None:
    """What the worker processes of one service agree on about bundles; None: there is only this process.

    Args:
        settings: of the service.
        root: directory of the bundles.
    """
    place = settings.worker
    if place is None:
        return None
    return WorkerBundles(place, WorkerBoard(place.directory, place.count), root)


def open_operator_state(
    settings: Settings, store: OperatorStateStore, on_erasure: Callable[[], None] = lambda: None
) -> OperatorState:
    """The pin and the hidden items of all replicas, with this replica's copy of them in a file."""

    def on_file_error(error: str) -> None:
        logger().error("operator state not saved", detail=error)

    return OperatorState(store, settings.operator_state_file, on_file_error, on_erasure)
