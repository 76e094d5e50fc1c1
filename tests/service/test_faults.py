"""Redis killed, stopped, full or not a Redis at all under a running service: answers degrade and say so."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from shops import eventually, metric
from starlette.testclient import TestClient

from demo.embedded_redis import EmbeddedRedis

RECOVERY_S = 2.0


@pytest.fixture
def redis() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis() as server:
        yield server


def check_degraded(client: TestClient) -> None:
    answer = client.post("/recommend", json={"user_id": "u", "k": 3})
    assert answer.status_code == 200
    assert (answer.json()["strategy"], answer.json()["degraded"]) == ("popular", "history_unavailable")
    assert len(answer.json()["items"]) == 3
    answer = client.post("/recommend", json={"user_id": "u", "items": ["i1"], "k": 3})
    assert (answer.json()["strategy"], answer.json()["degraded"]) == ("sequence", "history_unavailable")
    answer = client.post("/recommend", json={"items": ["i1"]})
    assert (answer.json()["strategy"], answer.json()["degraded"]) == ("sequence", None)
    assert client.get("/readyz").json()["redis"] == "down"
    refused = [
        client.post("/events", json={"user_id": "u", "item_id": "i2", "event_id": "lost"}),
        client.get("/users/u/history"),
        client.delete("/users/u"),
    ]
    for answer in refused:
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["type"] == "urn:vlm2rec:problem:sessions-unavailable"
        assert "Redis did not answer" in answer.json()["detail"]
        assert "unix" not in answer.text


def check_whole(client: TestClient, item: str) -> None:
    """Within two seconds histories are read and events stored, without anybody asking for it."""
    event = {"user_id": "u", "item_id": item, "event_id": item}
    eventually(lambda: client.get("/readyz").json()["redis"] == "up", RECOVERY_S)
    eventually(lambda: client.post("/events", json=event).status_code == 200, RECOVERY_S)
    assert client.post("/events", json=event).json() == {"stored": 0, "duplicates": 1}
    answer = client.post("/recommend", json={"user_id": "u"}).json()
    assert (answer["strategy"], answer["degraded"]) == ("sequence", None)


def test_killed_and_brought_back(open_client: Any, redis: EmbeddedRedis) -> None:
    with open_client(redis_url=redis.url) as client:
        check_whole(client, "i1")
        redis.kill()
        check_degraded(client)
        redis.start()
        check_whole(client, "i4")
        assert [step["item_id"] for step in client.get("/users/u/history").json()["items"]] == ["i4"]
        assert metric(client, "vlm2rec_degraded_total", reason="history_unavailable") == 2
        for operation in ("recent", "append", "erase", "ping"):
            assert metric(client, "vlm2rec_redis_errors_total", operation=operation) >= 1


def test_stopped_and_continued(open_client: Any, redis: EmbeddedRedis) -> None:
    with open_client(redis_url=redis.url, redis_timeout_ms=100) as client:
        check_whole(client, "i1")
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            check_degraded(client)
            assert time.monotonic() - started < 5.0  # seven calls that each wait at most two timeouts
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        check_whole(client, "i4")


def test_down_at_the_start(open_client: Any, redis: EmbeddedRedis) -> None:
    redis.kill()
    with open_client(redis_url=redis.url) as client:
        check_degraded(client)
        redis.start()
        check_whole(client, "i1")


def test_a_full_redis_refuses_events_but_answers(open_client: Any, redis: EmbeddedRedis) -> None:
    import redis as client_library

    with open_client(redis_url=redis.url) as client, client_library.Redis.from_url(redis.url) as admin:
        check_whole(client, "i1")
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        answer = client.post("/events", json={"user_id": "u", "item_id": "i2"})
        assert answer.status_code == 503
        body = client.post("/recommend", json={"user_id": "u"}).json()
        assert (body["strategy"], body["degraded"], body["history_used"]) == ("sequence", None, 1)
        admin.config_set("maxmemory", 0)
        check_whole(client, "i4")


def test_something_that_is_no_redis(open_client: Any, tmp_path: Any) -> None:
    import socketserver
    import threading

    class Garbage(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline():
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n\xff\x00garbage")

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True

    path = tmp_path / "garbage.sock"
    with Server(str(path), Garbage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with open_client(redis_url=f"unix://{path}", redis_timeout_ms=100) as client:
                check_degraded(client)
        finally:
            server.shutdown()
            thread.join()
