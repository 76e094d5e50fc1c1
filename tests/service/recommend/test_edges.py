"""Errors that no well-behaved client, bundle or encoder causes."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient
from starlette.types import Message

from index.bundle.bundle import Bundle
from index.errors import EncoderError
from service.api.requests.request_body import validate
from service.api.requests.request_models import RecommendRequest
from service.app import create_app
from service.bundles.active_bundle import ActiveBundle
from service.errors import NotReady, RuleBroken, StartError
from service.lifecycle import load_current
from service.server import SocketServer
from service.settings.load import load_settings


def call(app: FastAPI, messages: list[Message], path: str = "/recommend") -> list[Message]:
    """One request straight through ASGI; gives what was sent back."""
    sent: list[Message] = []

    async def run() -> None:
        async def receive() -> Message:
            return messages.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"host", b"x")]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        await app(
            scope | {"http_version": "1.1", "scheme": "http", "server": ("x", 80), "root_path": ""}, receive, send
        )

    asyncio.run(run())
    return sent


def test_a_client_that_leaves_is_counted_and_not_answered(open_client: Any) -> None:
    with open_client() as client:
        assert call(client.app, [{"type": "http.disconnect"}]) == []
        metrics = client.get("/metrics").text
    assert 'vlm2rec_requests_total{method="POST",route="/recommend",status="499"} 1.0' in metrics


def test_half_an_answer_is_not_followed_by_another(open_client: Any) -> None:
    with open_client() as client:

        async def broken(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise RuntimeError("in the middle")

        client.app.mount("/half", broken)
        with pytest.raises(RuntimeError, match="in the middle"):
            call(client.app, [], "/half/way")
        assert client.get("/livez").status_code == 200


def test_any_other_refusal_of_the_framework_is_a_problem_too(open_client: Any) -> None:
    with open_client() as client:

        def refuse(_request: object) -> None:
            raise HTTPException(418, "a teapot")

        client.app.add_route("/teapot", refuse)
        answer = client.get("/teapot")
    assert answer.status_code == 400
    assert answer.json()["type"] == "urn:vlm2rec:problem:request-refused"


def test_without_a_bundle_nothing_is_ready() -> None:
    with pytest.raises(NotReady, match="no bundle is loaded yet"):
        ActiveBundle().get()


def test_the_swapped_bundle_answers_from_then_on(bundle: Bundle) -> None:
    current = ActiveBundle()
    assert current.activation is None
    current.swap(bundle)
    assert current.get() is bundle
    assert current.activation is not None
    assert current.activation.since > 1_700_000_000


def test_the_application_loads_the_current_bundle_itself(small_registry: Path, bundle: Bundle) -> None:
    settings = load_settings(registry=str(small_registry), redis_url="unix:///nonexistent")
    with TestClient(create_app(settings)) as client:
        assert client.get("/readyz").json()["bundle"] == bundle.id
        assert client.get("/openapi.json").json() == client.get("/openapi.json").json()


def test_from_the_first_signal_on_it_is_not_ready(open_client: Any) -> None:
    with open_client() as client:
        server = SocketServer(uvicorn.Config(client.app), client.app, lambda: None)
        assert client.get("/readyz").status_code == 200
        server.handle_exit(signal.SIGTERM, None)
        assert server.should_exit
        assert client.get("/readyz").status_code == 503


def test_a_registry_without_a_bundle_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no bundle is published in"):
        load_current(load_settings(registry=str(tmp_path)))


def test_an_encoder_that_fails_is_counted_and_logged(
    client: TestClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise EncoderError("not finite")

    monkeypatch.setattr(bundle, "encode", broken)
    answer = client.post("/recommend", json={"items": ["i1"]})
    assert (answer.status_code, answer.json()["strategy"]) == (200, "similar")
    metrics = client.get("/metrics").text
    assert "vlm2rec_encoder_errors_total 1.0" in metrics
    assert 'vlm2rec_fallbacks_total{reason="encoder",strategy="similar"} 1.0' in metrics


def test_a_report_that_was_pruned_is_null(client: TestClient, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "path", Path("/nonexistent"))
    answer = client.get("/bundle")
    assert (answer.status_code, answer.json()["report"]) == (200, None)


def test_values_and_slots_without_end_are_refused() -> None:
    clause = {"field": "title", "eq": "x" * 1025}
    with pytest.raises(RuleBroken, match=r"filter.must\[0\].eq must have at most 1024 characters"):
        validate(RecommendRequest, {"user_id": "u", "filter": {"must": [clause]}})
    with pytest.raises(RuleBroken, match="slot_weights must name at most 64 slots; received 65"):
        validate(RecommendRequest, {"user_id": "u", "slot_weights": {str(number): 1 for number in range(65)}})
