"""Wiring: picks every concrete class of what the routes work with, from the settings alone."""

from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr
from structlog.typing import FilteringBoundLogger

from index.bundle.bundle import Bundle
from index.machine.cores import available_cores
from service.access.auth import KeyRing
from service.access.key_file import KeyFile
from service.access.rate_limit import RateLimit
from service.api.fast_router import Services
from service.bundles.active_bundle import ActiveBundle
from service.bundles.comparison import ShadowBounds
from service.bundles.loaded_bundles import LoadedBundles
from service.bundles.loader import BundleLoader
from service.bundles.operator_state import OperatorState
from service.bundles.startup import Startup, load_first, read_pin
from service.bundles.watcher import Watcher
from service.http.admission import Admission
from service.recommend.batching import MicroBatcher
from service.recommend.online_recall import OnlineRecall
from service.recommend.recent_histories import RecentHistories
from service.recommend.recommender import Recommender
from service.runtime.bounded_executor import BoundedExecutor
from service.settings import Settings
from service.stores.redis_client import UNWATCHED, RedisWatch
from service.stores.redis_faults import RedisTroubles
from service.stores.redis_histories import RedisHistories
from service.stores.redis_operator_state import RedisOperatorState
from service.stores.redis_renewal import Renewal
from service.telemetry.logs import lines_dropped, lines_failed, logger
from service.telemetry.metrics import Metrics
from service.telemetry.metrics_page import MetricsPage

_MOST_ENGINE_THREADS = 4


def open_services(settings: Settings) -> Services:
    """Everything that the routes work with; nothing is connected to or loaded yet."""
    log, metrics, current = logger(), Metrics(), ActiveBundle()
    renewal = Renewal()
    troubles = RedisTroubles(log)
    histories = _open_histories(settings, metrics, renewal, troubles)
    watch = RedisWatch(metrics.redis_call, metrics.redis_error, on_outcome=troubles.outcome)
    recent = RecentHistories(settings.shadow_histories)
    operator_state = _open_operator_state(settings, watch, on_erasure=recent.clear, renewal=renewal)
    loader = _open_loader(settings, metrics.bundles.loaded)
    loaded = LoadedBundles(
        active_bundle=current,
        hidden=operator_state.hidden,
        loader=loader,
        recent=recent,
        evaluation_queries=settings.shadow_histories,
        metrics=metrics.bundles,
        log=log,
    )
    watcher = Watcher(
        loaded=loaded,
        operator_state=operator_state,
        bounds=ShadowBounds(
            settings.shadow_min_overlap,
            settings.shadow_min_coverage,
            settings.shadow_min_answered,
            settings.shadow_max_slot_shift,
        ),
        poll_s=settings.poll_ms / 1000.0,
    )
    metrics.log_lines(dropped=lines_dropped, failed=lines_failed)
    sampler = OnlineRecall(
        metrics.quality, log, checks_per_s=settings.recall_checks_per_s, cpu_share=settings.recall_check_cpu
    )
    load = Admission(settings.queue_bound)
    batcher = MicroBatcher(bound=settings.queue_bound, threads=_engine_threads(settings), metrics=metrics, log=log)
    metrics.in_progress(lambda: load.in_progress)
    metrics.queue_depth(lambda: batcher.depth)
    data_keys, admin_keys, metrics_keys = _key_rings(settings, metrics, log)
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
        data_keys=data_keys,
        admin_keys=admin_keys,
        metrics_keys=metrics_keys,
        log=log,
        body_limit=settings.body_limit_bytes,
        sampler=sampler,
        slow_lane=BoundedExecutor(threads=max(1, available_cores() // 2)),
        require_consent=settings.require_consent,
        one_thread=loader.one_thread,
    )


def _engine_threads(settings: Settings) -> int:
    """Workers of the batcher: none on CUDA; else one a core, at most four, as one event loop feeds no more."""
    if settings.device != "cpu":
        return 0
    return settings.engine_threads or min(available_cores(), _MOST_ENGINE_THREADS)


def _key_rings(settings: Settings, metrics: Metrics, log: FilteringBoundLogger) -> tuple[KeyRing, KeyRing, KeyRing]:
    """Keys of the data routes, of the admin routes, and of the metrics."""

    def source(name: str, given: tuple[SecretStr, ...], file: Path | None) -> KeyFile:
        keys = [key.get_secret_value() for key in given]
        return KeyFile(name, keys, file, on_trouble=lambda trouble: log.error("keys not read again", detail=trouble))

    api = source("api_keys_file", settings.api_keys, settings.api_keys_file)
    admin = source("admin_keys_file", settings.admin_keys, settings.admin_keys_file)
    scrape = source("metrics_keys_file", settings.metrics_keys, settings.metrics_keys_file)
    admin.keep_apart_from(api, scrape)
    scrape.keep_apart_from(api, admin)
    api.keep_apart_from(admin, scrape)
    limit = None
    if settings.rate_limit is not None:
        limit = RateLimit(settings.rate_limit, settings.rate_burst, on_refusal=metrics.clients.rate_limited)
    # An admin key opens the data routes too; alone it does not close them for everybody else.
    data_keys = KeyRing([api, admin] if api.configured else [], open_without_keys=True, limit=limit)
    metrics_keys = KeyRing([scrape, admin] if scrape.configured else [], open_without_keys=True)
    return data_keys, KeyRing([admin], open_without_keys=False, limit=limit), metrics_keys


def _open_histories(settings: Settings, metrics: Metrics, renewal: Renewal, troubles: RedisTroubles) -> RedisHistories:
    return RedisHistories(
        settings.redis_url.get_secret_value(),
        history_cap=settings.history_cap,
        ttl_s=settings.history_ttl_days * 86_400,
        stream_cap=settings.stream_cap,
        event_ids_cap=settings.event_ids_cap,
        timeout_s=settings.redis_timeout_ms / 1000.0,
        prefix=settings.redis_prefix,
        watch=RedisWatch(metrics.redis_call, metrics.redis_error, metrics.breaker_state, troubles.outcome),
        renewal=renewal,
    )


def _open_operator_state(
    settings: Settings,
    watch: RedisWatch = UNWATCHED,
    on_erasure: Callable[[], None] = lambda: None,
    renewal: Renewal | None = None,
) -> OperatorState:
    store = RedisOperatorState(
        settings.redis_url.get_secret_value(),
        timeout_s=settings.redis_timeout_ms / 1000.0,
        prefix=settings.redis_prefix,
        watch=watch,
        renewal=renewal,
    )
    return OperatorState(
        store,
        settings.directives_path,
        lambda error: logger().error("operator state not saved", detail=error),
        on_erasure,
    )


def _open_loader(settings: Settings, on_load: Callable[[Bundle], None] = lambda _bundle: None) -> BundleLoader:
    return BundleLoader(
        settings.registry,
        device=settings.device,
        threads=settings.encoder_threads,
        verify=settings.verify,
        on_load=on_load,
    )


def load_current(settings: Settings) -> Startup:
    """Load and warm up the desired bundle; if it is refused, the newest good one before it.

    Raises:
        StartError: nothing is published, and `wait_for_bundle` is off.
        BundleRefused: every bundle is refused, and `wait_for_bundle` is off.
        IndexingError: the registry cannot be read.
    """
    pin = read_pin(lambda: _open_operator_state(settings))
    return load_first(_open_loader(settings), pin, wait=settings.wait_for_bundle)
