"""Clients that leave in the middle of a request disturb no others: a real server, real sockets, a real Redis."""

import asyncio
import json
import random
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from bench.load.swap import Server
from service.app import create_app
from service.settings.load import load_settings
from tests.support.shops import eventually


@pytest.fixture(scope="module")
def server(small_registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # On a machine that is busy with other things Redis must not look dead.
    running = Server(small_registry, tmp_path_factory.mktemp("state"), VLM2REC_REDIS_TIMEOUT_MS="20000")
    yield running
    running.end()


def request(body: dict[str, Any], path: str = "/recommend") -> bytes:
    sent = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
    return head.encode() + sent


def leave(port: int, number: int, stop: threading.Event) -> None:
    """Send requests whole or in part and go, with or without a reset, before the answer."""
    rng = random.Random(number)
    while not stop.wait(0.02):  # enough of them to meet those who stay, not so many that the process is full of them
        asked = request({"user_id": f"user-{rng.randrange(20)}"})
        if rng.random() < 0.3:
            asked = asked[: rng.randrange(1, len(asked))]
        with socket.create_connection(("127.0.0.1", port)) as client:
            if rng.random() < 0.5:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(asked * rng.randrange(1, 4))


def test_a_client_that_stays_gets_its_own_response(server: Server) -> None:
    histories = {f"user-{user}": [f"i{user}", f"i{user + 1}"] for user in range(0, 40, 2)}
    for user, items in histories.items():
        server.call("/events", {"events": [{"user_id": user, "item_id": item} for item in items]})
    own = {user: json.loads(server.call("/recommend", {"items": items}))["items"] for user, items in histories.items()}
    stop = threading.Event()
    leaving = [threading.Thread(target=leave, args=(server.port, number, stop)) for number in range(4)]
    for thread in leaving:
        thread.start()
    try:
        for _ in range(10):
            for user, items in own.items():
                answer = json.loads(server.call("/recommend", {"user_id": user}))
                assert (answer["strategy"], answer["degraded"]) == ("sequence", None)
                assert answer["items"] == items
    finally:
        stop.set()
        for thread in leaving:
            thread.join()
    assert b'status="500"' not in server.call("/metrics")
    assert server.metric("vlm2rec_redis_errors_total") == 0


def test_the_rest_of_a_batch_is_not_computed_for_a_client_that_left(server: Server) -> None:
    batch = request({"requests": [{"items": ["i1"], "k": 50, "explain": True}] * 256}, "/recommend/batch")
    routed = re.compile(rb'vlm2rec_requests_total\{[^}]*route="/recommend/batch"[^}]*\} ([\d.]+)')
    before = server.metric("vlm2rec_answers_total")
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(batch)
    eventually(lambda: sum(map(float, routed.findall(server.call("/metrics")))) == 4)
    assert server.metric("vlm2rec_answers_total") - before < 512  # of 1,024


@pytest.mark.parametrize(
    ("message", "is_ours"),
    [("unable to perform operation on <TCPTransport>; the handler is closed", False), ("Response too long", True)],
)
def test_a_connection_reset_by_the_client_is_no_server_error(tmp_path: Path, message: str, is_ours: bool) -> None:
    app = create_app(load_settings(registry=str(tmp_path), directives_file=tmp_path / "directives.json"))
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/livez",
        "raw_path": b"/livez",
        "query_string": b"",
        "headers": [],
    }

    async def send(_message: Any) -> None:
        raise RuntimeError(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    with pytest.raises(RuntimeError) if is_ours else nullcontext():
        asyncio.run(app(scope, receive, send))
