"""Wiring: picks every concrete class of what the routes work with, from the settings alone."""

from collections.abc import Callable
from dataclasses import replace

from index.machine.cores import available_cores
from service.access.key_rings import open_key_rings
from service.api.dependencies import Services
from service.bundles.active_bundle import ActiveBundle
from service.bundles.comparison import ShadowBounds
from service.bundles.loaded_bundles import LoadedBundles
from service.bundles.loader import BundleLoader
from service.bundles.operator_state import OperatorState
from service.bundles.startup import START_TIMEOUT_S, Startup, load_first, read_operator_state
from service.bundles.watcher import Watcher
from service.http.admission import Admission
from service.recommend.batching import MicroBatcher
from service.recommend.online_recall import OnlineRecall
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.runtime.bounded_executor import BoundedExecutor
from service.settings.load import Settings
from service.stores.redis_client import UNWATCHED, RedisWatch
from service.stores.redis_faults import RedisFaults
from service.stores.redis_histories import RedisHistories
from service.stores.redis_operator_state import RedisOperatorState
from service.stores.redis_renewal import Renewal
from service.telemetry.logs import lines_dropped, lines_failed, logger
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage


def open_services(settings: Settings) -> Services:
    """Everything that the routes work with; nothing is connected to or loaded yet."""
    log, metrics, current = logger(), Metrics(), ActiveBundle()
    renewal = Renewal()
    troubles = RedisFaults(log)
    histories = _open_histories(settings, metrics, renewal, troubles)
    watch = RedisWatch(metrics.redis_call, metrics.redis_error, on_outcome=troubles.outcome)
    recent = RecentHistories(settings.comparison.shadow_histories)
    operator_state = _open_operator_state(settings, watch, on_erasure=recent.clear, renewal=renewal)
    loader = BundleLoader(settings.bundles, on_load=metrics.bundles.loaded)
    loaded = LoadedBundles(
        active_bundle=current,
        hidden=operator_state.hidden,
        loader=loader,
        recent=recent,
        evaluation_queries=settings.comparison.shadow_histories,
        metrics=metrics.bundles,
        log=log,
    )
    watcher = Watcher(
        loaded=loaded,
        operator_state=operator_state,
        bounds=ShadowBounds(settings.comparison),
        poll_s=settings.bundles.poll_s,
    )
    metrics.log_lines(dropped=lines_dropped, failed=lines_failed)
    sampler = OnlineRecall(settings.observability, metrics.quality, log)
    load = Admission(settings.engine.queue_bound)
    threads = 0 if loader.one_thread else settings.engine.threads
    batcher = MicroBatcher(bound=settings.engine.queue_bound, threads=threads, metrics=metrics, log=log)
    metrics.in_progress(lambda: load.in_progress)
    metrics.queue_depth(lambda: batcher.depth)
    keys = open_key_rings(
        settings.access,
        on_refusal=metrics.clients.rate_limited,
        on_file_error=lambda error: log.error("keys not read again", detail=error),
    )
    return Services(
        current=current,
        watcher=watcher,
        directives=operator_state,
        histories=histories,
        redis_troubles=troubles,
        batcher=batcher,
        load=load,
        recent=recent,
        recommender=Recommender(histories, batcher, operator_state.hidden, recent, sampler),
        metrics=metrics,
        metrics_page=MetricsPage(metrics),
        data_keys=keys.data,
        admin_keys=keys.admin,
        metrics_keys=keys.metrics,
        log=log,
        body_limit=settings.http.body_limit_bytes,
        sampler=sampler,
        slow_lane=BoundedExecutor(threads=max(1, available_cores() // 2)),
        require_consent=settings.histories.require_consent,
        one_thread=loader.one_thread,
    )


def _open_histories(settings: Settings, metrics: Metrics, renewal: Renewal, troubles: RedisFaults) -> RedisHistories:
    return RedisHistories(
        settings.redis,
        settings.histories,
        watch=RedisWatch(metrics.redis_call, metrics.redis_error, metrics.breaker_state, troubles.outcome),
        renewal=renewal,
    )


def _open_operator_state(
    settings: Settings,
    watch: RedisWatch = UNWATCHED,
    on_erasure: Callable[[], None] = lambda: None,
    renewal: Renewal | None = None,
    *,
    timeout_s: float = 0.0,
) -> OperatorState:
    store = RedisOperatorState(settings.redis, timeout_s=timeout_s, watch=watch, renewal=renewal)
    return OperatorState(
        store,
        settings.operator_state_file,
        lambda error: logger().error("operator state not saved", detail=error),
        on_erasure,
    )


def load_current(settings: Settings) -> Startup:
    """Load and warm up the desired bundle; if it is refused, the newest good one before it.

    Raises:
        StartError: nothing is published, and `wait_for_bundle` is off.
        BundleRefused: every bundle is refused, and `wait_for_bundle` is off.
        IndexingError: the registry cannot be read.
    """
    state = read_operator_state(lambda: _open_operator_state(settings, timeout_s=START_TIMEOUT_S))
    first = load_first(BundleLoader(settings.bundles), state.pin, wait=settings.bundles.wait_for_bundle)
    return replace(first, operator_state=state)
