"""Telemetry: a span of OpenTelemetry for every request, with its stages as children; only where it is asked for.

Spans are made from the `Trace` when the answer is out, so stages cost nothing more than they do without, and nothing of
the SDK is imported while it is off. The caller's trace goes on if the request has a W3C ``traceparent``. Exporter,
sampler and resource are set up by the standard ``OTEL_*`` variables; a thread of the SDK exports in batches. Spans name
the route, never the path: paths hold the ids of users.
"""

import os
from importlib.metadata import version
from time import time_ns
from typing import TYPE_CHECKING, Any

from structlog.typing import FilteringBoundLogger

from service.errors import SettingsError
from service.request_trace import Trace
from service.settings.groups import ObservabilitySettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_CARRIED = {b"traceparent": "traceparent", b"tracestate": "tracestate"}
_NS_PER_MS = 1_000_000


class SpanRecorder:
    """Makes spans.

    Args:
        provider: of the SDK, with whatever exports.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("vlm2rec", version("vlm2rec"))
        self._read_parent = TraceContextTextMapPropagator().extract
        self._server, self._error = SpanKind.SERVER, Status(StatusCode.ERROR)
        self._within = set_span_in_context

    def record(self, trace: Trace, headers: list[tuple[bytes, bytes]], method: str, route: str, status: int) -> None:
        """Make the spans of a request that was answered just now.

        Args:
            trace: its stages; they are laid one after the other in the order in which each was first ended.
            headers: of the request, names in lower case.
            method: HTTP method.
            route: template of the path.
            status: HTTP status.
        """
        now = time_ns()
        start = now - int(trace.elapsed_ms * _NS_PER_MS)
        carried = {_CARRIED[name]: value.decode("latin-1") for name, value in headers if name in _CARRIED}
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "vlm2rec.request_id": trace.request_id,
        }
        span = self._tracer.start_span(
            f"{method} {route}",
            context=self._read_parent(carried) if carried else None,
            kind=self._server,
            attributes=attributes,
            start_time=start,
        )
        if span.is_recording():
            within, at = self._within(span), start + int(trace.waited_ms * _NS_PER_MS)
            for stage, milliseconds in trace.stages.items():
                end = at + int(milliseconds * _NS_PER_MS)
                self._tracer.start_span(stage, context=within, start_time=at).end(end)
                at = end
            if status >= 500:
                span.set_status(self._error)
        span.end(now)

    def close(self) -> None:
        """Export what waits and end the SDK's thread; blocks for as long as the exporter's timeouts allow."""
        self._provider.shutdown()


def open_spans(settings: ObservabilitySettings, log: FilteringBoundLogger) -> SpanRecorder | None:
    """Set up the export of spans as ``OTEL_*`` say; None where they are not wanted.

    Args:
        settings: ``on``; ``off``; or ``auto``: on if the variables name an exporter that can be loaded.
        log: gets the reason if ``auto`` stays off although an exporter is named.

    Raises:
        SettingsError: ``on``, and it cannot be.
    """
    if settings.otel == "off" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").lower()
    if settings.otel == "auto" and (exporter == "none" or not (exporter or any(map(os.environ.get, _ENDPOINTS)))):
        return None
    try:
        return SpanRecorder(_provider(exporter))
    except SettingsError as error:
        if settings.otel == "on":
            raise
        log.warning("no spans", reason=str(error))
        return None


def _provider(exporter: str) -> "TracerProvider":
    protocol = next(filter(None, map(os.environ.get, _PROTOCOLS)), "http/protobuf")
    if exporter not in {"", "otlp"} or protocol != "http/protobuf":
        raise SettingsError(
            f"spans go out as otlp over http/protobuf, got OTEL_TRACES_EXPORTER={exporter or 'otlp'} and the protocol "
            f"{protocol}; set these, or VLM2REC_OTEL=off"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(f"spans need the extra 'otel' ({error}); install it, or set VLM2REC_OTEL=off") from error
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = {"service.version": version("vlm2rec")} | ({} if named else {"service.name": "vlm2rec"})
    provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
