"""Behind a real nginx that forwards upgrades and reuses connections, each client gets only its own responses."""

import contextlib
import json
import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from tests.support.processes.service_process import Service
from tests.support.proxies.nginx import free_port, nginx
from tests.support.sockets import Client

pytestmark = pytest.mark.slow

# As nginx' own documentation says for WebSocket, with connections that are kept, as it says for throughput.
WEBSOCKET = """
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream service {{ server 127.0.0.1:{service}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://service;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_request_buffering {buffering};
        }}
    }}
"""
# The address as it was sent, without the prefix: `proxy_pass http://service/` would decode an id's `%2F`.
PREFIX = """
    map $request_uri $below_rec {{ ~^/rec(?<below>/.*)$ $below; }}
    upstream service {{ server 127.0.0.1:{service}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        location /plain/ {{ proxy_pass http://service/; }}
        location /rec/ {{ proxy_pass http://service$below_rec; }}
    }}
"""
TRIES = 300
HIDDEN = b"GET /users/victim/history HTTP/1.1\r\nHost: x\r\nX-Request-ID: hidden\r\n\r\n"


@pytest.fixture(scope="module")
def service(small_registry: Path) -> Iterator[Service]:
    running = Service("--registry", str(small_registry), "--redis", "unix:///nonexistent/redis.sock")
    yield running
    assert running.end()[0] == 0


def smuggle(client: Client, number: int) -> None:
    """Ask for upgrades with requests in the bodies, cut at any byte, and hold each answer to its own request."""
    rng = random.Random(number)
    for place in range(TRIES):
        body = HIDDEN * rng.choice((1, 1, 5, 5000))
        wanted = f"smuggler-{number}-{place}"
        token = rng.choice(("h2c", "websocket", "anything"))
        sent = (
            f"POST /recommend HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nX-Request-ID: {wanted}\r\n"
            f"Connection: Upgrade\r\nUpgrade: {token}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        cut = rng.randrange(1, len(sent)) if rng.random() < 0.5 else len(sent) - len(body)
        client.send(sent[:cut])
        threading.Event().wait(rng.choice((0.0, 0.002, 0.02)))
        client.send(sent[cut:])
        status, headers, answer = client.answer()
        assert (status, headers.get("x-request-id")) == (400, wanted), (status, answer[:200])
        assert json.loads(answer)["type"] == "urn:vlm2rec:problem:malformed-json"


def stay(client: Client, name: str, ended: threading.Event) -> None:
    """Ask for one's own history and for an item in turns until the others have ended."""
    place = 0
    while not ended.is_set():
        path, wanted = (f"/items/i{place % 9}", f"{name}-{place}") if place % 2 else ("/livez", f"{name}-{place}")
        client.send(f"GET {path} HTTP/1.1\r\nHost: t\r\nX-Request-ID: {wanted}\r\n\r\n".encode())
        status, headers, answer = client.answer()
        assert (status, headers["x-request-id"]) == (200, wanted)
        assert json.loads(answer).get("item_id", f"i{place % 9}") == f"i{place % 9}"
        place += 1


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_no_client_gets_a_response_of_another(service: Service, tmp_path: Path, buffering: str) -> None:
    port, ended, failures = free_port(), threading.Event(), []

    def caught(work: object, *arguments: object) -> None:
        try:
            with contextlib.closing(Client(port)) as client:
                work(client, *arguments)  # type: ignore[operator]
        except (AssertionError, OSError, EOFError, KeyError) as failure:
            failures.append(failure)

    with nginx(tmp_path, WEBSOCKET.format(service=service.port, port=port, buffering=buffering), port):
        smugglers = [threading.Thread(target=caught, args=(smuggle, number)) for number in range(2)]
        others = [threading.Thread(target=caught, args=(stay, name, ended)) for name in ("anna", "ben")]
        for thread in smugglers + others:
            thread.start()
        for thread in smugglers:
            thread.join()
        ended.set()
        for thread in others:
            thread.join()
    assert not failures, failures


def fetched(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("prefix", ["plain", "rec"])
def test_both_pages_load_all_they_need_under_a_prefix(service: Service, tmp_path: Path, prefix: str) -> None:
    port = free_port()
    with nginx(tmp_path, PREFIX.format(service=service.port, port=port), port):
        below = f"http://127.0.0.1:{port}/{prefix}/"
        for page, least in (("docs", 3), ("", 5)):
            status, html = fetched(below + page)
            assert status == 200
            loaded = re.findall(r"""(?:src|href)=["']([^"'#]+)["']|url: '([^']+)'""", html.decode())
            urls = {urljoin(below + page, one or other) for one, other in loaded if not one.startswith("data:")}
            assert len(urls) >= least
            for url in urls:
                assert url.startswith(below)
                assert fetched(url)[0] == 200, url
        assert fetched(f"{below}items?limit=2")[0] == 200


def test_an_id_with_a_slash_arrives_where_the_address_is_passed_on_as_sent(service: Service, tmp_path: Path) -> None:
    port = free_port()
    with nginx(tmp_path, PREFIX.format(service=service.port, port=port), port):
        status, answer = fetched(f"http://127.0.0.1:{port}/rec/items/a%2Fb%3F%25")
        assert (status, json.loads(answer)["type"]) == (404, "urn:vlm2rec:problem:unknown-item")
        assert 'received "a/b?%"' in json.loads(answer)["detail"]
        status, answer = fetched(f"http://127.0.0.1:{port}/plain/items/a%2Fb")
        assert (status, json.loads(answer)["type"]) == (404, "urn:vlm2rec:problem:unknown-path")
        assert fetched(f"http://127.0.0.1:{port}/rec/items?limit=1")[0] == 200
