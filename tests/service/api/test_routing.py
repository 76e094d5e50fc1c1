"""Routes without path parameters are answered without the framework, all others by it."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from service.api.routing import ExactRoutes, NamedRoute

_ROUTES = ("/a", "/fails", "/broken", "/items/{item_id}")


async def handler(request: Request) -> Response:
    if request.scope["path"] == "/fails":
        raise KeyError("expected")
    if request.scope["path"] == "/broken":
        raise LookupError("unexpected")
    return PlainTextResponse("handler")


async def framework(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("framework")(scope, receive, send)


async def problem(_request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"problem {error}", 400)


def answered(method: str, path: str, kind: str = "http") -> tuple[str, str | None]:
    """The body, and the template of the route that the scope names."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    routes = [NamedRoute(route, handler) for route in _ROUTES]
    app = ExactRoutes(framework, routes=routes, errors=(KeyError,), answer=problem)
    scope: dict[str, Any] = {"type": kind, "method": method, "path": path, "headers": []}
    asyncio.run(app(scope, None, send))  # type: ignore[arg-type]
    return sent[-1]["body"].decode(), getattr(scope.get("route"), "path_format", None)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_route_without_parameters_is_answered_by_its_handler(method: str) -> None:
    assert answered(method, "/a") == ("handler", "/a")


@pytest.mark.parametrize(("method", "path"), [("POST", "/a"), ("GET", "/items/1"), ("GET", "/none"), ("GET", "/a/")])
def test_all_else_is_answered_by_the_framework(method: str, path: str) -> None:
    assert answered(method, path) == ("framework", None)


def test_the_start_and_the_end_of_the_application_belong_to_the_framework() -> None:
    assert answered("GET", "/a", kind="lifespan") == ("framework", None)


def test_an_expected_error_is_answered_and_another_is_raised() -> None:
    assert answered("GET", "/fails") == ("problem 'expected'", "/fails")
    with pytest.raises(LookupError, match="unexpected"):
        answered("GET", "/broken")


def test_a_route_names_itself_where_the_path_matches_with_any_method() -> None:
    route = NamedRoute("/items/{item_id}", handler)
    for method, match in (("GET", Match.FULL), ("POST", Match.PARTIAL)):
        found, child_scope = route.matches({"type": "http", "method": method, "path": "/items/1"})
        assert (found, child_scope["route"]) == (match, route)
    assert route.matches({"type": "http", "method": "GET", "path": "/"}) == (Match.NONE, {})
