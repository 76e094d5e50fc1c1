"""The one composition root: `create_app` picks every concrete class; nothing is built on import."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from index.bundle import Bundle
from service.admin_routes import AdminRoutes
from service.admission import Admission
from service.auth import KeyRing
from service.batch_routes import BatchRoutes
from service.batching import MicroBatcher
from service.catalogue_routes import CatalogueRoutes
from service.current import CurrentBundle
from service.directives import Directives
from service.envelope import Envelope, trace_of
from service.load import Load
from service.logs import logger
from service.metrics import Metrics
from service.openapi import document
from service.opening import Opening, open_first, read_pin
from service.problems import (
    ANSWERED_ERRORS,
    METHOD_NOT_ALLOWED,
    REQUEST_REFUSED,
    UNKNOWN_PATH,
    answer_error,
    internal_problem,
    problem_response,
)
from service.recommender import Recommender
from service.redis_directives import RedisDirectives
from service.redis_sessions import RedisSessions
from service.routes import Routes
from service.routing import DirectRoute, Services, ShortWay
from service.settings import Settings, load_settings
from service.shadow import RecentHistories, ShadowBounds
from service.shelf import Shelf
from service.slow_lane import SlowLane
from service.source import BundleSource
from service.user_routes import UserRoutes
from service.watcher import Watcher

_MOST_ENGINE_THREADS = 4
_DESCRIPTION = """
Multimodal sequential recommendations with an exact attribution of every score to text, image and behaviour.

Unknown keys are refused. Of a key that is repeated in one object the last counts. Errors are
`application/problem+json` (RFC 9457).
"""


class _Api(FastAPI):
    """FastAPI with the document that `service.openapi` writes, behind layers of our own.

    They stand before FastAPI's own, which the short way leaves out.
    """

    _front: ASGIApp | None = None

    def put_before(self, wrap: Callable[[ASGIApp], ASGIApp]) -> None:
        """Put a layer before everything that answers requests so far."""
        self._front = wrap(self._front or super().__call__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or begin and end the application."""
        answer = super().__call__ if scope["type"] != "http" or self._front is None else self._front
        await answer(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        return document(self)


def create_app(settings: Settings | None = None, *, opening: Opening | None = None) -> FastAPI:
    """Build the service.

    Args:
        settings: None: read from ``VLM2REC_*`` and the file that they name.
        opening: what to begin with; None: loaded from the registry at start-up.

    Returns:
        The application; ``app.state.current`` holds what answers, ``app.state.watcher`` swaps it,
        ``app.state.load`` counts what is in progress.

    Raises:
        SettingsError: a setting breaks a rule.
    """
    settings = settings or load_settings()
    services = _services(settings)
    # Emptied at the start: whatever still named the first bundle would keep it in memory for ever.
    begin_with = [] if opening is None else [opening]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await _begin(services, begin_with.pop() if begin_with else await asyncio.to_thread(load_current, settings))
        yield
        services.current.drain()
        await services.watcher.stop()
        await services.directives.close()
        await services.histories.close()
        services.batcher.close()
        services.slow_lane.close()

    app = _Api(
        title="vlm2rec",
        version=version("vlm2rec"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = DirectRoute
    app.state.current = services.current
    app.state.watcher = services.watcher
    app.state.load = services.load
    for group in (Routes, BatchRoutes, UserRoutes, CatalogueRoutes, AdminRoutes):
        group(services).register(app)
    _answer_problems(app, settings.retry_after_s)
    log, metrics, load = services.log, services.metrics, services.load
    app.put_before(lambda inner: Admission(inner, load=load, metrics=metrics, retry_after_s=settings.retry_after_s))
    app.put_before(lambda inner: Envelope(inner, metrics=metrics, log=log))
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
    load = Load(settings.queue_bound)
    batcher = MicroBatcher(bound=settings.queue_bound, threads=_engine_threads(settings), metrics=metrics, log=log)
    metrics.queue_depth(lambda: batcher.depth)
    api_keys = [key.get_secret_value() for key in settings.api_keys]
    admin_keys = [key.get_secret_value() for key in settings.admin_keys]
    return Services(
        current=current,
        watcher=watcher,
        directives=directives,
        histories=histories,
        batcher=batcher,
        load=load,
        recent=recent,
        recommender=Recommender(histories, batcher, directives.hidden, recent, load),
        metrics=metrics,
        # An admin key opens the data routes too; alone it does not close them for everybody else.
        data_keys=KeyRing([*api_keys, *admin_keys] if api_keys else [], open_without_keys=True),
        admin_keys=KeyRing(admin_keys, open_without_keys=False),
        log=log,
        body_limit=settings.body_limit_bytes,
        slow_lane=SlowLane(threads=max(1, (os.cpu_count() or 1) // 2)),
        require_consent=settings.require_consent,
        one_thread=source.one_thread,
    )


def _engine_threads(settings: Settings) -> int:
    """Workers of the batcher: none on CUDA; else one a core, at most four, as one event loop feeds no more."""
    if settings.device != "cpu":
        return 0
    return settings.engine_threads or min(len(os.sched_getaffinity(0)), _MOST_ENGINE_THREADS)


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


def _answer_problems(app: _Api, retry_after_s: int) -> None:
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

    async def failed(request: Request, _error: Exception) -> Response:
        return internal_problem(trace_of(request.scope).request_id)  # the envelope logs it

    answers: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
        **dict.fromkeys(ANSWERED_ERRORS, refused),
        HTTPException: no_route,
    }
    for kind, answer in answers.items():
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(Exception, failed)
    app.put_before(lambda inner: ShortWay(inner, app.routes, answers))
