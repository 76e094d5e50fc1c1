"""OpenTelemetry spans, recorded from the trace of a request, which continue the caller's trace."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from service.errors import SettingsError
from service.request_trace import Trace
from service.settings.groups import ObservabilitySettings
from service.telemetry.tracing import SpanRecorder, open_spans
from tests.support.shops import OpenClient

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = (b"traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01".encode())


class Log:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def warning(self, _event: str, *, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture(autouse=True)
def without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def recorder(exported: InMemorySpanExporter) -> Iterator[SpanRecorder]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    made = SpanRecorder(provider)
    yield made
    made.close()


def test_stages_follow_one_another(recorder: SpanRecorder, exported: InMemorySpanExporter) -> None:
    trace = Trace("r1")
    trace._stages = {"parse": 1.0, "encode": 2.5, "write": 0.5}
    trace.started -= 0.004  # it arrived four milliseconds ago
    recorder.record(trace, [], "POST", "/recommend", 200)
    parse, encode, write, whole = exported.get_finished_spans()
    assert [span.name for span in (parse, encode, write, whole)] == ["parse", "encode", "write", "POST /recommend"]
    assert [span.end_time - span.start_time for span in (parse, encode, write)] == [1_000_000, 2_500_000, 500_000]
    assert whole.start_time == parse.start_time
    assert (parse.end_time, encode.end_time) == (encode.start_time, write.start_time)
    assert whole.end_time - whole.start_time >= 4_000_000
    assert {span.parent.span_id for span in (parse, encode, write)} == {whole.context.span_id}
    assert {span.context.trace_id for span in (parse, encode, write)} == {whole.context.trace_id}
    assert whole.parent is None
    assert whole.kind is SpanKind.SERVER
    assert whole.status.status_code is StatusCode.UNSET
    assert dict(whole.attributes) == {
        "http.request.method": "POST",
        "http.route": "/recommend",
        "http.response.status_code": 200,
        "vlm2rec.request_id": "r1",
    }


def test_a_span_continues_the_trace_of_the_caller(recorder: SpanRecorder, exported: InMemorySpanExporter) -> None:
    recorder.record(Trace("r"), [PARENT, (b"tracestate", b"a=1")], "GET", "/livez", 503)
    (span,) = exported.get_finished_spans()
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.context.trace_state.get("a") == "1"
    assert span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("given", [b"", b"00-zz", b"\xff\xfe", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"])
def test_a_broken_traceparent_begins_a_new_trace(
    recorder: SpanRecorder, exported: InMemorySpanExporter, given: bytes
) -> None:
    recorder.record(Trace("r"), [(b"traceparent", given)], "GET", "/livez", 200)
    (span,) = exported.get_finished_spans()
    assert span.parent is None


def test_a_span_that_is_not_sampled_has_no_stages(exported: InMemorySpanExporter) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exported))
    trace = Trace("r")
    trace.lap("parse")
    SpanRecorder(provider).record(trace, [], "GET", "/livez", 200)
    assert exported.get_finished_spans() == ()
    provider.shutdown()


def test_every_request_of_the_application_is_one_trace(
    open_client: OpenClient, recorder: SpanRecorder, exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.app.open_spans", lambda *_: recorder)
    with open_client() as client:
        headers = {"X-Request-ID": "r1", "traceparent": PARENT[1].decode()}
        client.post("/recommend", json={"user_id": "secret-user", "items": ["i1"]}, headers=headers)
        client.get("/users/secret-user/history", headers={"X-Request-ID": "r2"})
        client.get("/secret/path")
        spans = exported.get_finished_spans()
    served = [span for span in spans if span.kind is SpanKind.SERVER]
    assert [span.name for span in served] == ["POST /recommend", "GET /users/{user_id}/history", "GET unmatched"]
    assert served[0].attributes["vlm2rec.request_id"] == "r1"
    assert f"{served[0].context.trace_id:032x}" == TRACE_ID
    stages = [span.name for span in spans if span.parent and span.parent.span_id == served[0].context.span_id]
    assert stages == ["parse", "history", "filter", "queue", "encode", "search", "rank", "write"]
    assert len(spans) == len({span.context.span_id for span in spans})
    assert "secret" not in "".join(span.to_json() for span in spans)


class Collector(BaseHTTPRequestHandler):
    received: list[tuple[str, ExportTraceServiceRequest]]

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        self.received.append((self.path, request))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("wanted", "name"), [("auto", None), ("on", "shop")])
def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch, wanted: Any, name: str | None) -> None:
    handler = type("Played", (Collector,), {"received": []})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        if name is not None:
            monkeypatch.setenv("OTEL_SERVICE_NAME", name)
        spans = open_spans(ObservabilitySettings(otel=wanted), Log())  # type: ignore[arg-type]
        assert spans is not None
        spans.record(Trace("r"), [], "GET", "/livez", 200)
        spans.close()
        server.shutdown()
        thread.join()
    ((path, request),) = handler.received
    assert path == "/v1/traces"
    (resource,) = request.resource_spans
    assert [span.name for scope in resource.scope_spans for span in scope.spans] == ["GET /livez"]
    about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert about["service.name"] == (name or "vlm2rec")


@pytest.mark.parametrize(
    ("wanted", "variables"),
    [
        ("auto", {}),
        ("off", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}),
        ("auto", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}),
        ("on", {"OTEL_SDK_DISABLED": "true"}),
    ],
)
def test_off(monkeypatch: pytest.MonkeyPatch, wanted: Any, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    log = Log()
    assert open_spans(ObservabilitySettings(otel=wanted), log) is None  # type: ignore[arg-type]
    assert log.reasons == []


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "got OTEL_TRACES_EXPORTER=zipkin and the protocol http/protobuf"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "the protocol grpc"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "without": "the package"}, "need the extra 'otel'"),
    ],
)
def test_impossible_tracing_is_reported(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], says: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if "without" in variables:
        monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    log = Log()
    assert open_spans(ObservabilitySettings(otel="auto"), log) is None  # type: ignore[arg-type]
    assert len(log.reasons) == 1
    assert says in log.reasons[0]
    with pytest.raises(SettingsError, match=says):
        open_spans(ObservabilitySettings(otel="on"), log)  # type: ignore[arg-type]


def test_nothing_is_loaded_while_off(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom service.app import create_app\nfrom service.settings.load import load_settings\n"
        f"create_app(load_settings(registry={str(tmp_path)!r}))\n"
        "heavy = ('opentelemetry.sdk.trace', 'opentelemetry.exporter', 'opentelemetry.proto', 'google.protobuf')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
