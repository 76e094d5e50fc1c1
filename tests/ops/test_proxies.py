"""nginx and HAProxy before replicas that fail: what is sent again, how long is waited, and what clients get."""

import http.client
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from service.http.problems import UNKNOWN_PATH
from tests.support.proxies.configurations import HAPROXY, NGINX, Proxy
from tests.support.proxies.nginx import free_port

ID = '"event_id": "1"'
EVENT = f'{{"user_id": "anna", "item_id": "i1", {ID}}}'
WITHOUT_ID = '{"user_id": "anna", "item_id": "i1"}'
PROXIES = [
    pytest.param(NGINX, id="nginx", marks=pytest.mark.program("nginx")),
    pytest.param(HAPROXY, id="haproxy", marks=pytest.mark.program("haproxy")),
]

pytestmark = pytest.mark.slow


class Replica(ThreadingHTTPServer):
    """Stands in for three replicas: ready, and faulty in one way.

    Attributes:
        received: requests by path, without checks of health.
        hanging: paths whose requests are not answered until they are released.
        garbage: whether answers are not HTTP; else the connection is closed without one.
        arrived: requests on a hanging path arrived.
        released: they are answered now.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: Counter[str] = Counter()
        self.hanging: frozenset[str] = frozenset()
        self.garbage = False
        self.arrived, self.released = threading.Event(), threading.Event()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    server: Replica

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.received[self.path] += 1
        if self.path in self.server.hanging:
            self.server.arrived.set()
            self.server.released.wait(60)
            self._answer()
        elif self.server.garbage:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\x00\r\n\r\n")

    def do_PUT(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@contextmanager
def before(proxy: Proxy, folder: Path, *, shorter: bool = False) -> Iterator[tuple[int, Replica]]:
    """A proxy before a replica under three addresses: the proxy's port, the replica.

    Args:
        proxy: which.
        folder: for its files.
        shorter: requests of clients may take .3 s instead of seconds; those of administrators as long as configured.
    """
    with Replica() as replica:
        serving = threading.Thread(target=replica.serve_forever)
        serving.start()
        port = free_port()
        configuration = proxy.configuration(port, [replica.port] * 3)
        for limit in ("proxy_read_timeout 5s", "timeout server 5s", "timeout client 60s") if shorter else ():
            configuration = configuration.replace(limit, f"{limit.rpartition(' ')[0]} 300ms")
        try:
            with proxy.run(folder, configuration, port):
                yield port, replica
        finally:
            replica.released.set()
            replica.shutdown()
            serving.join()


def asked(
    port: int, path: str, body: str = "{}", method: str = "POST"
) -> tuple[int, http.client.HTTPMessage, dict[str, Any]]:
    """Status, headers and body of an answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body, {"content-type": "application/json"})
        with connection.getresponse() as answer:
            return answer.status, answer.headers, json.loads(answer.read())


@pytest.mark.program("haproxy")
def test_haproxy_sends_again_only_what_a_second_copy_does_not_change(tmp_path: Path) -> None:
    again = [
        ("/recommend", "{}"),
        ("/events", EVENT),
        ("/events", EVENT.replace(": ", "\n:\t")),
        ("/events", f'{{"events": [{EVENT}]}}'),
        ("/events", f'{{"events": [{EVENT}, {{{ID}, "session_id": "s", "item_id": "i2"}}]}}'),
    ]
    many = ", ".join([EVENT] * 200)
    again.append(("/events", f'{{"events": [{many}]}}'))
    once = [
        ("/events", f'{{"events": [{many}, {WITHOUT_ID}]}}'),
        ("/events", WITHOUT_ID),
        ("/events", '{"user_id": "anna", "item_id": "i1", "type": "event_id"}'),
        ("/events", '{"user_id": "anna", "item_id": "event_id", "type": ":"}'),
        ("/events", '{"user_id": "anna", "item_id": "\\"event_id\\": \\"1\\""}'),
        ("/events", '{"user_id": "anna", "item_id": "i1", "event_id": null}'),
        ("/events", f'{{"events": [{EVENT}, {WITHOUT_ID}]}}'),
        ("/events", f'{{"events": [{WITHOUT_ID}, {EVENT}]}}'),
        ("/events", f'{{"events": [{EVENT}, {WITHOUT_ID.replace("i1", "a{b")}]}}'),
        ("/events", f'{{"events": [{EVENT}, {WITHOUT_ID.replace("i1", "a}b")}]}}'),
        ("/events", '{"events": []}'),
        ("/users/anna/merge", '{"session_id": "event_id"}'),
        ("/users/anna/merge", EVENT),
    ]
    sent = {}
    with before(HAPROXY, tmp_path) as (port, replica):
        for path, body in [*again, *once]:
            replica.received.clear()
            assert asked(port, path, body)[0] == 503
            sent[path, body] = replica.received[path]
    assert sent == {**dict.fromkeys(again, 3), **dict.fromkeys(once, 1)}


@pytest.mark.program("nginx")
@pytest.mark.parametrize(("path", "count"), [("/recommend", 3), ("/events", 1), ("/bundle/rollback", 1)])
def test_nginx_sends_again_only_what_changes_nothing(tmp_path: Path, path: str, count: int) -> None:
    with before(NGINX, tmp_path) as (port, replica):
        assert asked(port, path, EVENT)[0] == 503
    assert replica.received == {path: count}


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("fault", ["closes", "garbage", "hangs", "gone"])
def test_clients_get_a_problem_and_are_asked_to_try_again(tmp_path: Path, proxy: Proxy, fault: str) -> None:
    with before(proxy, tmp_path, shorter=True) as (port, replica):
        replica.garbage = fault == "garbage"
        replica.hanging = frozenset({"/events"} if fault == "hangs" else ())
        if fault == "gone":
            replica.socket.shutdown(socket.SHUT_RDWR)
        status, headers, problem = asked(port, "/events", WITHOUT_ID)
    assert (status, headers["content-type"], headers["retry-after"]) == (503, "application/problem+json", "1")
    assert set(problem) == {"type", "title", "status", "detail"}
    assert (problem["type"], problem["status"]) == ("urn:vlm2rec:problem:no-replica", 503)


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_metrics_of_one_replica_are_not_shown(tmp_path: Path, proxy: Proxy) -> None:
    with before(proxy, tmp_path) as (port, _):
        status, headers, problem = asked(port, "/metrics", method="GET")
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert (problem["type"], problem["title"]) == (UNKNOWN_PATH.type, UNKNOWN_PATH.title)
    assert problem["status"] == 404


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/bundle/rollback"), ("POST", "/bundle/reload"), ("PUT", "/experiments/prices")]
)
def test_routes_that_load_a_bundle_may_take_longer(tmp_path: Path, proxy: Proxy, method: str, path: str) -> None:
    answers: list[int] = []
    with before(proxy, tmp_path, shorter=True) as (port, replica):
        replica.hanging = frozenset({path, "/recommend", "/events"})
        administrator = threading.Thread(target=lambda: answers.append(asked(port, path, method=method)[0]))
        administrator.start()
        assert replica.arrived.wait(60)
        # Both came later and have waited for as long as they may.
        assert [asked(port, other)[0] for other in ("/events", "/recommend")] == [503, 503]
        assert answers == []
        replica.released.set()
        administrator.join(60)
    assert answers == [200]
    assert replica.received[path] == 1
