"""The client of `vlm2rec verify`: its requests, and its errors for unexpected answers."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cli.errors import LiveServiceError
from cli.online.live_service import LiveService

Scripted = tuple[int, Any, dict[str, str]]


class Script(BaseHTTPRequestHandler):
    """Gives the next answer of the script."""

    protocol_version = "HTTP/1.1"
    answers: list[Scripted]
    asked: list[tuple[str, str, dict[str, str], str]]

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append((self.command, self.path, headers, body))
        status, answer, more = self.answers.pop(0)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in ({"content-length": str(len(content))} | more).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        if more.get("x-hang-up"):
            self.close_connection = True

    do_POST = do_GET  # noqa: N815 - the name that the base class looks for

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def script() -> Iterator[tuple[str, type[Script]]]:
    handler = type("Played", (Script,), {"answers": [], "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/behind", handler
        server.shutdown()
        thread.join()


def test_asks_as_a_client_does(script: tuple[str, type[Script]]) -> None:
    url, played = script
    live = LiveService(url, "a-key", timeout_s=60)
    played.answers += [
        (200, {"bundle": "b1"}, {}),
        (200, {"available": False}, {"x-hang-up": "1"}),  # without saying so
        (200, {"items": [], "strategy": "popular"}, {}),
    ]
    assert live.bundle_id() == "b1"
    assert live.available("a/b ü") is False
    assert live.recommend(["i1"], 3) == {"items": [], "strategy": "popular"}
    live.close()
    assert [(method, path) for method, path, _, _ in played.asked] == [
        ("GET", "/behind/bundle"),
        ("GET", "/behind/items/a%2Fb%20%C3%BC"),
        ("POST", "/behind/recommend"),
    ]
    assert all(headers["x-api-key"] == "a-key" for _, _, headers, _ in played.asked)
    assert json.loads(played.asked[-1][3]) == {"items": ["i1"], "k": 3, "exclude_seen": True}


def test_waits_as_long_as_retry_after_says(script: tuple[str, type[Script]]) -> None:
    url, played = script
    later = {"Retry-After": "0"}
    played.answers += [(429, {}, later), (503, {}, later), (200, {"bundle": "b1"}, {})]
    live = LiveService(url, None, timeout_s=60)
    assert live.bundle_id() == "b1"
    assert "x-api-key" not in played.asked[0][2]
    played.answers += [(503, {"detail": "no bundle is loaded yet"}, later)] * 5
    with pytest.raises(LiveServiceError, match="answers 503: no bundle is loaded yet"):
        live.bundle_id()
    assert len(played.asked) == 8
    live.close()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((200, b"<html>", {}), "something else than a JSON object"),
        ((200, [1], {}), "something else than a JSON object"),
        ((200, {"bundle": 7}, {}), "GET /bundle answers 200"),
        ((403, {"detail": "the key is not one of ours"}, {}), "answers 403: the key is not one of ours; give its API"),
        ((200, {"bundle": "b"}, {"Retry-After": "soon"}), "something else"),
        ((200, {"bundle": "b"}, {"content-length": "99", "x-hang-up": "1"}), "does not answer"),
    ],
)
def test_an_unexpected_answer_is_an_error(script: tuple[str, type[Script]], answer: Scripted, says: str) -> None:
    url, played = script
    played.answers += [answer]
    live = LiveService(url, None, timeout_s=60)
    with pytest.raises(LiveServiceError, match=says):
        live.bundle_id()
    live.close()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "file:///etc/passwd"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(LiveServiceError):
        LiveService(url, None, timeout_s=60)


def test_an_unreachable_service_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(LiveServiceError, match="is the service running there"):
        LiveService(f"http://127.0.0.1:{port}", None, timeout_s=60).bundle_id()
