"""The command as its users run it: a real process, a real socket, a real shutdown."""

import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from typer import BadParameter

from cli.online.serve import serve
from service.bundles.startup import Startup
from service.errors import SettingsError, StartError
from service.server import SocketServer, run
from service.server import serve as serve_alone
from service.settings.load import Settings, load_settings
from tests.support.processes.service_process import SERVE, Service
from tests.support.proxies.nginx import free_port
from tests.support.shops import eventually

KEY = "a-key-that-must-not-be-logged"


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_serves_logs_and_ends_with_its_redis(start: Callable[..., Service], small_registry: Path) -> None:
    service = start("--registry", str(small_registry), "--embedded-redis", VLM2REC_API_KEYS=KEY)
    (redis,) = children(service.process.pid)
    authorised = {"X_API_Key": KEY}
    status, ready, _ = service.call("GET", "/readyz")
    assert (status, ready["status"], ready["redis"]) == (200, "ready", "up")
    event = {"user_id": "anna", "item_id": "i1"}
    assert service.call("POST", "/events", event, **authorised)[:2] == (
        200,
        {"stored": 1, "duplicates": 0, "without_consent": 0},
    )
    status, body, headers = service.call("POST", "/recommend", {"user_id": "anna"}, X_Request_ID="my id", **authorised)
    assert (status, body["strategy"], len(body["items"])) == (200, "sequence", 20)
    assert headers["X-Request-ID"] == "my id"
    assert "server" not in headers
    assert service.call("POST", "/recommend", {"user_id": "anna"}, X_API_Key="wrong" + KEY)[0] == 403
    code, lines = service.end()
    assert code == 0
    assert not Path(f"/proc/{redis}").exists()
    ready_line = next(line for line in lines if line["event"] == "ready")
    assert ready_line["bundle"] == body["bundle"]
    request_line = next(line for line in lines if line.get("request_id") == "my id")
    assert {name: request_line[name] for name in ("event", "level", "method", "route", "status")} == {
        "event": "request",
        "level": "info",
        "method": "POST",
        "route": "/recommend",
        "status": 200,
    }
    assert request_line["ms"] > 0
    assert KEY not in json.dumps(lines)


def test_a_kept_redis_remembers_histories(start: Callable[..., Service], small_registry: Path, tmp_path: Path) -> None:
    arguments = ("--registry", str(small_registry), "--embedded-redis", "--redis-dir", str(tmp_path))
    first = start(*arguments)
    first.call("POST", "/events", {"user_id": "anna", "item_id": "i1"})
    assert first.end()[0] == 0
    second = start(*arguments)
    assert [step["item_id"] for step in second.call("GET", "/users/anna/history")[1]["items"]] == ["i1"]


def test_an_interrupt_ends_it_in_order(start: Callable[..., Service], small_registry: Path) -> None:
    service = start("--registry", str(small_registry), "--redis", "unix:///nonexistent/redis.sock")
    assert service.call("POST", "/recommend", {"user_id": "u"})[1]["degraded"] == "history_unavailable"
    code, lines = service.end(signal.SIGINT)
    assert code == 130
    assert not [line for line in lines if "Traceback" in json.dumps(line)]


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_in_progress_is_answered_before_the_end(
    start: Callable[..., Service], small_registry: Path, by: signal.Signals
) -> None:
    service = start("--registry", str(small_registry), "--redis", "unix:///nonexistent/redis.sock")
    body = json.dumps({"items": ["i1"], "k": 3}).encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as slow:
        lines = [
            "POST /recommend HTTP/1.1",
            "host: x",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        slow.sendall("\r\n".join([*lines, "", ""]).encode() + body[:5])
        eventually(lambda: in_progress(service) == 1)
        service.process.send_signal(by)
        eventually(lambda: refuses_connections(service.port))
        slow.sendall(body[5:])
        answer = slow.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200 OK")
    assert service.process.wait(60) == 0


def in_progress(service: Service) -> float:
    """Requests whose head has arrived; the one that asks is none of them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.port}/metrics", timeout=60) as answer:
        (line,) = re.findall(rb"^vlm2rec_requests_in_progress (\S+)$", answer.read(), re.MULTILINE)
    return float(line)


def refuses_connections(port: int) -> bool:
    """Whether the port refuses connections."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
    except ConnectionRefusedError:
        return True
    return False


def test_signals_that_ask_for_nothing_here_end_nothing(start: Callable[..., Service], small_registry: Path) -> None:
    service = start("--registry", str(small_registry), "--redis", "unix:///nonexistent/redis.sock")
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        service.process.send_signal(number)
        assert service.call("GET", "/readyz")[0] == 200
    assert service.end(signal.SIGHUP)[0] == 0


def test_nohup_is_respected(small_registry: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the service inherits it
    try:
        service = Service("--registry", str(small_registry), "--redis", "unix:///nonexistent/redis.sock")
    finally:
        signal.signal(signal.SIGHUP, before)
    try:
        service.process.send_signal(signal.SIGHUP)
        assert service.call("GET", "/readyz")[0] == 200
    finally:
        assert service.end()[0] == 0


def refused(*arguments: str, **environment: str) -> str:
    ran = subprocess.run(
        [*SERVE, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )
    assert ran.returncode == 2
    assert "Traceback" not in ran.stdout + ran.stderr
    return " ".join((ran.stdout + ran.stderr).split())


def test_a_used_port_is_reported(small_registry: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused("--registry", str(small_registry), "--port", str(port))
    assert f"error: port {port} on 127.0.0.1 cannot be used (Address already in use); choose another --port" in message


def test_the_port_opens_before_the_bundle_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    port, connected = free_port(), []

    def load(_: Settings) -> Startup:
        with socket.create_connection(("127.0.0.1", port)) as client:
            connected.append(client.getpeername())
        raise StartError("enough")

    monkeypatch.setattr("service.server.load_current", load)
    monkeypatch.setattr("service.server.configure_process", lambda _: None)  # it would change this whole process
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(StartError, match="enough"):
        serve_alone(load_settings(registry=str(tmp_path), port=port), announce=lambda _: None)
    assert connected == [("127.0.0.1", port)]


class NeverServing:
    """A server that ends at once and notes after how many new objects a collection of garbage would have begun."""

    was_ready = True

    def __init__(self) -> None:
        self.collected_after = 0

    def run(self, sockets: list[socket.socket]) -> None:
        self.collected_after = gc.get_threshold()[0]
        for one in sockets:
            one.close()


@pytest.fixture
def as_collected() -> Iterator[None]:
    """Takes back what `service.server.run` sets for the collection of garbage in the whole process."""
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("as_collected")
def test_garbage_is_collected_after_ten_thousand_new_objects(small_registry: Path) -> None:
    """The interpreter's 700 cost a bulk of events some microseconds each (issue 20)."""
    server = NeverServing()
    run(load_settings(registry=str(small_registry)), socket.socket(), lambda *_: cast("SocketServer", server))
    assert server.collected_after == 10_000
    assert gc.get_freeze_count() > 0


def test_an_empty_registry_is_reported(tmp_path: Path) -> None:
    message = refused("--registry", str(tmp_path), "--port", "0")
    assert f"error: no bundle is published in {tmp_path}; publish one with `vlm2rec index publish" in message


def test_a_damaged_bundle_is_reported(small_registry: Path, tmp_path: Path) -> None:
    shutil.copytree(small_registry, tmp_path / "registry")
    (vectors,) = (tmp_path / "registry").glob("*/vectors.npy")
    vectors.chmod(0o644)
    vectors.write_bytes(vectors.read_bytes()[:-10])
    assert "error: " in (message := refused("--registry", str(tmp_path / "registry"), "--port", "0"))
    assert "vectors.npy" in message


def test_a_wrong_setting_is_reported() -> None:
    assert "error: registry must be set: with VLM2REC_REGISTRY, in the file, or on the command line" in refused()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"registry": "r", "log_level": "loud"}, SettingsError, "log_level: "),
        ({"registry": "r", "host": "256.1.1.1"}, StartError, "256.1.1.1 is not an address of this machine"),
        ({"registry": "r", "redis": "http://x", "port": 0}, SettingsError, "redis_url must be a redis://"),
        (
            {"registry": "r", "redis": "unix:///x", "embedded_redis": True},
            BadParameter,
            "--redis URL or --embedded-redis",
        ),
        ({"registry": "r", "redis_dir": Path("d")}, BadParameter, "--redis-dir needs --embedded-redis"),
    ],
)
def test_a_wrong_argument_is_reported(
    monkeypatch: pytest.MonkeyPatch,
    small_registry: Path,
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setattr("service.server.configure_logs", lambda *_, **__: None)  # it would change this whole process
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(error, match=message):
        # Of a worker the parent learns the message alone.
        serve(**{**arguments, "registry": str(small_registry), "workers": 1})
    signal.signal(signal.SIGTERM, before)


def test_the_serving_process_loads_nothing_of_training() -> None:
    code = (
        "import cli.online.serve, service.app, service.server, sys\n"
        "heavy = {'torch', 'transformers', 'peft', 'polars', 'sklearn', 'pandas', 'onnx', 'PIL'}\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(heavy & loaded), 'service.api.recommend_routes' in sys.modules)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[] True"
    code = "import cli.online.serve, sys; print(sorted({'fastapi', 'numpy', 'redis', 'pydantic'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
