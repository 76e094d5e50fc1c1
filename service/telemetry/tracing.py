"""Records an OpenTelemetry span for every request, with its stages as children, if the settings ask for it.

Spans are made from the `Trace` after the response was sent, so that a stage costs nothing more. While tracing is off,
the SDK is not imported. A W3C ``traceparent`` header continues the caller's trace. The standard ``OTEL_*`` variables
set exporter, sampler and resource; a thread of the SDK exports in batches. A span has the route, never the path: paths
contain user ids.
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
    """Records spans.

    Args:
        provider: of the SDK, with an exporter.
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
        """Record the spans of a request that was just answered.

        Args:
            trace: of the request; its stages follow each other in the order in which each ended first.
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
        """Export the waiting spans and end the SDK's thread; this blocks up to the exporter's timeouts."""
        self._provider.shutdown()


def open_spans(settings: ObservabilitySettings, log: FilteringBoundLogger) -> SpanRecorder | None:
    """Set up the export of spans from the ``OTEL_*`` variables.

    Args:
        settings: tracing ``on``, ``off``, or ``auto``: on if the variables name an exporter that can be loaded.
        log: gets the reason if ``auto`` stays off although an exporter is named.

    Returns:
        The recorder; None: tracing is off.

    Raises:
        SettingsError: tracing is ``on``, but the exporter cannot be loaded.
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
            f"spans are exported as otlp over http/protobuf, got OTEL_TRACES_EXPORTER={exporter or 'otlp'} and the "
            f"protocol {protocol}; set these, or VLM2REC_OTEL=off"
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
