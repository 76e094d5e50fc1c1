"""Builds the ASGI application: routes, error handlers, middleware and lifespan."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from service.api.admin_routes import AdminRoutes, AuditLog
from service.api.batch_routes import BatchRoutes
from service.api.catalogue_routes import CatalogueRoutes
from service.api.openapi import document
from service.api.operations_routes import OperationsRoutes
from service.api.outcomes.arms import Arms
from service.api.outcomes.experiment_routes import ExperimentRoutes
from service.api.outcomes.interleaved_answers import InterleavedAnswers
from service.api.outcomes.kept_answers import KeptAnswers
from service.api.outcomes.outcome_routes import OutcomeRoutes
from service.api.pages.docs_page import DocsPage
from service.api.pages.playground import Playground
from service.api.recommend_routes import RecommendRoutes
from service.api.rendering import ResponseBodies
from service.api.routing import ExactRoutes, documented_routes, methods_of
from service.api.user_routes import UserRoutes
from service.bundles.startup import Startup
from service.container import Container
from service.http.problems import (
    ANSWERED_ERRORS,
    METHOD_NOT_ALLOWED,
    REQUEST_REFUSED,
    UNKNOWN_PATH,
    answer_error,
    problem_response,
)
from service.http.request_context import context_of
from service.http.request_middleware import RequestMiddleware
from service.lifecycle import check_all_ready, check_ready, load_current, start, started_pool, stop
from service.settings.groups import HttpLimits
from service.settings.load import Settings, load_settings
from service.telemetry.tracing import SpanRecorder, open_spans

_DESCRIPTION = """
Multimodal sequential recommendations with an exact attribution of every score to text, image and behaviour.

Unknown keys are refused. Of a key that is repeated in one object the last counts. Errors are
`application/problem+json` (RFC 9457).
"""


# The last three are what tracing in a browser adds to every request (W3C Trace Context and Baggage).
_FROM_BROWSERS = (
    *("Authorization", "Content-Type", "X-API-Key", "X-Request-ID"),
    *("traceparent", "tracestate", "baggage"),
)


class _Api(FastAPI):
    """FastAPI with the document that `service.api.openapi` writes."""

    def openapi(self) -> dict[str, Any]:
        return document(self, documented_routes(self.routes), keyed=self.state.keyed, root_path=self.state.root_path)


def create_app(settings: Settings | None = None, *, startup: Startup | None = None) -> FastAPI:
    """Build the service.

    Args:
        settings: None: read from ``VLM2REC_*`` and the file that they name.
        startup: the bundle to start with; None: it is loaded from the registry at startup.

    Returns:
        The application. ``app.state`` has what the server uses: the ``active_bundle``, the ``watcher`` that swaps it,
        the ``admission`` that counts requests in progress, the ``metrics``, ``check_ready``, and ``drain_delay_s``.

    Raises:
        SettingsError: a setting breaks a rule.
    """
    settings = settings or load_settings()
    container = Container(settings)
    spans = open_spans(settings.observability, container.log)
    # Emptied at the start: a reference to the first bundle would keep it in memory for ever.
    given = [] if startup is None else [startup]

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_default_executor(started_pool())
        await start(container, given.pop() if given else await asyncio.to_thread(load_current, settings))
        yield
        await stop(container)
        if spans is not None:
            await asyncio.to_thread(spans.close)

    app = _Api(
        title="vlm2rec",
        version=version("vlm2rec"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # FastAPI's own would put paths, and with them the ids of users, into every span; see service.telemetry.tracing.
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
    )
    app.state.active_bundle = container.active_bundle
    app.state.keyed = bool(settings.access.api_keys or settings.access.api_keys_file)
    app.state.root_path = settings.server.root_path
    app.state.drain_delay_s = settings.server.drain_delay_s
    app.state.watcher = container.watcher
    app.state.admission = container.admission
    app.state.metrics = container.metrics
    app.state.histories = container.histories
    app.state.check_ready = partial(check_ready, container)
    _add_routes(app, container, settings)
    _add_error_handlers(app, settings.http)
    _add_middleware(app, settings, container, spans)
    return app


def _add_routes(app: FastAPI, container: Container, settings: Settings) -> None:
    """Add every group of routes with the objects that it uses."""
    arms = Arms(container.operator_state, container.active_bundle)
    audit = AuditLog(container.keys.admin, container.operator_state)
    _add_recommend_routes(app, container, settings, arms)
    _add_data_routes(app, container, settings, arms)
    _add_operator_routes(app, container, audit)
    _add_outcome_routes(app, container, settings, audit, arms)
    DocsPage(app).register()
    Playground(app).register()


def _add_recommend_routes(app: FastAPI, container: Container, settings: Settings, arms: Arms) -> None:
    """Add the routes that recommend: single requests and batches."""
    keys, active_bundle = container.keys.data, container.active_bundle
    bodies = ResponseBodies(container.metrics, container.log)
    kept = KeptAnswers(container.outcomes, require_consent=settings.histories.require_consent)
    groups = (
        RecommendRoutes(
            keys=keys,
            active_bundle=active_bundle,
            recommender=container.recommender,
            bodies=bodies,
            kept=kept,
            arms=arms,
            interleaved=InterleavedAnswers(bodies=bodies, kept=kept),
        ),
        BatchRoutes(
            keys=keys,
            active_bundle=active_bundle,
            histories=container.histories,
            recommender=container.recommender,
            bodies=bodies,
            kept=kept,
            admission=container.admission,
            log=container.log,
        ),
    )
    for group in groups:
        group.register(app)


def _add_data_routes(app: FastAPI, container: Container, settings: Settings, arms: Arms) -> None:
    """Add the routes of users and of the catalogue."""
    keys, active_bundle, hidden = container.keys.data, container.active_bundle, container.operator_state.hidden
    groups = (
        UserRoutes(
            keys=keys,
            active_bundle=active_bundle,
            histories=container.histories,
            operator_state=container.operator_state,
            recent=container.recent,
            executor=container.encoder_executor,
            metrics=container.metrics,
            log=container.log,
            retention=settings.histories,
            event_types=container.event_types,
            arms=arms,
            outcomes=container.outcomes,
            outcome_store=container.outcome_store,
            admission=container.admission,
        ),
        CatalogueRoutes(keys=keys, active_bundle=active_bundle, hidden=hidden, executor=container.executor),
    )
    for group in groups:
        group.register(app)


def _add_operator_routes(app: FastAPI, container: Container, audit: AuditLog) -> None:
    """Add the routes of health, metrics and the bundle, and those of administrators."""
    groups = (
        OperationsRoutes(
            keys=container.keys.data,
            metrics_keys=container.keys.metrics,
            active_bundle=container.active_bundle,
            watcher=container.watcher,
            files=container.loaded_bundles.files,
            check_ready=partial(check_all_ready, container),
            histories=container.histories,
            redis_faults=container.redis_faults,
            metrics_page=container.metrics_page,
        ),
        AdminRoutes(
            keys=container.keys.admin,
            active_bundle=container.active_bundle,
            operator_state=container.operator_state,
            watcher=container.watcher,
            audit=audit,
            log=container.log,
        ),
    )
    for group in groups:
        group.register(app)


def _add_outcome_routes(app: FastAPI, container: Container, settings: Settings, audit: AuditLog, arms: Arms) -> None:
    """Add the routes of outcomes and experiments; both answer that outcomes are off where they are."""
    store = container.outcome_store if settings.outcomes.outcomes else None
    OutcomeRoutes(keys=container.keys.data, active_bundle=container.active_bundle, store=store).register(app)
    ExperimentRoutes(
        keys=container.keys.admin,
        active_bundle=container.active_bundle,
        operator_state=container.operator_state,
        bundles=container.watcher.experiments,
        arms=arms,
        store=store,
        audit=audit,
        log=container.log,
    ).register(app)


def _add_middleware(app: FastAPI, settings: Settings, container: Container, spans: SpanRecorder | None) -> None:
    """Add the middleware; the last one added is the outermost."""
    of_browsers: dict[str, Any] = {}
    if settings.server.cors_origins:
        cors: dict[str, Any] = {
            "allow_origins": settings.server.cors_origins,
            "allow_methods": ("GET", "HEAD", "POST", "PUT", "DELETE"),
            "allow_headers": _FROM_BROWSERS,
            "expose_headers": ("Retry-After", "Server-Timing", "X-Request-ID"),
        }
        app.add_middleware(CORSMiddleware, **cors)
        of_browsers["for_browsers"] = partial(CORSMiddleware, **cors)
    app.add_middleware(
        RequestMiddleware,
        metrics=container.metrics,
        log=container.log,
        limits=settings.http,
        observability=settings.observability,
        spans=spans,
        **of_browsers,
    )


def _add_error_handlers(app: FastAPI, limits: HttpLimits) -> None:
    """Answer every expected error with a problem; `RequestMiddleware` logs and answers the others."""

    async def refused(request: Request, error: Exception) -> Response:
        request_id = context_of(request.scope).trace.request_id
        return answer_error(error, request_id=request_id, retry_after_s=limits.retry_after_s)

    async def no_route(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else REQUEST_REFUSED.status
        path, method = request.scope["path"][:200], request.method
        request_id = context_of(request.scope).trace.request_id
        if status == METHOD_NOT_ALLOWED.status:
            allowed = ", ".join(methods_of(app.routes, request.scope))
            detail = f"{path} takes {allowed}; received {method}"
            return problem_response(METHOD_NOT_ALLOWED, detail, request_id=request_id, headers={"Allow": allowed})
        if status == UNKNOWN_PATH.status:
            detail = f"no route has the path {path}; /docs lists them all"
            return problem_response(UNKNOWN_PATH, detail, request_id=request_id)
        return problem_response(REQUEST_REFUSED, str(error), request_id=request_id)

    for kind in ANSWERED_ERRORS:
        app.add_exception_handler(kind, refused)
    app.add_exception_handler(HTTPException, no_route)
    app.add_middleware(ExactRoutes, routes=app.routes, errors=ANSWERED_ERRORS, answer=refused)
