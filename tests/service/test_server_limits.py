"""Limits of the server process: open files, trusted proxies, connections."""

import json
import resource
import socket
from pathlib import Path

import pytest

from service.server import _allow_files, _connections
from service.settings.groups import HttpLimits
from service.telemetry.metrics import Metrics
from tests.support.processes.service_process import Service

GET = b"GET %s HTTP/1.1\r\nhost: x\r\n%s\r\n\r\n"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Records the limits on open files instead of setting them; the first is the current one."""
    bounds = [(1024, 8192)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: bounds[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, bound: bounds.append(bound))
    return bounds


def test_open_files_are_allowed_as_needed_and_no_further_than_possible(files: list[tuple[int, int]]) -> None:
    assert _allow_files(1000) == 1024
    assert len(files) == 1
    assert _allow_files(5000) == 5000
    assert files[-1] == (5000, 8192)
    assert _allow_files(9000) == 8192
    files.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert _allow_files(9000) == 9000
    files.append((10, resource.RLIM_INFINITY))
    assert _allow_files(9000) == 9000


def test_there_are_no_more_connections_than_open_files(files: list[tuple[int, int]]) -> None:
    metrics = Metrics()
    assert _connections(HttpLimits(), metrics).limits.connections == 4096
    files.append((1024, 1024))
    limits = _connections(HttpLimits(request_timeout_s=3), metrics).limits
    assert limits.connections + limits.spare + 256 == 1024
    assert limits.request_s == 3


class Caller:
    """Sends each request over a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __call__(self, path: bytes = b"/items", header: bytes = b"accept: */*") -> tuple[int, bytes]:
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as client:
            client.sendall(GET % (path, header + b"\r\nconnection: close"))
            answer = b"".join(iter(lambda: client.recv(65_536), b""))
        return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 on this machine")
def test_a_trusted_proxy_is_known_by_its_ipv4_address_on_a_socket_of_ipv6(small_registry: Path) -> None:
    """Such a socket names it ``::ffff:127.0.0.1``."""
    service = Service(
        *("--registry", str(small_registry), "--redis", "unix:///nonexistent/redis.sock", "--host", "::"),
        VLM2REC_RATE_LIMIT="0.01",
        VLM2REC_RATE_BURST="1",
        VLM2REC_TRUSTED_PROXIES="10.1.0.0/16, 127.0.0.0/8, ::1",
    )
    try:
        ask = Caller(service.port)
        clients = [b"10.9.9.1", b"10.9.9.2, 10.1.0.3", b"10.9.9.3, ::ffff:10.1.0.3", b"10.9.9.3"]
        assert [ask(header=b"x-forwarded-for: " + client)[0] for client in clients] == [200, 200, 200, 429]
    finally:
        assert service.end()[0] == 0


@pytest.mark.parametrize("trusted", [False, True])
def test_only_a_trusted_proxy_sets_the_address_of_the_caller(small_registry: Path, trusted: bool) -> None:
    environment = {"VLM2REC_TRUSTED_PROXIES": "10.1.0.0/16, 127.0.0.1"} if trusted else {}
    service = Service(
        *("--registry", str(small_registry), "--redis", "unix:///nonexistent/redis.sock"),
        VLM2REC_RATE_LIMIT="0.01",
        VLM2REC_RATE_BURST="1",
        VLM2REC_MAX_CONNECTIONS="30",
        VLM2REC_REQUEST_TIMEOUT_S="1",
        **environment,
    )
    try:
        ask = Caller(service.port)
        statuses = [ask(header=b"x-forwarded-for: 10.9.9.%d" % number)[0] for number in range(3)]
        assert statuses == ([200, 200, 200] if trusted else [200, 429, 429])
        with socket.create_connection(("127.0.0.1", service.port), timeout=60) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\n")
            answer = b"".join(iter(lambda: slow.recv(65_536), b""))
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "urn:vlm2rec:problem:request-late"
        exposition = ask(b"/metrics")[1].decode()
        assert 'vlm2rec_connections_dropped_total{reason="late"} 1.0' in exposition
        assert "vlm2rec_connections 1.0" in exposition
        assert f"vlm2rec_rate_limited_total {0 if trusted else 2}.0" in exposition
    finally:
        assert service.end()[0] == 0
