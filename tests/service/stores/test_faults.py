"""Redis killed, stopped, full or replaced by another server: answers degrade and say so."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from demo.embedded_redis import EmbeddedRedis
from service.errors import HistoriesUnavailable
from service.stores.history_keys import keys_of, old_keys_of, old_stream_key
from service.stores.protocols import Event
from service.stores.redis_client import RedisWatch
from tests.support.shops import eventually, metric
from tests.support.stores.item_ids import item_ids
from tests.support.stores.real_redis import open_histories


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
    """Histories are read and events stored again, by itself; bench/faults/faults.py measures after how long."""
    event = {"user_id": "u", "item_id": item, "event_id": item}
    eventually(lambda: client.get("/readyz").json()["redis"] == "up")
    eventually(lambda: client.post("/events", json=event).status_code == 200)
    eventually(lambda: client.post("/recommend", json={"user_id": "u"}).json()["degraded"] is None)
    eventually(lambda: client.post("/recommend", json={"user_id": "u"}).json()["strategy"] == "sequence")
    eventually(lambda: client.post("/events", json=event).json().get("duplicates") == 1)


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


def test_calls_failures_and_the_worst_breaker_are_reported(redis: EmbeddedRedis) -> None:
    calls: list[tuple[str, bool]] = []
    errors: list[str] = []
    states: list[str] = []
    watch = RedisWatch(lambda name, seconds: calls.append((name, seconds >= 0)), errors.append, states.append)

    async def check() -> None:
        store = open_histories(redis.url, timeout_s=5.0, watch=watch)
        await store.append([Event("u", "a", 1.0)])
        assert await item_ids(store, "u") == ["a"]
        redis.kill()
        for _ in range(3):
            with pytest.raises(HistoriesUnavailable):
                await item_ids(store, "u")
        redis.start()
        while not await store.alive():
            await asyncio.sleep(0.02)
        await store.close()

    asyncio.run(asyncio.wait_for(check(), 30.0))
    assert calls[:5] == [("append", True), *[("recent", True)] * 4]
    assert errors[:3] == ["recent"] * 3
    assert (states[0], states[-2:]) == ("open", ["half_open", "closed"])


def test_stopped_and_continued(open_client: Any, redis: EmbeddedRedis) -> None:
    with open_client(redis_url=redis.url, redis_timeout_ms=200) as client:
        check_whole(client, "i1")
        assert redis.pid is not None
        os.kill(redis.pid, signal.SIGSTOP)
        try:
            check_degraded(client)
        finally:
            os.kill(redis.pid, signal.SIGCONT)
        check_whole(client, "i4")


def test_down_at_the_start(open_client: Any, redis: EmbeddedRedis) -> None:
    redis.kill()
    with open_client(redis_url=redis.url) as client:
        check_degraded(client)
        redis.start()
        check_whole(client, "i1")


def check_events_refused(client: TestClient) -> None:
    answer = client.post("/events", json={"user_id": "u", "item_id": "i2", "event_id": "refused"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def check_reads_go_on(client: TestClient) -> None:
    for _ in range(10):  # more than it takes to open a breaker
        check_events_refused(client)
        body = client.post("/recommend", json={"user_id": "u"}).json()
        assert (body["strategy"], body["degraded"], body["history_used"]) == ("sequence", None, 1)
    assert client.get("/readyz").json()["redis"] == "up"


def test_a_full_redis_refuses_events_but_answers(open_client: Any, redis: EmbeddedRedis) -> None:
    with open_client(redis_url=redis.url) as client, Redis.from_url(redis.url) as admin:
        check_whole(client, "i1")
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("maxmemory", 1)
        check_reads_go_on(client)
        assert client.post("/events", json={"session_id": "s", "item_id": "i2"}).status_code == 503
        admin.config_set("maxmemory", 0)
        # No breaker is open: the first event is stored.
        event = {"user_id": "u", "item_id": "i4", "event_id": "refused"}
        assert client.post("/events", json=event).json()["stored"] == 1


def test_a_replica_refuses_events_but_answers(open_client: Any, redis: EmbeddedRedis) -> None:
    with open_client(redis_url=redis.url) as client, Redis.from_url(redis.url) as admin:
        check_whole(client, "i1")
        admin.replicaof("127.0.0.1", 1)
        check_reads_go_on(client)
        admin.replicaof("NO", "ONE")
        event = {"user_id": "u", "item_id": "i4", "event_id": "refused"}
        assert client.post("/events", json=event).json()["stored"] == 1


def test_reads_go_on_while_writes_hang(open_client: Any, redis: EmbeddedRedis) -> None:
    with open_client(redis_url=redis.url, redis_timeout_ms=1000) as client, Redis.from_url(redis.url) as admin:
        check_whole(client, "i1")
        admin.client_pause(60_000, all=False)  # writes alone
        check_reads_go_on(client)
        admin.client_unpause()
        check_whole(client, "i4")


def test_keys_of_another_kind_lose_no_event(open_client: Any, redis: EmbeddedRedis) -> None:
    """An event that cannot be stored whole leaves nothing behind, not even its id: its retry is no duplicate."""
    with open_client(redis_url=redis.url, redis_prefix="p") as client, Redis.from_url(redis.url) as admin:
        old, new = old_keys_of("p", "b"), keys_of("p", "b")
        for key in (old_stream_key("p"), *new[:5], *old):  # storing an event of a user does not touch `merges`
            there, kind = {key}, "impression" if key == new.impressions else "view"
            events = [{"user_id": user, "item_id": "i1", "event_id": "e", "type": kind} for user in ("a", "b")]
            if key in old:
                admin.xadd(old_stream_key("p"), {"user_id": "b"})  # without it nobody looks for the others
                there.add(old_stream_key("p"))
            admin.set(key, "a string")
            assert client.post("/events", json={"events": events}).status_code == 503
            assert {found.decode() for found in admin.keys("p:*")} == there
            admin.delete(*there)
        assert client.post("/events", json={"events": events}).json()["stored"] == 2


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
            with open_client(redis_url=f"unix://{path}", redis_timeout_ms=200) as client:
                check_degraded(client)
        finally:
            server.shutdown()
            thread.join()
