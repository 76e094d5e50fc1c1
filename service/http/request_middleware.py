"""Gives every response its request id, timing, security headers, metrics, log line and span."""

from collections.abc import Callable
from time import perf_counter
from typing import Final
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from service.http.body_budget import BodyBudget
from service.http.problems import CROWDED, internal_problem, problem_response
from service.http.request_context import CONTEXT, RequestContext, context_of
from service.http.security_headers import missing_headers
from service.request_trace import Trace, request_id_from
from service.settings.groups import HttpLimits, ObservabilitySettings
from service.telemetry.logs import REQUEST_ID
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import SpanRecorder

UNMATCHED = "unmatched"
_CLIENT_LEFT = 499
_LOGGED_FROM: Final = {"all": 0, "errors": 400, "off": 1000}
_LEFT = "the handler is closed"  # uvloop's message when the client has reset its connection


class RequestMiddleware:
    """ASGI middleware around the whole application.

    Paths are routed as they were sent, still percent-encoded, so that an id may have a slash; the routes decode their
    parameters.

    Args:
        app: the application inside.
        metrics: counts every response.
        log: writes a line for every response.
        limits: of bodies, and the Retry-After of refusals.
        observability: which responses get a log line.
        spans: makes a span for every response; None: no spans.
        for_browsers: adds CORS headers to the responses of an application; `app` has its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        log: FilteringBoundLogger,
        limits: HttpLimits,
        observability: ObservabilitySettings,
        spans: SpanRecorder | None = None,
        for_browsers: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    ) -> None:
        self._app = app
        self._for_browsers = for_browsers
        self._bodies = BodyBudget(limits.bodies_limit_bytes, largest=limits.body_limit_bytes)
        self._retry_after = str(limits.retry_after_s)
        self._spans = spans
        self._logged_from = _LOGGED_FROM[observability.access_log]
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if CONTEXT not in scope:  # the server is not `service.http.protocol`
            scope[CONTEXT] = RequestContext(perf_counter())
        context = context_of(scope)
        trace = Trace(
            request_id_from(_header(scope, b"x-request-id")), overloaded=context.overloaded, began=context.began
        )
        context.trace, context.bodies = trace, self._bodies
        REQUEST_ID.set(trace.request_id)
        raw_path = scope.get("raw_path")
        scope["path"] = quote(scope["path"]) if raw_path is None else raw_path.decode("ascii", "replace")
        status, ended = 0, False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, ended
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = message.get("headers", [])
                message["headers"] = [
                    *sent,
                    *missing_headers(sent),
                    (b"x-request-id", trace.request_id.encode()),
                    (b"server-timing", trace.server_timing().encode()),
                ]
            try:
                await send(message)
            except RuntimeError as error:
                if _LEFT not in str(error):
                    raise
                raise ClientDisconnect from error

        try:
            await self._answer(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # the client has left
        except Exception as error:  # unexpected: logged, and the client gets a problem
            self._log.error("failed", request_id=trace.request_id, exc_info=error)
            if status and not ended:
                raise  # part of the response is sent: uvicorn closes the connection
            if not status:
                await self._respond(internal_problem(trace.request_id), scope, receive, send_with_headers)
        finally:
            self._report(scope, trace, status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask the application, unless the connection has refused the request."""
        context = context_of(scope)
        if context.refusal is None:
            await self._app(scope, receive, send)
            return
        kind, detail = context.refusal
        headers = {"Retry-After": self._retry_after} if kind is CROWDED else None
        response = problem_response(kind, detail, request_id=context.trace.request_id, headers=headers)
        await self._respond(response, scope, receive, send)

    async def _respond(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a response that is not the application's, so that pages of allowed origins can read it."""
        # As for GET: the question whether a page may call would be answered instead.
        await self._for_browsers(response)({**scope, "method": "GET"}, receive, send)

    def _report(self, scope: Scope, trace: Trace, status: int) -> None:
        route = getattr(scope.get("route"), "path_format", UNMATCHED)
        elapsed_ms = trace.elapsed_ms
        status = status or _CLIENT_LEFT
        self._metrics.answered(route, scope["method"], status, elapsed_ms / 1000.0, trace.stages)
        if self._spans is not None:
            self._spans.record(trace, scope["headers"], scope["method"], route, status)
        if status >= self._logged_from:
            self._log.info(
                "request",
                request_id=trace.request_id,
                method=scope["method"],
                route=route,
                status=status,
                ms=round(elapsed_ms, 3),
            )


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None
