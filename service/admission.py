"""Admission: a bound on what is in progress; what is beyond it is refused at once."""

from typing import Final, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from service.envelope import trace_of
from service.errors import QueueFull
from service.load import Load
from service.problems import answer_error

_ALWAYS_ADMITTED: Final = frozenset({"/livez", "/readyz", "/metrics"})


class ShedMetrics(Protocol):
    """What admission counts."""

    def shed(self, reason: str) -> None:
        """Count a request that was not served in full; the reason is one of a few words."""
        ...


class Admission:
    """ASGI middleware that counts what is in progress and refuses what is beyond the bound.

    What tells about the process itself is always let in: an orchestrator must not take a busy process for a dead one.

    Args:
        app: what it wraps.
        load: kept by it.
        metrics: counts refusals.
        retry_after_s: seconds, sent with every refusal.
    """

    def __init__(self, app: ASGIApp, *, load: Load, metrics: ShedMetrics, retry_after_s: int) -> None:
        self._app = app
        self._load = load
        self._metrics = metrics
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it at once."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS_ADMITTED:
            await self._app(scope, receive, send)
            return
        load = self._load
        if load.is_full:
            self._metrics.shed("refused")
            error = QueueFull(f"{load.bound} requests are in progress already, as many as may be; ask again later")
            request_id = trace_of(scope).request_id
            await answer_error(error, request_id=request_id, retry_after_s=self._retry_after_s)(scope, receive, send)
            return
        load.in_progress += 1
        try:
            await self._app(scope, receive, send)
        finally:
            load.in_progress -= 1
