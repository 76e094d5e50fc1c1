"""Wires the service: builds every object that the routes and the server use, from the settings."""

from collections.abc import Callable

from index.machine.cores import available_cores
from service.access.auth import open_key_rings
from service.bundles.active_bundle import ActiveBundle
from service.bundles.comparison import ShadowBounds
from service.bundles.loaded_bundles import LoadedBundles
from service.bundles.loader import BundleLoader
from service.bundles.operator_state import OperatorState
from service.bundles.watcher import Watcher
from service.http.admission import Admission
from service.recommend.batching import MicroBatcher
from service.recommend.online_recall import OnlineRecall
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.runtime.bounded_executor import BoundedExecutor
from service.settings.load import Settings
from service.stores.protocols import OperatorStateStore
from service.stores.redis_client import RedisWatch
from service.stores.redis_faults import RedisFaults
from service.stores.redis_histories import RedisHistories
from service.stores.redis_operator_state import RedisOperatorState
from service.stores.redis_renewal import Renewal
from service.telemetry.logs import logger
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage


class Container:
    """The objects of one service; they connect and load only when the application starts."""

    def __init__(self, settings: Settings) -> None:
        self.active_bundle, engine = ActiveBundle(), settings.engine
        self.log, self.metrics = log, metrics = logger(), Metrics()
        self.keys = open_key_rings(settings.access, on_refusal=metrics.clients.rate_limited, log=log)
        self.redis_faults, renewal = RedisFaults(log), Renewal()
        watch = RedisWatch(metrics.redis_call, metrics.redis_error, metrics.breaker_state, self.redis_faults.outcome)
        self.histories = RedisHistories(settings.redis, settings.histories, watch=watch, renewal=renewal)
        self.recent = RecentHistories(settings.comparison.shadow_histories)
        store = RedisOperatorState(settings.redis, watch=watch, renewal=renewal)
        operator_state = open_operator_state(settings, store, on_erasure=self.recent.clear)
        self.operator_state, hidden = operator_state, operator_state.hidden
        loader = BundleLoader(settings.bundles, on_load=metrics.bundles.loaded)
        loaded = LoadedBundles(
            active_bundle=self.active_bundle,
            hidden=hidden,
            loader=loader,
            recent=self.recent,
            evaluation_queries=settings.comparison.shadow_histories,
            metrics=metrics.bundles,
            log=log,
        )
        bounds = ShadowBounds(settings.comparison)
        self.watcher = Watcher(loaded=loaded, operator_state=operator_state, bounds=bounds)
        threads = 0 if loader.one_thread else engine.threads
        self.batcher = MicroBatcher(bound=engine.queue_bound, threads=threads, metrics=metrics, log=log)
        self.online_recall = OnlineRecall(settings.observability, metrics.quality, log)
        self.recommender = Recommender(self.histories, self.batcher, hidden, self.recent, self.online_recall)
        self.executor = BoundedExecutor(threads=max(1, available_cores() // 2))
        self.encoder_executor = None if loader.one_thread else self.executor
        self.admission = Admission(engine.queue_bound)
        self.metrics_page = MetricsPage(metrics)
        metrics.in_progress(lambda: self.admission.in_progress)
        metrics.queue_depth(lambda: self.batcher.depth)


def open_operator_state(
    settings: Settings, store: OperatorStateStore, on_erasure: Callable[[], None] = lambda: None
) -> OperatorState:
    """The pin and the hidden items of all replicas, with this replica's copy of them in a file."""

    def on_file_error(error: str) -> None:
        logger().error("operator state not saved", detail=error)

    return OperatorState(store, settings.operator_state_file, on_file_error, on_erasure)
