"""The one composition root: `create_app` picks every concrete class; nothing is built on import."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from index.bundle import Bundle
from service.admin_routes import AdminRoutes
from service.auth import KeyRing
from service.current import CurrentBundle
from service.directives import Directives
from service.engine import InlineEngine
from service.envelope import Envelope, trace_of
from service.logs import lines_dropped, logger
from service.metrics import Metrics
from service.openapi import document
from service.opening import Opening, open_first, read_pin
from service.problems import (
    ANSWERED_ERRORS,
    METHOD_NOT_ALLOWED,
    REQUEST_REFUSED,
    UNKNOWN_PATH,
    answer_error,
    problem_response,
)
from service.recommender import Recommender
from service.redis_directives import RedisDirectives
from service.redis_sessions import RedisSessions
from service.routes import Routes
from service.routing import DirectRoute, Services
from service.sampler import Sampler
from service.settings import Settings, load_settings
from service.shadow import RecentHistories, ShadowBounds
from service.shelf import Shelf
from service.source import BundleSource
from service.telemetry import open_spans
from service.watcher import Watcher

_DESCRIPTION = """
Multimodal sequential recommendations with an exact attribution of every score to text, image and behaviour.

Unknown keys are refused. Of a key that is repeated in one object the last counts. Errors are
`application/problem+json` (RFC 9457).
"""


class _Api(FastAPI):
    """FastAPI with the document that `service.openapi` writes."""

    def openapi(self) -> dict[str, Any]:
        return document(self)


def create_app(settings: Settings | None = None, *, opening: Opening | None = None) -> FastAPI:
    """Build the service.

    Args:
        settings: None: read from ``VLM2REC_*`` and the file that they name.
        opening: what to begin with; None: loaded from the registry at start-up.

    Returns:
        The application; ``app.state.current`` holds what answers, ``app.state.watcher`` swaps it.

    Raises:
        SettingsError: a setting breaks a rule.
    """
    settings = settings or load_settings()
    services = _services(settings)
    spans = open_spans(settings.otel, services.log)
    # Emptied at the start: whatever still named the first bundle would keep it in memory for ever.
    begin_with = [] if opening is None else [opening]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await _begin(services, begin_with.pop() if begin_with else await asyncio.to_thread(load_current, settings))
        yield
        services.current.drain()
        await services.sampler.close()
        await services.watcher.stop()
        await services.directives.close()
        await services.histories.close()
        if spans is not None:
            await asyncio.to_thread(spans.close)

    app = _Api(
        title="vlm2rec",
        version=version("vlm2rec"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own would put paths, and with them the ids of users, into every span; see service.telemetry.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
        middleware=[
            Middleware(
                Envelope, metrics=services.metrics, log=services.log, access_log=settings.access_log, spans=spans
            )
        ],
    )
    app.router.route_class = DirectRoute
    app.state.current = services.current
    app.state.watcher = services.watcher
    Routes(services).register(app)
    AdminRoutes(services).register(app)
    _answer_problems(app, settings.retry_after_s)
    return app


def _services(settings: Settings) -> Services:
    log, metrics, current = logger(), Metrics(), CurrentBundle()
    histories = _open_histories(settings, metrics)
    directives = _open_directives(settings, metrics.redis_error)
    recent = RecentHistories(settings.shadow_histories)
    source = _open_source(settings, metrics.bundles.loaded)
    shelf = Shelf(
        current=current,
        hidden=directives.hidden,
        source=source,
        recent=recent,
        probes=settings.shadow_histories,
        metrics=metrics.bundles,
        log=log,
    )
    watcher = Watcher(
        shelf=shelf,
        source=source,
        directives=directives,
        bounds=ShadowBounds(
            settings.shadow_min_overlap,
            settings.shadow_min_coverage,
            settings.shadow_min_answered,
            settings.shadow_max_slot_shift,
        ),
        metrics=metrics.bundles,
        log=log,
        poll_s=settings.poll_ms / 1000.0,
    )
    metrics.log_lines_dropped(lines_dropped)
    sampler = Sampler(
        metrics.quality, log, checks_per_s=settings.recall_checks_per_s, cpu_share=settings.recall_check_cpu
    )
    api_keys = [key.get_secret_value() for key in settings.api_keys]
    admin_keys = [key.get_secret_value() for key in settings.admin_keys]
    return Services(
        current=current,
        watcher=watcher,
        directives=directives,
        histories=histories,
        recent=recent,
        recommender=Recommender(histories, InlineEngine(), directives.hidden, recent, sampler),
        metrics=metrics,
        # An admin key opens the data routes too; alone it does not close them for everybody else.
        data_keys=KeyRing([*api_keys, *admin_keys] if api_keys else [], open_without_keys=True),
        admin_keys=KeyRing(admin_keys, open_without_keys=False),
        log=log,
        body_limit=settings.body_limit_bytes,
        sampler=sampler,
    )


async def _begin(services: Services, opening: Opening) -> None:
    await services.watcher.start(opening)
    redis = await services.histories.alive()
    if opening.bundle is None:
        services.log.warning("waiting for a bundle", redis=redis)
        return
    services.log.info("ready", bundle=opening.bundle.id, items=len(opening.bundle), redis=redis)


def _open_histories(settings: Settings, metrics: Metrics) -> RedisSessions:
    return RedisSessions(
        settings.redis_url.get_secret_value(),
        history_cap=settings.history_cap,
        ttl_s=settings.history_ttl_days * 86_400,
        stream_cap=settings.stream_cap,
        event_ids_cap=settings.event_ids_cap,
        timeout_s=settings.redis_timeout_ms / 1000.0,
        prefix=settings.redis_prefix,
        on_error=metrics.redis_error,
    )


def _open_directives(settings: Settings, on_error: Callable[[str], None] | None = None) -> Directives:
    store = RedisDirectives(
        settings.redis_url.get_secret_value(),
        timeout_s=settings.redis_timeout_ms / 1000.0,
        prefix=settings.redis_prefix,
        on_error=on_error,
    )
    return Directives(
        store, settings.directives_path, lambda trouble: logger().error("directives not kept", detail=trouble)
    )


def _open_source(settings: Settings, loaded: Callable[[Bundle], None] = lambda _bundle: None) -> BundleSource:
    return BundleSource(
        settings.registry,
        device=settings.device,
        threads=settings.encoder_threads,
        verify=settings.verify,
        loaded=loaded,
    )


def load_current(settings: Settings) -> Opening:
    """Load and warm the bundle that should serve; where it is bad, the newest good one before it.

    Raises:
        StartError: nothing is published, and `wait_for_bundle` is off.
        BundleRefused: no bundle is good, likewise.
        IndexingError: the registry cannot be read.
    """
    pin = read_pin(lambda: _open_directives(settings))
    return open_first(_open_source(settings), pin, wait=settings.wait_for_bundle)


def _answer_problems(app: FastAPI, retry_after_s: int) -> None:
    """Turn every error into a problem; what is not expected is left to the envelope."""

    async def refused(request: Request, error: Exception) -> Response:
        request_id = trace_of(request.scope).request_id
        return answer_error(error, request_id=request_id, retry_after_s=retry_after_s)

    async def no_route(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else REQUEST_REFUSED.status
        headers = error.headers if isinstance(error, HTTPException) else None
        path, method = request.scope["path"][:200], request.method
        request_id = trace_of(request.scope).request_id
        if status == METHOD_NOT_ALLOWED.status:
            allowed = (headers or {}).get("Allow", "other methods")
            detail = f"{path} takes {allowed}; received {method}"
            return problem_response(METHOD_NOT_ALLOWED, detail, request_id=request_id, headers=headers)
        if status == UNKNOWN_PATH.status:
            detail = f"no route has the path {path}; /docs lists them all"
            return problem_response(UNKNOWN_PATH, detail, request_id=request_id)
        return problem_response(REQUEST_REFUSED, str(error), request_id=request_id)

    for kind in ANSWERED_ERRORS:
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(HTTPException, no_route)
