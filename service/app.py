"""The one composition root: `create_app` picks every concrete class; nothing is built on import."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from index.bundle import Bundle
from index.registry import Registry
from service.auth import KeyRing
from service.current import CurrentBundle
from service.engine import InlineEngine
from service.envelope import Envelope, trace_of
from service.errors import StartError
from service.logs import logger
from service.metrics import Metrics
from service.openapi import document
from service.problems import (
    ANSWERED_ERRORS,
    METHOD_NOT_ALLOWED,
    REQUEST_REFUSED,
    UNKNOWN_PATH,
    answer_error,
    problem_response,
)
from service.recommender import Recommender
from service.redis_sessions import RedisSessions
from service.rendering import age_s
from service.routes import Routes, Services
from service.settings import Settings, load_settings

_DESCRIPTION = """
Multimodal sequential recommendations with an exact attribution of every score to text, image and behaviour.

Unknown keys are refused. Of a key that is repeated in one object the last counts. Errors are
`application/problem+json` (RFC 9457).
"""


class _Api(FastAPI):
    """FastAPI with the document that `service.openapi` writes."""

    def openapi(self) -> dict[str, Any]:
        return document(self)


def create_app(settings: Settings | None = None, *, bundle: Bundle | None = None) -> FastAPI:
    """Build the service.

    Args:
        settings: None: read from ``VLM2REC_*`` and the file that they name.
        bundle: the bundle to begin with, warm; None: the registry's current one, loaded at start-up.

    Returns:
        The application; ``app.state.current`` holds what answers.

    Raises:
        SettingsError: a setting breaks a rule.
    """
    settings = settings or load_settings()
    log = logger()
    metrics = Metrics()
    current = CurrentBundle()
    histories = _open_histories(settings, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        loaded = bundle if bundle is not None else await asyncio.to_thread(load_current, settings)
        current.swap(loaded)
        metrics.bundle(loaded.id, len(loaded), lambda: age_s(loaded))
        log.info("ready", bundle=loaded.id, items=len(loaded), redis=await histories.alive())
        yield
        current.drain()
        await histories.close()

    app = _Api(
        title="vlm2rec",
        version=version("vlm2rec"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Envelope, metrics=metrics, log=log)],
    )
    app.state.current = current
    keys = KeyRing((key.get_secret_value() for key in settings.api_keys), open_without_keys=True)
    services = Services(
        current=current,
        histories=histories,
        recommender=Recommender(histories, InlineEngine()),
        metrics=metrics,
        data_keys=keys,
        log=log,
        body_limit=settings.body_limit_bytes,
    )
    Routes(services).register(app)
    _answer_problems(app, settings.retry_after_s)
    return app


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


def load_current(settings: Settings) -> Bundle:
    """Load the registry's current bundle and warm it.

    Raises:
        StartError: nothing is published there.
        IndexingError: the registry or the bundle cannot be read.
    """
    registry = Registry(settings.registry)
    published = registry.current()
    if published is None:
        raise StartError(
            f"no bundle is published in {settings.registry}; publish one with `vlm2rec index publish BUNDLE "
            f"--registry {settings.registry}`"
        )
    bundle = Bundle.load(
        registry.path(published), device=settings.device, threads=settings.encoder_threads, verify=settings.verify
    )
    bundle.warm_up()
    return bundle


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
