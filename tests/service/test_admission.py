"""Overload: half full, answers are cheap and say so; full, requests are refused at once; health is always told."""

import asyncio
from typing import Any

import pytest
from conftest import OpenClient
from starlette.testclient import TestClient

from index.bundle import Bundle
from service.admission import Admission
from service.envelope import TRACE
from service.load import Load
from service.trace import Trace

ASK = {"items": ["i1", "i2"], "k": 3}


class Counted:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def shed(self, reason: str) -> None:
        self.reasons.append(reason)


def test_what_is_in_progress_is_bounded_and_health_is_told() -> None:
    load, counted, gate, answered = Load(4), Counted(), asyncio.Event(), []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    admission = Admission(app, load=load, metrics=counted, retry_after_s=7)

    async def ask(path: str) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered.append((path, message["status"], dict(message["headers"]).get(b"retry-after")))

        async def receive() -> Any:
            raise AssertionError("a refusal reads no body")

        await admission({"type": "http", "path": path, TRACE: Trace("r")}, receive, send)

    async def run() -> None:
        waiting = [asyncio.ensure_future(ask("/recommend")) for _ in range(4)]
        await asyncio.sleep(0)
        assert (load.in_progress, load.is_full, load.is_high) == (4, True, True)
        await ask("/recommend")
        assert answered == [("/recommend", 429, b"7")]
        answered.clear()
        health = asyncio.ensure_future(ask("/readyz"))
        await asyncio.sleep(0)
        assert load.in_progress == 4
        waiting[0].cancel()  # a client that leaves makes room
        await asyncio.sleep(0)
        assert (load.in_progress, load.is_full, load.is_high) == (3, False, True)
        gate.set()
        await asyncio.gather(health, *waiting[1:])

    asyncio.run(run())
    assert load.in_progress == 0
    assert counted.reasons == ["refused"]
    assert sorted(answered) == [("/readyz", 200, None), *[("/recommend", 200, None)] * 3]


def test_an_application_that_fails_makes_room() -> None:
    load = Load(2)

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise RuntimeError

    admission = Admission(app, load=load, metrics=Counted(), retry_after_s=1)
    with pytest.raises(RuntimeError):
        asyncio.run(admission({"type": "http", "path": "/items"}, None, None))  # type: ignore[arg-type]
    assert load.in_progress == 0


def load_of(client: TestClient) -> Load:
    app: Any = client.app
    load: Load = app.state.load
    return load


def test_half_full_everybody_gets_what_is_popular(open_client: OpenClient, bundle: Bundle, oracle: Any) -> None:
    with open_client(queue_bound=8) as client:
        load_of(client).in_progress = 4
        for path, ask in (("/recommend", ASK), ("/similar", ASK), ("/recommend", {"user_id": "u", "k": 3})):
            answer = client.post(path, json=ask).json()
            assert (answer["strategy"], answer["degraded"]) == ("popular", "overload")
            barred = set(ask.get("items", ()))  # type: ignore[arg-type]
            wanted = [item for item, _ in oracle.popular(3, barred)]
            assert [item["item_id"] for item in answer["items"]] == wanted
        load_of(client).in_progress = 3
        assert client.post("/recommend", json=ASK).json()["degraded"] is None
        load_of(client).in_progress = 0
        degraded = 'vlm2rec_degraded_total{reason="overload"} 3.0'
        assert degraded in client.get("/metrics").text


def test_full_is_a_problem_that_says_when_to_come_back(open_client: OpenClient) -> None:
    with open_client(queue_bound=8, retry_after_s=3) as client:
        load_of(client).in_progress = 8
        answer = client.post("/recommend", json=ASK, headers={"X-Request-ID": "mine"})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"
        assert answer.json()["detail"].startswith("8 requests are in progress already")
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        assert 'vlm2rec_shed_total{reason="refused"} 1.0' in client.get("/metrics").text
        load_of(client).in_progress = 0
