"""Adds the routes of the API, plain Starlette routes that FastAPI documents, and checks requests to them."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service.access.auth import KeyRing
from service.access.scopes import KeyScope
from service.api.openapi import responses, tagged_responses
from service.api.requests.request_body import shown
from service.bundles.active_bundle import ActiveBundle
from service.errors import RuleBroken, RuleViolation, UnknownItem
from service.http.request_context import context_of
from service.request_trace import Trace

KEY_PROBLEMS = (401, 403, 422, 429, 503)
BODY_PROBLEMS = (400, 408, 413, 415, *KEY_PROBLEMS)


class Operation(NamedTuple):
    """One method of one path.

    Attributes:
        method: HTTP method.
        path: template.
        handler: name of the method that answers it.
        tag: group in the documentation.
        answer: model of the response; None: 204 without a body.
        problems: statuses of its problems, besides those of every operation.
        extra: parameters and body, from `service.api.openapi.operation`.
        media_type: of a response that is not JSON; such a response may also be 304.
        scope: that an API key with scopes must have; None: the route is no data route.
    """

    method: str
    path: str
    handler: str
    tag: str
    answer: type[BaseModel] | None
    problems: tuple[int, ...] = KEY_PROBLEMS
    extra: dict[str, Any] | None = None
    media_type: str | None = None
    scope: KeyScope | None = None


class NamedRoute(Route):
    """A Starlette route that adds itself to the scope, for metrics and logs; FastAPI's router does not.

    Attributes:
        documented: the same route as FastAPI documents it; None: not in the OpenAPI document.
        key_scope: that an API key with scopes must have.
    """

    documented: APIRoute | None = None
    key_scope: KeyScope | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether the path and the method match, and what the scope gets."""
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            child_scope["route"] = self
        return match, child_scope


class ExactRoutes:
    """ASGI middleware that finds routes without path parameters in a dict, before the framework searches all routes.

    It calls the handler directly. Unknown paths, other methods and paths with parameters go on to the framework. It
    saves 8 of the 18 µs of the event loop that the framework takes for such a request (docs/adr/0014).

    Args:
        app: the framework's layers inside.
        routes: of the application.
        errors: what `answer` turns into a response; further errors are raised.
        answer: request and error → response, as the framework would answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[BaseRoute],
        errors: tuple[type[Exception], ...],
        answer: Callable[[Request, Exception], Awaitable[Response]],
    ) -> None:
        self._app = app
        self._errors = errors
        self._answer = answer
        self._routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, NamedRoute) and not route.param_convertors
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive)
        try:
            response = await route.endpoint(request)
        except self._errors as error:
            response = await self._answer(request, error)
        await response(scope, receive, send)


def add_operations(app: FastAPI, handlers: object, operations: Iterable[Operation]) -> None:
    """Add a route for each operation, with its documentation.

    Args:
        app: gets the routes.
        handlers: has the methods that the operations name.
        operations: one route each.
    """
    for operation in operations:
        handler = getattr(handlers, operation.handler)
        documented = (
            responses(operation.answer, *operation.problems)
            if operation.media_type is None
            else tagged_responses(operation.media_type, *operation.problems)
        )
        route = NamedRoute(operation.path, handler, methods=[operation.method])
        route.key_scope = operation.scope
        route.documented = APIRoute(
            operation.path,
            handler,
            methods=[operation.method],
            status_code=next(iter(documented)),
            tags=[operation.tag],
            operation_id=operation.handler,
            responses=documented,
            response_class=JSONResponse if operation.media_type is None else Response,
            openapi_extra=operation.extra,
        )
        app.router.routes.append(route)


def documented_routes(routes: Iterable[BaseRoute]) -> list[APIRoute]:
    """The routes that the OpenAPI document lists, as FastAPI documents them."""
    return [route.documented for route in routes if isinstance(route, NamedRoute) and route.documented is not None]


def methods_of(routes: Iterable[BaseRoute], scope: Scope) -> list[str]:
    """The methods of the first path template that a request matches, sorted; the framework's 405 names one route's."""
    found = [route for route in routes if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE]
    return sorted({method for route in found if route.path == found[0].path for method in route.methods or ()})


def admit(request: Request, keys: KeyRing, *, takes_query: bool = False) -> Trace:
    """Check the key, the rate and the query string of a request.

    Raises:
        KeyMissing, KeyRefused: the key does not open the route, or lacks its scope.
        RateExceeded: the key or the address calls too often.
        RuleBroken: the route takes no query parameters, or they are not UTF-8.
    """
    keys.admit(request, request.scope["route"].key_scope)
    query: bytes = request.scope["query_string"]
    if query and not takes_query:
        name, value = next(iter(request.query_params.items()), ("query", request.url.query))
        raise RuleBroken([RuleViolation(f"query parameter {name[:60]}", shown(value), "is not known to this route")])
    if b"%" in query:
        _check_encoding(query)
    return context_of(request.scope).trace


def _check_encoding(query: bytes) -> None:
    """Refuse bytes that are no UTF-8: other characters would be searched in their place."""
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        text = query.decode("latin-1")
        raise RuleBroken([RuleViolation("query", shown(text), "must be percent-encoded UTF-8")]) from None


def admit_to_data(request: Request, keys: KeyRing, active_bundle: ActiveBundle, *, takes_query: bool = False) -> Trace:
    """Check a request to a data route, and that there is an active bundle.

    A handler that reads a body takes the bundle after that: a client that sends slowly would keep an old bundle in
    memory.

    Raises:
        KeyMissing, KeyRefused, RuleBroken: see :func:`admit`.
        NotReady: there is no bundle yet, or the process is draining.
    """
    trace = admit(request, keys, takes_query=takes_query)
    active_bundle.admit()
    return trace


def item_id_of(request: Request, bundle_id: str) -> str:
    """The item id in the path.

    Args:
        request: to a route with such an id.
        bundle_id: of the active bundle, for the message.

    Raises:
        UnknownItem: it is no UTF-8, as no item's id is. With other characters in its place it could be that of another.
    """
    sent: str = request.path_params["item_id"]
    try:
        return unquote(sent, errors="strict")
    except UnicodeDecodeError:
        raise UnknownItem(f"item_id must be in bundle {bundle_id}; received {shown(sent)}, which is no UTF-8") from None
