"""HEAD on every GET route gives the status and the headers of GET, and no body."""

import asyncio
from typing import Any

from fastapi import FastAPI
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.support.exposed import exposed
from tests.support.shops import OpenClient
from tests.support.wire import Wires, echo

# These change between answers: an id, a time, the length of the metrics, which grow, and the length of a 405, which
# names the method.
_OF_ONE_ANSWER = {"x-request-id", "server-timing"}


def paths(app: FastAPI) -> list[str]:
    return [
        route.path.replace("{item_id}", "i8").replace("{user_id}", "somebody")
        for route in app.routes
        if isinstance(route, Route) and "GET" in (route.methods or ())
    ]


def stable_headers(answer: Any, path: str) -> dict[str, str]:
    changing = _OF_ONE_ANSWER | ({"content-length"} if path in {"/metrics", "/bundle", "/recommend"} else set())
    return {name: value for name, value in answer.headers.items() if name not in changing}


def test_every_route_of_get_has_it(pictured: TestClient) -> None:
    assert isinstance(pictured.app, FastAPI)
    asked = paths(pictured.app)
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/items/i8/image", "/users/somebody/history", "/livez"):
        assert path in asked
    for path in [*asked, "/items?limit=2", "/nowhere", "/recommend", "/items/none", "/items?cursor=x"]:
        got, head = pictured.get(path), pictured.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert stable_headers(head, path) == stable_headers(got, path)
        assert int(head.headers["content-length"]) > 0


def test_what_the_client_has_is_304_without_a_body_too(pictured: TestClient) -> None:
    tag = pictured.head("/items/i8/image").headers["etag"]
    assert pictured.head("/items/i8/image", headers={"if-none-match": tag}).status_code == 304


def test_a_key_is_needed_as_for_get_and_it_is_counted_by_its_route(open_client: OpenClient) -> None:
    with open_client(api_keys=["a-key-that-opens-data"]) as client:
        assert client.head("/items/i1").status_code == 401
        assert client.head("/items/i1", headers={"x-api-key": "a-key-that-opens-data"}).status_code == 200
        assert isinstance(client.app, FastAPI)
        labels = {"route": "/items/{item_id}", "method": "HEAD", "status": "200"}
        assert exposed(client.app.state.metrics, "vlm2rec_requests_total", **labels) == 1.0


def test_on_the_connection_the_next_answer_follows_the_head() -> None:
    async def run() -> bytes:
        wires = Wires(echo)
        ask = b" /a HTTP/1.1\r\nHost: x\r\n\r\n"
        return (await wires.wire(b"HEAD" + ask + b"GET" + ask, wanted=2)).sent

    assert asyncio.run(run()) == (
        b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nGET /a "
    )
