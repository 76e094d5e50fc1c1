"""Envelope: what every answer gets, whatever happens inside: request id, timing, metrics, a log line."""

from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from service.metrics import Metrics
from service.problems import INTERNAL, problem_response
from service.trace import Trace, request_id_from

TRACE = "vlm2rec.trace"
UNMATCHED = "unmatched"
_CLIENT_LEFT = 499
_LEFT = "the handler is closed"  # uvloop's words for writing to a client that has reset its connection


class Envelope:
    """ASGI middleware around the whole application.

    A path is routed as it was sent, still percent-encoded, so that ids with a slash can be part of it; the routes
    decode their parameters themselves.

    Args:
        app: what it wraps.
        metrics: counts every answer.
        log: writes a line for every answer.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, log: FilteringBoundLogger) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = Trace(request_id_from(_header(scope, b"x-request-id")))
        scope[TRACE] = trace
        scope["path"] = scope.get("raw_path", quote(scope["path"]).encode()).decode("ascii", "replace")
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
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
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception as error:  # the last resort: logged here, and the client gets a problem
            self._log.error("failed", request_id=trace.request_id, exc_info=error)
            if status:
                raise  # half an answer is out; closing the connection is all that is left
            detail = f"the log has the reason under request_id {trace.request_id}"
            await problem_response(INTERNAL, detail, request_id=trace.request_id)(scope, receive, send_with_headers)
        finally:
            self._report(scope, trace, status)

    def _report(self, scope: Scope, trace: Trace, status: int) -> None:
        route = getattr(scope.get("route"), "path_format", UNMATCHED)
        elapsed_ms = trace.elapsed_ms
        status = status or _CLIENT_LEFT
        self._metrics.answered(route, scope["method"], status, elapsed_ms / 1000.0, trace.stages)
        self._log.info(
            "request",
            request_id=trace.request_id,
            method=scope["method"],
            route=route,
            status=status,
            ms=round(elapsed_ms, 3),
        )


def trace_of(scope: Scope) -> Trace:
    """The trace of the request; the envelope put it there."""
    trace: Trace = scope[TRACE]
    return trace


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None
